"""Soft activations, normalisations and gates, and the documented rule of each: against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites, rules
from tests.models.cases import Written, chain, check_case, constant, conv, linear, prepared, vector, volume

ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(-0.5, 2), nn.Sigmoid(), nn.Tanh(),
    nn.SiLU(), nn.SiLU(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.Hardswish(inplace=True),
    nn.Hardsigmoid(), nn.ELU(0.7), nn.SELU(), nn.CELU(), nn.LeakyReLU(0.1), nn.PReLU(), nn.PReLU(16), nn.RReLU(),
    nn.Softplus(), nn.Mish(), nn.Softsign(), nn.LogSigmoid(), nn.Softshrink(), nn.Hardshrink(),
    nn.Threshold(0.1, 0.0), nn.Softmax(1), nn.LogSoftmax(-1),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_pass_relevance(activation: nn.Module) -> None:
    check_case(nn.Sequential(nn.Linear(10, 16), activation, nn.Linear(16, 4)), vector())


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "clamp": lambda x: x.clamp(-0.5, 1),
    "clamp_in_place": lambda x: x.clamp(min=0).clamp_(max=1),
    "softmax": lambda x: x.softmax(-1),
    "exp": torch.exp,
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_functions_pass_relevance(name: str) -> None:
    check_case(Written(lambda m, x: m.b(FUNCTIONS[name](m.a(x))), a=nn.Linear(10, 16), b=linear(16)), vector())


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(16), nn.LayerNorm(16, elementwise_affine=False), nn.RMSNorm(16), nn.GroupNorm(4, 16)], ids=str
)
def test_normalisations_of_vectors_pass_relevance(norm: nn.Module) -> None:
    check_case(nn.Sequential(nn.Linear(10, 16), norm, nn.GELU(), nn.Linear(16, 4)), vector())


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm([4, 7, 8])], ids=str)
def test_normalisations_of_images_pass_relevance(norm: nn.Module) -> None:
    check_case(chain(conv(3, 4), norm, nn.SiLU(), conv(4, 2), nn.Tanh()), volume(2))


def test_layer_norm_over_channels() -> None:
    """As ConvNeXt has it: permuted, normalised, permuted back, and scaled by a parameter."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.b(F.gelu(m.norm(m.a(x).permute(0, 2, 3, 1))))
        return m.c((y.permute(0, 3, 1, 2) * m.scale + x).flatten(1))

    model = Written(
        body, a=conv(3, 6, groups=3), norm=nn.LayerNorm(6), b=nn.Linear(6, 3), c=linear(168), scale=constant(3, 1, 1),
    )  # fmt: skip
    check_case(model, volume(2))


class SqueezeExcitation(nn.Module):
    """``y * gate(B relu(A mean(y)))``."""

    def __init__(self, gate: nn.Module, gate_first: bool = False) -> None:
        super().__init__()
        self.conv, self.a, self.b, self.last = conv(3, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), linear(8)
        self.gate, self.gate_first = gate, gate_first

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        gate = self.gate(self.b(F.relu(self.a(F.adaptive_avg_pool2d(y, 1)))))
        return self.last((gate * y if self.gate_first else y * gate).mean((2, 3)))


@pytest.mark.each_value
@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.Hardsigmoid(), nn.Softmax(1), nn.Identity()], ids=str)
@pytest.mark.parametrize("gate_first", [False, True])
def test_squeeze_and_excitation(gate: nn.Module, gate_first: bool) -> None:
    """The signal takes all, the gate nothing; what is broadcast is a gate too."""
    x = volume(2)
    check_case(SqueezeExcitation(gate, gate_first), x)
    model = prepared(SqueezeExcitation(gate, gate_first), x)
    assert "b" not in fastlrp.explain(model, x.double(), [0], layers="all")


PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "gate": lambda m, x: torch.sigmoid(m.a(x)) * m.b(x),
    "swish_written_out": lambda m, x: (lambda y: y * torch.sigmoid(y))(m.a(x)),
    "two_signals": lambda m, x: m.a(x) * m.b(x),
    "two_gates": lambda m, x: torch.sigmoid(m.a(x)) * torch.softmax(m.b(x), 1),
    "gate_of_a_sum": lambda m, x: (1 + torch.tanh(m.a(x))) * m.b(x) * 0.5,
}


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_products(name: str) -> None:
    body = PRODUCTS[name]
    members = {"a": nn.Linear(10, 16), "b": nn.Linear(10, 16), "last": linear(16)}
    check_case(Written(lambda m, x: m.last(body(m, x)), **members), vector())


def test_two_signals_take_half_each() -> None:
    model = Written(lambda m, x: m.last(m.a(x) * m.b(x)), a=nn.Linear(10, 16), b=nn.Linear(10, 16), last=linear(16))
    found = fastlrp.explain(model.eval(), vector(), [1], layers=["a", "b"])
    torch.testing.assert_close(found["a"], found["b"])


def test_pooling_by_softmax() -> None:
    """Attention over positions with one query: the weights are gates, the values the signal."""
    model = Written(
        lambda m, x: m.last((F.softmax(m.query(x), 1) * F.relu(m.value(x))).sum(1)),
        query=nn.Linear(12, 1), value=nn.Linear(12, 8), last=linear(8),
    )  # fmt: skip
    check_case(model, volume(1))


@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.GELU(), nn.PReLU(), nn.Softmax(1), nn.Hardswish(), nn.Tanh()], ids=str
)
def test_gradient_composite_is_the_gradient(activation: nn.Module) -> None:
    x = vector()
    layers = nn.Linear(10, 16), activation, nn.LayerNorm(16), nn.Linear(16, 4)
    model = prepared(
        Written(lambda m, x: (lambda y: y * torch.sigmoid(y) / (1 + y * y))(m.net(x)), net=nn.Sequential(*layers)), x
    )
    _is_gradient(model, x.double())


def test_gradient_composite_is_the_gradient_of_an_image_model() -> None:
    class Net(SqueezeExcitation):
        def forward(self, x: Tensor) -> Tensor:
            y = F.max_pool2d(F.silu(self.conv(x)), 3, 2, 1)
            y = F.interpolate(F.avg_pool2d(y, 2, ceil_mode=True), scale_factor=2, mode="bilinear") - 2 * y[:, :, :4, :4]
            gate = torch.sigmoid(self.b(F.relu(self.a(F.adaptive_avg_pool2d(y, 1)))))
            return self.last((gate * torch.cat([y[:, :3], y[:, 3:] ** 2], 1)).mean((2, 3)))

    x = volume(2)
    _is_gradient(prepared(Net(nn.Sigmoid()), x), x.double())


def _is_gradient(model: nn.Module, x: Tensor) -> None:
    point = x.clone().requires_grad_(True)
    output = model(point)
    expected = [torch.autograd.grad(output[:, t].sum(), point, retain_graph=True)[0] for t in range(4)]
    torch.testing.assert_close(fastlrp.explain(model, x, "all", "gradient", initial="one"), torch.stack(expected, 1))


def test_a_rule_of_ones_own_at_an_activation() -> None:
    """A composite's entry replaces the documented rule."""

    class Halved(rules.Custom):
        def propagate(self, forward: Any, inputs: Any, output: Tensor, relevance: Tensor) -> tuple[Tensor]:
            return (relevance / 2,)

    model = nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = vector()
    plain = fastlrp.explain(model, x, [1, 2])
    for matcher in (nn.GELU, "1", composites.kind("activation")):
        halved = fastlrp.explain(model, x, [1, 2], composites.epsilon_plus().with_entries((matcher, Halved())))
        torch.testing.assert_close(halved, plain / 2)
