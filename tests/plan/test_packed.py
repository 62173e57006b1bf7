"""Convolutions whose weights are laid out beforehand: the numbers of the plain ones, where these may be used."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import packed
from fastlrp.run import prepared
from tests.reference.cases import relative_error

pytestmark = pytest.mark.skipif(packed._operations() is None, reason="this PyTorch has no oneDNN")

# Input channels, output channels, kernel, stride, padding, dilation, groups, input size.
SHAPES = [
    (16, 32, (3, 3), [1, 1], [1, 1], [1, 1], 1, (9, 7)),
    (16, 32, (1, 1), [1, 1], [0, 0], [1, 1], 1, (8, 8)),
    (16, 24, (3, 3), [2, 2], [1, 1], [1, 1], 1, (8, 9)),
    (16, 24, (1, 1), [2, 2], [0, 0], [1, 1], 1, (7, 7)),
    (16, 24, (1, 1), [2, 2], [0, 0], [1, 1], 1, (8, 8)),
    (16, 32, (3, 5), [1, 2], [0, 2], [2, 1], 1, (11, 9)),
    (32, 32, (3, 3), [1, 1], [1, 1], [1, 1], 32, (8, 8)),
    (16, 32, (3, 3), [1, 1], [1, 1], [1, 1], 4, (8, 8)),
    (16, 32, (3, 3), [1, 1], [3, 3], [1, 1], 1, (8, 8)),  # Padding wider than the kernel reaches.
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_weight_as_it_is(shape):
    channels, outputs, kernel, stride, padding, dilation, groups, size = shape
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, channels // groups, *kernel), torch.randn(outputs)
    geometry = ConvGeometry(stride, padding, dilation, False, [0, 0], groups)
    there = packed.Packed(lambda: weight, geometry)
    for batch in (1, 3, 2):  # The first call decides the layout.
        x = torch.randn(batch, channels, *size).contiguous(memory_format=torch.channels_last)
        exact = torch.convolution(x.double(), weight.double(), bias.double(), *geometry.arguments)
        assert relative_error(there(x, bias).double(), exact) <= 1e-6  # Measured: 2e-7.
        assert relative_error(there(x.contiguous()).double(), exact - bias.double().view(-1, 1, 1)) <= 1e-6
        down = packed.of_transpose(lambda: weight, geometry, kernel, size, exact.shape[2:])
        if down is None:
            continue
        flow, leaf = torch.randn(exact.shape), x.double().requires_grad_()
        y = torch.convolution(leaf, weight.double(), None, *geometry.arguments)
        (right,) = torch.autograd.grad(y, leaf, flow.double())
        assert relative_error(down(flow).double(), right) <= 1e-6


def test_the_operations_are_found_under_other_defaults():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert packed._operations.__wrapped__() is not None
    finally:
        torch.set_default_dtype(torch.float32)


class Block(nn.Module):
    """A residual block with strides, signed sums and batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.Conv2d(16, 16, 1)
        self.c = nn.Conv2d(16, 16, 1, 2)
        self.norm, self.other = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.d = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = self.norm(self.b(torch.relu(self.norm(self.a(x))))) + self.other(self.c(x))
        return self.head(self.d(x).mean((2, 3)))


def block() -> nn.Module:
    torch.manual_seed(3)
    model = Block().eval()
    for norm in (model.norm, model.other):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.normal_()
        norm.bias.data.normal_()
    return model


RULES = [fastlrp.composites.epsilon_gamma_box(-3, 3), "gamma", "epsilon_alpha2_beta1", "gradient"]


def test_explanations_are_those_of_float64(monkeypatch):
    monkeypatch.setattr(packed, "LEAST_WORK", 0)
    calls, convolution = [], packed.Packed.__call__
    monkeypatch.setattr(packed.Packed, "__call__", lambda *a: calls.append(1) or convolution(*a))
    model, x = block(), torch.randn(2, 3, 11, 12)
    exact = fastlrp.Explainer(copy.deepcopy(model).double(), "epsilon_plus").forward(x.double())
    assert not calls
    record = fastlrp.Explainer(model, "epsilon_plus").forward(x)
    assert len(calls) >= 4
    with torch.no_grad():
        assert relative_error(record.output, model(x)) <= 1e-6
    for rules in ("epsilon_plus", *RULES):
        rules = fastlrp.composites.resolve(rules)
        right, one = exact.under(rules).relevance("all"), record.under(rules)
        assert relative_error(one.relevance("all").double(), right) <= 3e-6, rules.name  # Measured: 8e-7.
        assert relative_error(one.relevance(3).double(), right[:, 3:4]) <= 3e-6, rules.name


def test_a_relu_behind_a_layer_keeps_nan(monkeypatch):
    monkeypatch.setattr(packed, "LEAST_WORK", 0)
    model = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 3, 3), nn.Flatten(), nn.Linear(48, 2)).eval()
    x = torch.randn(1, 2, 8, 8)
    explainer = fastlrp.Explainer(model, "epsilon_plus", example_inputs=x)
    names = [step.name for step, _ in explainer.plan.forward_schedule().steps]
    assert any("relu" in name and "conv2d" in name for name in names), names
    model[0].weight.data[3, 1] = float("nan")
    assert explainer.forward(x).output.isnan().all()
    with pytest.raises(fastlrp.NotFiniteError, match="conv2d"):
        explainer(x, 0)


def test_changed_weights_are_seen(monkeypatch):
    monkeypatch.setattr(packed, "LEAST_WORK", 0)
    model, x = block(), torch.randn(1, 3, 8, 8)
    explainer = fastlrp.Explainer(model, "epsilon_plus")
    explainer(x, 0)
    with torch.no_grad():
        model.a.weight.mul_(-1)
        model.norm.running_var.mul_(3)
    assert relative_error(explainer(x, 0), fastlrp.Explainer(copy.deepcopy(model), "epsilon_plus")(x, 0)) <= 1e-6


def test_derivatives_transforms_and_switches_take_the_plain_way():
    x = torch.randn(1, 3, 4, 4)
    assert packed.fits(x)
    assert packed.fits(x.requires_grad_()) is False
    with torch.no_grad():
        assert packed.fits(x)
    assert not packed.fits(x.detach().double())
    assert not packed.fits(x.detach()[:0])
    seen = []
    torch.vmap(lambda row: seen.append(packed.fits(row)) or row)(x.detach())
    assert seen == [False]
    with torch.backends.mkldnn.flags(enabled=False):
        assert not packed.fits(x.detach())
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        assert not packed.fits(x.detach())
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before


def test_a_layout_goes_with_the_plan_that_reads_it(monkeypatch):
    monkeypatch.setattr(packed, "LEAST_WORK", 0)
    monkeypatch.setattr(prepared, "_KEPT_OTHERS", 1)
    made, begin = weakref.WeakSet(), packed.Packed.__init__
    monkeypatch.setattr(packed.Packed, "__init__", lambda self, *a: made.add(self) or begin(self, *a))
    model = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    record = fastlrp.Explainer(model, "epsilon_plus").forward(torch.randn(1, 2, 5, 5))
    counts = []
    for gamma in (0.1, 0.2, 0.3):
        record.under(fastlrp.composites.uniform(fastlrp.rules.Gamma(gamma))).relevance(0)
        gc.collect()
        counts.append(len(made))
    assert counts[0] > 0
    assert counts[2] == counts[1]  # Only the latest plan is kept.
