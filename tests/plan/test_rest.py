"""What lowers outputs as what raises them less these: as exact as sums of their own, and fewer products."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

import fastlrp
from fastlrp import composites, rules
from fastlrp.backends.extension import loaded
from fastlrp.plan.products import packed, rest, winograd
from fastlrp.plan.products.packed import Packed
from tests.reference.cases import relative_error

C = loaded()
pytestmark = pytest.mark.skipif(packed._operations() is None, reason="a PyTorch without oneDNN")


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "dilation"),
    [((96, 20), (3, 3), [1, 1], [1, 1], [1, 1]), ((70, 19), (1, 1), [2, 1], [0, 0], [1, 1]),
     ((80, 33), (3, 2), [2, 1], [2, 0], [1, 3])],
    ids=str,
)  # fmt: skip
def test_a_rest_keeps_its_digits(channels, kernel, stride, padding, dilation, isa):
    """Negative sums, among them some far smaller than the output and some that are zero."""
    torch.manual_seed(0)
    outputs, inputs = channels
    x, weight = torch.rand(3, inputs, 9, 12), torch.randn(outputs, inputs, *kernel)
    weight[1], weight[2] = weight[1].abs(), torch.where(weight[2] < 0, 1e-6, 1) * weight[2]
    x[1, :, :, 5:] = 0
    bias = torch.randn(outputs)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    z = conv2d(x, weight, bias, **geometry)
    part = conv2d(x, weight.clamp(min=0), bias.clamp(min=0), **geometry)
    below, shift = (-weight).clamp(min=0), (-bias).clamp(min=0)
    right = conv2d(x.double(), below.double(), shift.double(), **geometry)

    def found(factor: Tensor | None = None, most: float = 8.0, rows: slice = slice(None)) -> tuple[Tensor, list[bool]]:
        """The sums, of which the kernel gives twice the reciprocal."""
        f = None if factor is None else factor[rows]
        given = z[rows], part[rows], x[rows], below, shift, f, *geometry.values(), most, 3.0, 2.0, 1e-6
        over_part, over_rest, kept = C.conv_rest(*given)
        assert torch.equal(over_part, C.elementwise_coefficients(z[rows], part[rows], None, f, "zplus", 3.0, 1e-6)[1])
        return 2 * (1 if f is None else f) / over_rest - 1e-6, kept

    y, kept = found()
    good = torch.tensor(kept)
    assert good[0]
    error = (y - right).abs() / torch.where(right > 0, right, 1)
    assert error[good].max() <= 2e-5
    assert bool((y[good][right[good] == 0].abs() <= 1e-12).all()), "exactly zero where nothing lowers an output"
    assert relative_error(found(most=torch.inf)[0][:, 2].double(), right[:, 2]) > 1e-5, "digits that cancel"
    for row in range(3):
        alone, is_kept = found(rows=slice(row, row + 1))
        assert is_kept == kept[row : row + 1]
        assert not is_kept[0] or torch.equal(alone, y[row : row + 1])
    factor = torch.zeros_like(z)
    factor[0, 0, 0, 0] = -1e9
    assert float(found(factor)[0][0, 0, 0, 0]) == pytest.approx(float(right[0, 0, 0, 0]), rel=1e-6)
    given = z, part, x, below, shift, factor, *geometry.values(), 8.0, 3.0, 2.0, 1e-6
    assert int(C.conv_rest(*given)[1].count_nonzero()) == 1, "nothing is divided"
    assert found(torch.full_like(z, 1e9))[1] == [False] * 3, "all of them are small"


def test_arguments_of_a_rest_are_checked():
    x, weight = torch.rand(1, 4, 5, 5), torch.rand(3, 4, 3, 3)
    maps = torch.rand(1, 3, 3, 3)
    given = {"whole": maps, "part": maps, "x": x, "weight": weight, "bias": None, "factor": None, "stride": [1, 1],
             "padding": [0, 0], "dilation": [1, 1], "most": 8.0,
             "alpha": 2.0, "beta": -1.0, "epsilon": 1e-6}  # fmt: skip
    assert C.conv_rest(**given)[0].shape == maps.shape
    for words, change in {
        "whole must have": {"whole": maps[:, :2]},
        "part must have": {"part": maps[..., 1:]},
        "factor must have": {"factor": maps[:, :2]},
        "weight must have shape": {"weight": weight[:, :2]},
        "bias must have": {"bias": torch.rand(2)},
        "stride": {"stride": [0, 1]},
        "x must have shape": {"x": x[0]},
    }.items():
        with pytest.raises(ValueError, match=words):
            C.conv_rest(**(given | change))


class Branches(nn.Module):
    """A residual sum, a stride, a kernel of one pixel, and outputs that next to nothing lowers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, padding=1)
        self.third, self.head = nn.Conv2d(64, 64, 1), nn.Linear(64, 4)
        for layer in (self.second, self.third):
            weight = layer.weight.data[::64]
            weight[:] = torch.where(weight < 0, 1e-5, 1) * weight
            layer.bias.data[::64] = 0.1

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(torch.relu(x)))
        x = torch.relu(x + self.third(torch.relu(self.second(x))))
        return self.head(x.mean((2, 3)))


def explained(model, composite, x: Tensor, monkeypatch, **options) -> tuple[Tensor, int]:
    """Relevance of two targets by dense ways, and how many products a forward pass takes."""
    explainer = fastlrp.Explainer(copy.deepcopy(model), composite, paths="dense", **options)
    explainer(x[:1], 0)
    products, plain = [], Packed.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Packed, "__call__", lambda self, *given: products.append(self) or plain(self, *given))
        for name in ("conv_point", "conv_point_coefficients"):
            made = getattr(C, name)
            patch.setattr(C, name, lambda *given, made=made: products.append(made) or made(*given))
        explainer.forward(x)
    return explainer(x, [0, 1]), len(products)


@pytest.mark.parametrize("alpha", [2.0, 1.0, 0.5, 0.0])
def test_alpha_beta_saves_a_product_and_loses_no_digit(alpha, monkeypatch):
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    model, x = Branches().eval(), torch.rand(2, 32, 24, 24)
    composite = composites.uniform(rules.AlphaBeta(alpha, alpha - 1))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])

    found, products = explained(model, composite, x, monkeypatch)
    _, all_products = explained(model, composite, x, monkeypatch, precision="float32")
    assert relative_error(found.double(), right) <= 1e-6  # Measured: 4e-7.
    assert all_products - products >= (3 if alpha not in (0, 1) else 0)
    alone = fastlrp.Explainer(copy.deepcopy(model), composite, paths="dense")(x[1:], [0, 1])
    assert relative_error(found[1:], alone) <= 1e-6
    if alpha == 2:
        monkeypatch.setattr(rest, "MOST_SHARE", 1e30)
        assert (
            relative_error(explained(model, composite, x, monkeypatch)[0].double(), right) > 1e-4
        )  # Measured: 2e-3, and 4e-7 above.


@pytest.mark.skipif(winograd._kernel() is None, reason="no processor that gains by the filtering")
def test_outputs_that_nothing_measures_are_plain_sums(monkeypatch):
    """Below gradients dark places get as much relevance as bright ones, and a filtered output has no digit there."""
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    torch.manual_seed(0)
    conv, head = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.Linear(32, 3)
    model = nn.Sequential(nn.ReLU(), conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    x = torch.rand(1, 32, 16, 16)
    x[..., 5:] *= 1e-7
    gradients = (nn.Linear, rules.Gradient()), (nn.AdaptiveAvgPool2d, rules.Gradient())
    composite = composites.Composite(gradients) | composites.uniform(rules.AlphaBeta(2, 1, 0.0))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), 0)
    found = fastlrp.Explainer(model, composite, paths="dense")
    assert relative_error(found(x, 0).double(), right) <= 1e-6  # Measured: 4e-7, and 0.1 of a filtered output.
    above = fastlrp.Explainer(model, composites.epsilon_plus(), paths="dense").forward(x)
    assert relative_error(above.under(composite).relevance(0).double(), right) <= 1e-6


def picture_net() -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4)).eval()


@pytest.mark.parametrize("bounds", ["numbers", "per channel", "above zero"])
def test_the_box_rule_saves_both_products_and_loses_no_digit(bounds, monkeypatch):
    """Also where a picture is at the box's corners, and nearly nothing is left of one output's sums."""
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    model = picture_net()
    low, high = torch.tensor([-1.0, -2.0, 0.0]).view(1, 3, 1, 1), torch.tensor([1.5, 1.0, 3.0]).view(1, 3, 1, 1)
    low, high = {
        "numbers": (torch.tensor(-2.0), torch.tensor(3.0)), "per channel": (low, high),
        "above zero": (low + 2.5, high + 2.5),
    }[bounds]  # fmt: skip
    x = low + (high - low) * torch.rand(2, 3, 24, 24)
    at_corner = torch.where(model[0].weight[5] > 0, low, high)
    x[1:, :, 3:6, 3:6] = at_corner + 1e-5 * (x[1:, :, 3:6, 3:6] - at_corner)
    model[0].bias.data[5] = 10  # So that relevance comes to these sums.
    composite = composites.epsilon_plus().with_entries((composites.first(), rules.ZBox(low, high)))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])

    found, products = explained(model, composite, x, monkeypatch)
    _, all_products = explained(model, composite, x, monkeypatch, precision="float32")
    assert relative_error(found.double(), right) <= 1e-6  # Measured: 3e-7.
    assert all_products - products == (2 if bounds in ("numbers", "per channel") else 0)
    if products < all_products:
        monkeypatch.setattr(rest, "MOST_SHARE", 1e30)
        assert relative_error(explained(model, composite, x, monkeypatch)[0].double(), right) > 1e-5


@pytest.mark.parametrize("bias", [1e4, -1e4])
def test_the_box_rule_reads_no_output_that_is_all_bias(bias, monkeypatch):
    """What is left of an output without its bias has what the output rounds."""
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    model = picture_net()
    model[0].bias.data[:] = bias * (1 + torch.rand(32))
    model[1] = nn.Identity()  # What arrives from a gradient says nothing of the output's size.
    x, composite = 4 * torch.rand(2, 3, 24, 24) - 2, composites.gradient()
    composite = composite.with_entries((composites.first(), rules.ZBox(-2, 2)))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])
    found = fastlrp.Explainer(model, composite)(x, [0, 1])
    assert relative_error(found.double(), right) <= 1e-6  # 1.3e-7


def test_arguments_of_a_box_are_checked():
    maps = torch.rand(2, 3, 3, 3)
    given = {"whole": maps, "part": maps[:1], "x": torch.rand(2, 4, 5, 5), "weight": torch.rand(3, 4, 3, 3),
             "shift": torch.rand(3), "factor": None, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1],
             "most": 8.0, "epsilon": 1e-6}  # fmt: skip
    found, kept = C.conv_rest_of_box(**given)
    assert found.shape == maps.shape
    assert len(kept) == 2
    for words, change in {
        "whole must have": {"whole": maps[:1]},
        "part must have": {"part": maps},
        "shift must have": {"shift": torch.rand(2)},
        "factor must have": {"factor": maps[:1]},
    }.items():
        with pytest.raises(ValueError, match=words):
            C.conv_rest_of_box(**(given | change))
