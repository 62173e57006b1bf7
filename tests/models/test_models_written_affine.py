"""A layer's own bias, and a batch norm, that a model writes out are part of the layer, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from tests.models.checks import new_weights_are_followed
from tests.models.oracle import relative_error

PRESETS = ("epsilon_plus", "gamma", "alpha_beta", "attnlrp", "gradient")


class Layer(nn.Module):
    """A convolution or linear layer in the middle of a network, as ``form(h, weight, bias, statistics)`` has it."""

    def __init__(self, form: Callable[..., Tensor], conv: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = (lambda i, o: nn.Conv2d(i, o, 3)) if conv else nn.Linear
        self.first, self.layer, self.head = make(3, 4), make(4, 5), nn.Linear(5, 3)
        self.norm, self.form = nn.BatchNorm2d(5), form
        for tensor in (self.norm.running_mean, self.norm.weight, self.norm.bias):
            nn.init.normal_(tensor)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x)) - 0.2
        h = F.relu(self.form(h, self.layer.weight, self.layer.bias, self.norm))
        return self.head(h.mean((2, 3)) if h.dim() == 4 else h)


def channels(t: Tensor) -> Tensor:
    return t.view(1, -1, 1, 1)


def frozen(h: Tensor, W: Tensor, b: Tensor, m: nn.BatchNorm2d) -> Tensor:
    """As torchvision's ``FrozenBatchNorm2d`` has it."""
    scale = channels(m.weight) * (channels(m.running_var) + m.eps).rsqrt()
    return F.conv2d(h, W, b) * scale + (channels(m.bias) - channels(m.running_mean) * scale)


def by_the_book(h: Tensor, W: Tensor, b: Tensor, m: nn.BatchNorm2d) -> Tensor:
    found = (F.conv2d(h, W, b) - channels(m.running_mean)) / (channels(m.running_var) + m.eps).sqrt()
    return torch.addcmul(channels(m.bias), channels(m.weight), found)


CONVOLUTIONS: dict[str, list[Callable[..., Tensor]]] = {
    "bias": [
        lambda h, W, b, m: F.conv2d(h, W, b),
        lambda h, W, b, m: F.conv2d(h, W) + channels(b),
        lambda h, W, b, m: F.conv2d(h, W) - channels(-b),
        lambda h, W, b, m: -(channels(-b) - F.conv2d(h, W)),
        lambda h, W, b, m: F.conv2d(h, W / 2) * 2 + channels(b),
    ],
    "batch norm": [lambda h, W, b, m: m(F.conv2d(h, W, b)), frozen, by_the_book],
    "bias, batch norm": [lambda h, W, b, m: m(F.conv2d(h, W, b)), lambda h, W, b, m: m(F.conv2d(h, W) + channels(b))],
}
LINEAR: list[Callable[..., Tensor]] = [
    lambda h, W, b, m: F.linear(h, W, b),
    lambda h, W, b, m: h @ W.T + b,
    lambda h, W, b, m: b + torch.matmul(h, W.mT),
    lambda h, W, b, m: F.linear(h, W).add_(b),
    lambda h, W, b, m: torch.add(F.linear(h, W, b / 2), b, alpha=0.5),
    lambda h, W, b, m: torch.rsub(F.linear(h, W / 2), b, alpha=-2),
    lambda h, W, b, m: 1 - F.linear(h, -W, 1 - b),
    lambda h, W, b, m: torch.rsub(F.linear(h, -W / 2), 1, alpha=2) - (1 - b),
]


def explained(model: nn.Module, x: Tensor) -> list[Tensor]:
    with fastlrp.Explainer(model, PRESETS[0]).forward(x) as record:
        torch.testing.assert_close(record.output, model(x), rtol=1e-13, atol=1e-13)
        return [record.under(name).relevance([0, 1]) for name in PRESETS]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    """As sums with a constant they were 0.19 (bias, z+) to 0.61 (batch norm) away."""
    named, *spelt = CONVOLUTIONS[name]
    expected = explained(Layer(named, conv=True), numbers(2, 3, 7, 7))
    for form in spelt:
        for found, wanted in zip(explained(Layer(form, conv=True), numbers(2, 3, 7, 7)), expected, strict=True):
            assert relative_error(found, wanted) < 1e-12  # Measured: 6e-14.


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4, 3)])
def test_linear_layers(sizes: tuple[int, ...]) -> None:
    """As sums with a constant they were 0.53 (gamma) and 8 (alpha-beta) away."""
    named, *spelt = LINEAR
    expected = explained(Layer(named, conv=False), numbers(*sizes))
    for form in spelt:
        for found, wanted in zip(explained(Layer(form, conv=False), numbers(*sizes)), expected, strict=True):
            assert relative_error(found, wanted) < 1e-12  # Measured: 5e-15.


def test_weights_that_change_are_followed() -> None:
    model, x = Layer(frozen, conv=True), numbers(2, 3, 7, 7)
    changes = [(model.norm.weight.mul_, -2.0), (model.norm.bias.add_, 1.0)]
    new_weights_are_followed(fastlrp.Explainer(model, "gamma"), x, "gamma", changes)


def test_what_is_no_part_of_the_layer() -> None:
    """A position's own constant, a product alone, and a value that another operation reads."""

    positions = numbers(1, 5, 3, 3)

    def operations(form: Callable[..., Tensor]) -> list[str]:
        explainer = fastlrp.Explainer(Layer(form, conv=True), example_inputs=numbers(2, 3, 7, 7))
        return [node.operation for node in explainer.plan.graph.nodes]

    assert "add" in operations(lambda h, W, b, m: F.conv2d(h, W, b) + positions)
    assert "mul" in operations(lambda h, W, b, m: F.conv2d(h, W, b) * channels(b))
    assert "sub" in operations(lambda h, W, b, m: (lambda y: (y - channels(b)) * y)(F.conv2d(h, W)))
    assert "mul" in operations(lambda h, W, b, m: (lambda y: y * y + 1)(F.conv2d(h, W)))


@pytest.mark.parametrize("form", [lambda y: y + y, lambda y: y - y + 1, lambda y: y * y + 1], ids=["add", "sub", "mul"])
def test_both_operands_may_be_the_layers_output(form: Callable[[Tensor], Tensor]) -> None:
    """Such a sum was taken for one with a constant, and every explanation failed with an IndexError."""
    model, x = Layer(lambda h, W, b, m: form(F.conv2d(h, W, b)), conv=True), numbers(2, 3, 7, 7)
    for name in PRESETS:
        assert fastlrp.Explainer(model, name).verify(x, [0, 1]).ok


def test_its_ledger_is_whole() -> None:
    model, x = Layer(frozen, conv=True), numbers(2, 3, 7, 7)
    for name in ("epsilon_plus", "alpha_beta"):
        assert fastlrp.Explainer(model, name).verify(x, [0, 1]).ok
