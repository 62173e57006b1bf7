"""The way up with the Triton kernels, interpreted: products without coefficients that are multiplied while written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, groups
from fastlrp.backends import dispatch
from fastlrp.reference.conv import conv_relevance
from fastlrp.reference.linear import linear_relevance
from tests.ops.cases import few_layouts

pytest.importorskip("triton")

from fastlrp.kernels.launch import Launch

pytestmark = pytest.mark.usefixtures("interpreted")


def call(op, backend, dtype):
    return dispatch.select(op, backend, torch.device("cpu"), dtype).call


def close(found, expected, dtype):
    most = {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]  # Worst measured: 2e-7 and 1.7e-3.
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= most * expected.norm()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(2, 5, 37, 19), (1, 20, 64, 48), (3, 2, 5, 16, 8)])
def test_a_linear_product_without_coefficients(backend, dtype, size):
    *before, into, out = size
    t, weight = torch.randn(*before, into).to(dtype), torch.randn(out, into).to(dtype)
    u = torch.randn(before[0], *before[2:], out).to(dtype)
    for given in [(t, weight, u), *few_layouts((t, weight, u))]:
        moved, matrix, factor = given
        found = call("linear_relevance", backend, dtype)(moved, matrix.t(), None, None, factor, None, False, True)
        whole = t.double(), weight.t().double(), None, None, u.double()
        close(found, linear_relevance(*whole, None, False, True), dtype)
    expected = torch.einsum("bg...i,oi->bg...o", t.double(), weight.double()) * u.double().unsqueeze(1)
    close(found, expected, dtype)


CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 5, 3, padding=1), "strided": nn.Conv2d(6, 20, (3, 2), 2, 1), "1d": nn.Conv1d(6, 4, 3, 2, 1),
    "dilated": nn.Conv2d(6, 4, 3, 1, 2, 2), "groups": nn.Conv2d(6, 8, 3, 2, 1, groups=2),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6), "two of each": nn.Conv2d(6, 12, 3, 2, groups=6),
    "transposed": nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), "wide padding": nn.Conv2d(6, 4, 2, 3, 5),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", [
    name if name in ("strided", "groups", "depthwise", "transposed") else pytest.param(name, marks=pytest.mark.full)
    for name in CONVOLUTIONS
])  # fmt: skip
def test_a_convolution_without_coefficients(backend, name):
    """``u (W t)`` is the relevance of the transposed layer, its coefficients as the input."""
    layer = CONVOLUTIONS[name]
    transposed = isinstance(layer, nn.ConvTranspose2d)
    axes, weight = len(layer.kernel_size), layer.weight.detach()
    t = torch.randn(1, 2, 6, *(5, 4)[-axes:])
    with torch.no_grad():
        whole = layer(t.flatten(0, 1)) - layer.bias.view(-1, *[1] * axes)
    expected = whole.double().unflatten(0, (1, 2))
    u = torch.randn(1, *expected.shape[2:])
    expected = expected * u.double().unsqueeze(1)
    windows = zip(
        t.shape[3:], whole.shape[2:], layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
    )
    left = [i - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for i, o, s, p, d, k in windows]
    left = [0] * axes if transposed else left
    geometry = [list(layer.stride), list(layer.padding), list(layer.dilation), not transposed, left, layer.groups]
    arguments = (None, None, u, None, list(expected.shape[3:]), *geometry, False, True)
    found = call("conv_relevance", backend, torch.float32)(t, weight, *arguments)
    close(found, expected, torch.float32)
    close(conv_relevance(t.double(), weight.double(), *arguments), expected, torch.float32)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["epsilon_gamma_box", pytest.param("epsilon_alpha2_beta1", marks=pytest.mark.full)])
def test_explanations_go_up_by_kernels(name, monkeypatch):
    """The same numbers as composed operations, and each layer's product and coefficient are one call of a kernel."""
    net, x = small(), torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    parameters = {"low": -3.0, "high": 3.0} if name == "epsilon_gamma_box" else {}
    composite, found, heard, run = composites.preset(name, **parameters), {}, [], Launch.run

    def listened(launch):
        heard.append(launch.kernel.__name__)
        run(launch)

    for backend in ("torch", "triton"):
        with fastlrp.Explainer(net, composite, backend=backend, paths="dense").forward(x) as record:
            if backend == "triton":
                monkeypatch.setattr(Launch, "run", listened)
            found[backend] = record.relevance("all", groups=groups.patches(3), direction="up")
    assert (found["triton"] - found["torch"]).norm() <= 1e-5 * found["torch"].norm()
    assert {"conv_kernel", "relevance_kernel"} <= set(heard)
