"""One function in several spellings has the same relevance: activations, gates, a GRU, routers, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp.rules import Recurrent
from tests.models.oracle import relative_error

F64 = torch.float64
PRESETS = ("epsilon", "attnlrp", "cp_lrp")


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def of(model: nn.Module, x: Tensor, *composites: str | fastlrp.Composite) -> list[Tensor]:
    with fastlrp.Explainer(model.double().eval(), composites[0]).forward(x) as record:
        return [record.under(name).relevance([0, 1]) for name in composites]


def same(models: tuple[nn.Module, nn.Module], x: Tensor, *composites: str) -> None:
    """Measured: 4e-15, of what they differ by in rounding."""
    for found, expected in zip(*(of(model, x, *composites) for model in models), strict=True):
        assert relative_error(found, expected) < 1e-13


class Between(nn.Module):
    """A function of what one or two linear layers give, and another layer."""

    def __init__(self, function: Callable[..., Tensor], operands: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 8) for _ in range(operands))
        self.head, self.function = nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(*(layer(x) for layer in self.layers)))


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], list[Callable[[Tensor], Tensor]]]] = {
    "sigmoid": (torch.sigmoid, [
        lambda h: 1 / (1 + torch.exp(-h)), lambda h: (1 + torch.exp(-h)).reciprocal(),
        lambda h: 0.5 * (1 + torch.tanh(h / 2)),
        lambda h: h.exp() / (1 + h.exp()), lambda h: 1 - torch.sigmoid(-h),
    ]),
    "tanh": (torch.tanh, [
        lambda h: 2 * torch.sigmoid(2 * h) - 1, lambda h: ((2 * h).exp() - 1) / ((2 * h).exp() + 1),
        lambda h: (h.exp() - (-h).exp()) / (h.exp() + (-h).exp()),
    ]),
    "softplus": (F.softplus, [
        lambda h: torch.log(1 + h.exp()), lambda h: F.relu(h) + torch.log1p(torch.exp(-h.abs())),
        lambda h: -F.logsigmoid(-h),
    ]),
    "elu": (F.elu, [lambda h: torch.where(h > 0, h, h.exp() - 1), lambda h: F.relu(h) + (h.clamp(max=0).exp() - 1)]),
    "hardsigmoid": (F.hardsigmoid, [lambda h: F.relu6(h + 3) / 6, lambda h: (h / 6 + 0.5).clamp(0, 1)]),
    "hardswish": (F.hardswish, [
        lambda h: h * F.relu6(h + 3) / 6,
        lambda h: h * torch.minimum(torch.maximum(h + 3, h.new_tensor(0.0)), h.new_tensor(6.0)) / 6,
    ]),
    "relu": (F.relu, [lambda h: h * (torch.sign(h) + 1) / 2, lambda h: (h + h.abs()) / 2]),
    "hardtanh": (F.hardtanh, [
        lambda h: torch.minimum(torch.maximum(h, h.new_tensor(-1.0)), h.new_tensor(1.0)),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_is_spelt_out(name: str) -> None:
    """Operation by operation it was 0.25 (ReLU by its sign) to 5 (tanh by a sigmoid) away."""
    named, spelt = ACTIVATIONS[name]
    for function in spelt:
        same((Between(function), Between(named)), numbers(3, 6), *PRESETS)


def test_a_function_with_a_parameter_is_followed_where_it_stands() -> None:
    """A learned constant that makes it a sigmoid today makes it something else after training."""
    model = Between(lambda h: 1 / (bias + torch.exp(-h)))
    bias = model.bias = nn.Parameter(torch.ones(()))
    kinds = [
        n.operation for n in fastlrp.Explainer(model, "epsilon", example_inputs=numbers(3, 6).float()).plan.graph.nodes
    ]
    assert "sigmoid" not in kinds
    assert "exp" in kinds


GATES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[Callable[[Tensor, Tensor], Tensor]]]] = {
    "sigmoid": (lambda a, b: a * torch.sigmoid(b), [
        lambda a, b: a / (1 + torch.exp(-b)), lambda a, b: a * (0.5 * (torch.tanh(b / 2) + 1)),
        lambda a, b: a * (1 - torch.sigmoid(-b)),
        lambda a, b: a * torch.sigmoid(b).clamp(0, 1), lambda a, b: a * (torch.sigmoid(b) * 2) * 0.5,
        lambda a, b: a * (b.exp() / (1 + b.exp())), lambda a, b: a * F.logsigmoid(b).exp(),
        lambda a, b: a * torch.exp(-F.softplus(-b)),
        lambda a, b: a * torch.where(b > 0, 1 / (1 + torch.exp(-b)), b.exp() / (1 + b.exp())),
    ]),
    "divisor": (lambda a, b: a / (b.exp() + 1) ** 0.75, [
        lambda a, b: a * (b.exp() + 1) ** -0.75, lambda a, b: a * (1 / (b.exp() + 1) ** 0.75),
    ]),
    "scale with a constant": (lambda a, b: a * b.square().mean(-1, keepdim=True).rsqrt() * torch.arange(1, 9), [
        lambda a, b: a * (torch.arange(1, 9) * b.square().mean(-1, keepdim=True).rsqrt()),
    ]),
    "silu": (lambda a, b: a * F.silu(b), [
        lambda a, b: a * (b * torch.sigmoid(b)), lambda a, b: a * (b / (1 + torch.exp(-b))),
    ]),
    "two gates": (lambda a, b: a * torch.sigmoid(a) * torch.sigmoid(b), [
        lambda a, b: a * (torch.sigmoid(a) * torch.sigmoid(b)),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_a_gate_that_is_spelt_out(name: str) -> None:
    """As any other factor it took half: 0.35 to 1.9 away."""
    named, spelt = GATES[name]
    for function in spelt:
        same((Between(function, 2), Between(named, 2)), numbers(3, 6), *PRESETS)


class Recurring(nn.Module):
    """A GRU, as PyTorch has it or by the book."""

    def __init__(self, update: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.head, self.update = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3), update
        self.start = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        g, h = self.gru, self.start(x[:, 0])
        if self.update is None:
            return self.head(g(x, h.unsqueeze(0))[0][:, -1])
        for t in range(x.shape[1]):
            xr, xz, xn = F.linear(x[:, t], g.weight_ih_l0, g.bias_ih_l0).chunk(3, -1)
            hr, hz, hn = F.linear(h, g.weight_hh_l0, g.bias_hh_l0).chunk(3, -1)
            n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
            h = self.update(torch.sigmoid(xz + hz), n, h)
        return self.head(h)


UPDATES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "1 - z": lambda z, n, h: (1 - z) * n + z * h,
    "-z + 1": lambda z, n, h: (-z + 1) * n + h * z,
    "ones - z": lambda z, n, h: (torch.ones_like(z) - z) * n + z * h,
    "lerp": lambda z, n, h: torch.lerp(n, h, z),
}


@pytest.mark.parametrize("name", UPDATES)
def test_a_gru_by_the_book_is_that_of_pytorch(name: str) -> None:
    """``1 - z`` is a gate as ``z`` is: with half of the relevance for it the result was 15 times as large as this."""
    limit = fastlrp.Stabilizer.limit()
    own = fastlrp.composites.attnlrp().with_entries((nn.GRU, Recurrent(stabilizer=limit)))
    (found,), (expected,) = (of(Recurring(update), numbers(2, 4, 6), own) for update in (UPDATES[name], None))
    assert relative_error(found, expected) < 1e-13  # Measured: 4e-16.


class Experts(nn.Module):
    """The two best of four experts, weighed by a router."""

    def __init__(self, route: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.weight, self.head = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 5, 6)), nn.Linear(5, 3)
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(self.router(x))
        found = torch.einsum("bsd,eod->bseo", x, self.weight).relu()
        found = found.gather(2, chosen.unsqueeze(-1).expand(*chosen.shape, 5))
        return self.head((found * weights.unsqueeze(-1)).sum(2).mean(1))


def best(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.softmax(-1).topk(2, -1)


Route = Callable[[Tensor], tuple[Tensor, Tensor]]


def then(make: Callable[[Tensor], Tensor], choose: Route = best) -> Route:
    def route(z: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = choose(z)
        return make(weights), chosen

    return route


def gathered(z: Tensor) -> tuple[Tensor, Tensor]:
    chosen = z.topk(2, -1).indices
    return z.softmax(-1).gather(-1, chosen), chosen


def over_sum(w: Tensor) -> Tensor:
    return w / w.sum(-1, keepdim=True)


ROUTERS: dict[str, tuple[Route, list[Route]]] = {
    "1 in total": (then(over_sum), [
        then(lambda w: w.softmax(-1), lambda z: z.topk(2, -1)), then(lambda w: w / (w.sum(-1, keepdim=True) + 1e-20)),
        then(lambda w: w / w.sum(-1, keepdim=True).clamp(min=1e-9)), then(lambda w: F.normalize(w, p=1, dim=-1)),
        then(lambda w: w * (1 / w.sum(-1, keepdim=True))), then(lambda w: over_sum(w) * 1.0), then(over_sum, gathered),
        lambda z: (z.gather(-1, z.topk(2, -1).indices).softmax(-1), z.topk(2, -1).indices),
    ]),
    "as they are": (best, [gathered, then(lambda w: w * 1.0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_that_is_spelt_otherwise(name: str) -> None:
    """The router's weight takes half, its softmax the Taylor expansion: as a gate it took nothing, 0.92 to 1 away."""
    named, spelt = ROUTERS[name]
    for route in spelt:
        same((Experts(route), Experts(named)), numbers(2, 4, 6), *PRESETS)
