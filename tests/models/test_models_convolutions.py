"""Convolutions of every kind, with everything around them, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fastlrp
from fastlrp import rules
from tests.models.cases import chain, check_case, conv, prepared, volume

CONV = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@pytest.mark.each_value
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 2, "bias": False},
        {"dilation": 2, "padding": 2},
        {"groups": 3, "padding": 1},
        {"groups": 3, "stride": 2, "dilation": 2, "padding": 3},
    ],
    ids=str,
)
def test_convolutions(dims: int, options: dict[str, Any]) -> None:
    layer = CONV[dims - 1]
    check_case(chain(layer(3, 6, 3, **options), nn.ReLU(), layer(6, 3, 1), nn.Tanh(), layer(3, 3, 2)), volume(dims))


@pytest.mark.each_value
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"dilation": 2, "bias": False},
        {"groups": 3, "stride": 3, "output_padding": 2},
    ],
    ids=str,
)
def test_transposed_convolutions(dims: int, options: dict[str, Any]) -> None:
    layer = TRANSPOSED[dims - 1]
    check_case(chain(layer(3, 6, 3, **options), nn.ReLU(), layer(6, 2, 2, stride=2), nn.ReLU()), volume(dims))


@pytest.mark.each_value
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same", "valid"], ids=str)
def test_padding_modes(mode: str, padding: Any) -> None:
    layers = nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode), nn.ReLU(), nn.Conv2d(4, 3, (3, 5), padding="same")
    check_case(chain(*layers, nn.ReLU()), volume(2))


@pytest.mark.each_value
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_same_padding_of_even_kernels(dims: int, mode: str) -> None:
    """One more on the right than on the left."""
    layer = CONV[dims - 1]
    first = layer(3, 4, (2, 4, 3)[:dims], padding="same", padding_mode=mode)
    second = layer(4, 6, 2, padding="same", dilation=3, groups=2)
    check_case(chain(first, nn.ReLU(), second, nn.ReLU()), volume(dims))


def test_same_padding_of_even_kernels_with_batch_norm_and_layers() -> None:
    model = chain(nn.Conv2d(3, 4, 4, padding="same"), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 2, padding="same"))
    x = volume(2)
    check_case(model, x, merged=[("0", "1")])
    found = fastlrp.explain(prepared(model, x.double()), x.double(), [1], layers=["0", "3"])
    assert found["0"].shape == (2, 1, 4, 7, 8)
    assert found["3"].shape == (2, 1, 2, 7, 8)


@pytest.mark.parametrize("at", ["image", "map"])
@pytest.mark.parametrize("name", ["flat", "wsquare", "box", "box of pixels"])
def test_same_padding_is_no_input_whatever_the_kernel(name: str, at: str) -> None:
    """Rules that read no values count what an output sees, and not the zeros beyond the border."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, (2, 4), padding="same", dilation=(3, 1)).double()
    x, low = torch.rand(2, 3, 5, 6).double(), -torch.rand(1, 3, 5, 6).double()
    ones, weight, bias = torch.ones_like(x), layer.weight.detach(), layer.bias.detach().view(-1, 1, 1)
    box = low if name == "box of pixels" else torch.tensor(-0.5).double()
    of_box = [(x, weight), (-box * ones, weight.clamp(min=0)), (-ones, weight.clamp(max=0))]
    rule, parts, shift = {
        "flat": (rules.Flat(0.0), [(ones, torch.ones_like(weight))], 0),
        "wsquare": (rules.WSquare(0.0), [(ones, weight.square())], bias.square()),
    }.get(name, (rules.ZBox(box, 1.0, 0.0), of_box, 0))

    def through(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, w, padding="same", dilation=(3, 1))

    R, leaves = torch.rand(2, 4, 5, 6).double(), [part.clone().requires_grad_() for part, _ in parts]
    z = sum(through(leaf, w) for leaf, (_, w) in zip(leaves, parts, strict=True))
    gradients = torch.autograd.grad(z, leaves, R / (z.detach() + shift))
    expected = sum(part * gradient for (part, _), gradient in zip(parts, gradients, strict=True))
    model, given = (layer, x) if at == "image" else (nn.Sequential(nn.Tanh(), layer), x.atanh())
    explainer = fastlrp.Explainer(model.eval(), fastlrp.composites.uniform(rule))
    torch.testing.assert_close(explainer(given, R.unsqueeze(1))[:, 0], expected)
    report = explainer.verify(given, R.unsqueeze(1))
    assert report.ok
    assert report.end_to_end < 1e-12  # 1e-16.


@pytest.mark.parametrize(
    "pad",
    [nn.ZeroPad2d((1, 2, 0, 1)), nn.ConstantPad2d(1, 0.3), nn.ReflectionPad2d(2), nn.ReplicationPad2d((1, 0, 2, 0)),
     nn.CircularPad2d(1), nn.ZeroPad2d(-1)],
    ids=str,
)  # fmt: skip
def test_padding_modules(pad: nn.Module) -> None:
    check_case(chain(conv(3, 4), nn.ReLU(), pad, conv(4, 2), nn.ReLU()), volume(2))


@pytest.mark.parametrize(
    "parametrized", [weight_norm, spectral_norm, nn.utils.weight_norm], ids=["weight", "spectral", "old"]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrized_weights(parametrized: Any) -> None:
    model = chain(parametrized(conv(3, 4)), nn.ReLU(), nn.Flatten(), parametrized(nn.Linear(4 * 56, 5)), nn.ReLU())
    check_case(model, volume(2))


def test_weights_trained_after_the_capture_are_seen_through_a_parametrization() -> None:
    x = volume(2).double()
    model = prepared(chain(weight_norm(conv(3, 4)), nn.ReLU()), x.float())
    explainer = fastlrp.Explainer(model)
    before = explainer(x, [1])
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(1.5)
    after = explainer(x, [1])
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, fastlrp.explain(model, x, [1]))
