"""A softmax that a model spells out is the one that PyTorch has: the same relevance, whatever the form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp.capture.signs import proves
from tests.models.oracle import relative_error

F64 = torch.float64


def over_sum(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


def times_reciprocal(e: Tensor) -> Tensor:
    return e * (1 / e.sum(-1, keepdim=True))


SEEN = torch.ones(4, 5).tril(1)[:, :4]

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "quotient": lambda z: over_sum(z.exp()),
    "exponentials twice": lambda z: z.exp() / z.exp().sum(-1, keepdim=True),
    "without the largest": lambda z: over_sum((z - z.amax(-1, keepdim=True)).exp()),
    "without the largest, detached": lambda z: over_sum((z - z.detach().max(-1, keepdim=True)[0]).exp()),
    "sum without its axis": lambda z: z.exp() / z.exp().sum(-1).unsqueeze(-1),
    "logsumexp": lambda z: (z - z.logsumexp(-1, keepdim=True)).exp(),
    "logsumexp without its axis": lambda z: (z - z.logsumexp(-1)[..., None]).exp(),
    "log_softmax": lambda z: z.log_softmax(-1).exp(),
    "logarithm of the sum": lambda z: (z - z.exp().sum(-1, keepdim=True).log()).exp(),
    "times the reciprocal": lambda z: times_reciprocal(z.exp()),
    "times reciprocal()": lambda z: z.exp() * z.exp().sum(-1, keepdim=True).reciprocal(),
    "times a power": lambda z: z.exp() * z.exp().sum(-1, keepdim=True) ** -1,
    "without the largest, times": lambda z: times_reciprocal((z - z.amax(-1, keepdim=True)).exp()),
    "sum of at least": lambda z: z.exp() / z.exp().sum(-1, keepdim=True).clamp(min=1e-12),
    "the larger of sum and": lambda z: z.exp() / torch.maximum(z.exp().sum(-1, keepdim=True), z.new_tensor(1e-12)),
    "sum and a little": lambda z: z.exp() / (z.exp().sum(-1, keepdim=True) + 1e-20),
    "sum, copied": lambda z: z.exp() / z.exp().sum(-1, keepdim=True).expand_as(z),
    "sum, repeated": lambda z: z.exp() / z.exp().sum(-1, keepdim=True).repeat(1, 1, z.shape[-1]),
    "F.normalize": lambda z: F.normalize(z.exp(), p=1, dim=-1),
    "F.normalize without the largest": lambda z: F.normalize((z - z.detach().amax(-1, keepdim=True)).exp(), 1, -1),
}
AGAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "by its sum": lambda z: over_sum(z.softmax(-1)),
    "by its sum, at least": lambda z: z.softmax(-1) / z.softmax(-1).sum(-1, keepdim=True).clamp(min=1e-9),
    "F.normalize": lambda z: F.normalize(z.softmax(-1), p=1, dim=-1),
    "times the reciprocal": lambda z: times_reciprocal(z.softmax(-1)),
    "NaN to 0": lambda z: z.softmax(-1).nan_to_num(0.0),
    "bounded": lambda z: z.softmax(-1).clamp(0, 1),
    "times 1": lambda z: z.softmax(-1) * 1.0,
}
"""A softmax and something more that changes nothing."""
MASKED: dict[str, Callable[[Tensor], Tensor]] = {
    "times 0": lambda z: over_sum(z.softmax(-1) * SEEN.to(z.dtype)),
    "filled with 0": lambda z: over_sum(z.softmax(-1).masked_fill(SEEN == 0, 0)),
    "tril": lambda z: over_sum(z.softmax(-1).tril(1)),
    "F.normalize": lambda z: F.normalize(z.softmax(-1).tril(1), p=1, dim=-1),
    "exponentials times 0": lambda z: over_sum(z.exp() * SEEN.to(z.dtype)),
    "exponentials filled": lambda z: over_sum((z - z.amax(-1, keepdim=True)).exp().masked_fill(SEEN == 0, 0)),
    "exponentials, and a little": lambda z: (lambda e: e / (e.sum(-1, keepdim=True) + 1e-20))(z.exp().tril(1)),
    "a mask of sizes": lambda z: over_sum(z.exp() * torch.ones_like(z).tril(1)),
}
"""A softmax in which entries are masked out afterwards, and the others made 1 in total again."""
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "detached sum": lambda z: z.exp() / z.exp().sum(-1, keepdim=True).detach(),
    "detached logsumexp": lambda z: (z - z.logsumexp(-1, keepdim=True).detach()).exp(),
    "two axes": lambda z: z.exp() / z.exp().sum((1, 2), keepdim=True),
    "sum of another": lambda z: z.exp() / (2 * z).exp().sum(-1, keepdim=True),
    "sums beside rows": lambda z: z.exp() / z.exp().sum(-1).unsqueeze(1),
    "a part of the sum": lambda z: z.exp() / z[..., 1:].exp().sum(-1, keepdim=True),
    "rows beside their sums": lambda z: z.exp() / z.exp().sum(-1, keepdim=True).mT,
}
"""What looks like one and is none."""


class Attends(nn.Module):
    """One head of attention, four positions."""

    def __init__(self, weigh: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)
        self.weigh = weigh
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weigh(self.q(x) @ self.k(x).mT)
        return self.out((weights @ self.v(x)).mean(1))


class Gates(Attends):
    """Positions pooled by weights of their own, in the place of attention."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.v(x) * self.weigh(self.q(x))).sum(1))


def entries() -> Tensor:
    return torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=F64)


def of(model: nn.Module, *composites: str) -> list[Tensor]:
    with fastlrp.Explainer(model, composites[0]).forward(entries()) as record:
        return [record.under(name).relevance([0, 1]) for name in composites]


PRESETS = ("attnlrp", "cp_lrp", "epsilon_plus")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("make", [Attends, Gates])
def test_relevance_is_that_of_softmax(make: type[Attends], name: str) -> None:
    """Measured: 4e-16. Operation by operation it was 0.6 to 4.9 away."""
    pairs = zip(of(make(FORMS[name]), *PRESETS), of(make(lambda z: z.softmax(-1)), *PRESETS), strict=True)
    for found, expected in pairs:
        assert relative_error(found, expected) < 1e-14


@pytest.mark.parametrize("name", [*FORMS, *OTHERS])
def test_gradients_are_those_of_autograd(name: str) -> None:
    model, x = Attends({**FORMS, **OTHERS}[name]), entries().requires_grad_()
    expected = torch.stack([torch.autograd.grad(s, x, retain_graph=True)[0] for s in model(x)[:, :2].sum(0)], 1)
    explainer = fastlrp.Explainer(model, "gradient")
    assert relative_error(explainer(x.detach(), [0, 1], initial="one"), expected) < 1e-13
    assert any(n.operation == "softmax" for n in explainer.plan.graph.nodes) == (name in FORMS)


@pytest.mark.parametrize("name", AGAIN)
@pytest.mark.parametrize("make", [Attends, Gates])
def test_what_changes_nothing_changes_no_relevance(make: type[Attends], name: str) -> None:
    """Measured: 5e-16. Passing through it as through an activation was 1.4 to 16 away."""
    pairs = zip(of(make(AGAIN[name]), *PRESETS), of(make(lambda z: z.softmax(-1)), *PRESETS), strict=True)
    for found, expected in pairs:
        assert relative_error(found, expected) < 1e-14


@pytest.mark.parametrize("name", MASKED)
def test_masking_after_the_softmax_is_masking_before(name: str) -> None:
    """Measured: 4e-16. A sum that takes nothing was 0.11 away."""
    before = Attends(lambda z: z.masked_fill(SEEN == 0, -torch.inf).softmax(-1))
    for found, expected in zip(of(Attends(MASKED[name]), *PRESETS), of(before, *PRESETS), strict=True):
        assert relative_error(found, expected) < 1e-14


def test_a_constant_beside_the_sum_is_a_score_without_a_key() -> None:
    """Measured: 4e-16."""
    beside = Attends(lambda z: z.exp() / (z.exp().sum(-1, keepdim=True) + 1))
    sink = Attends(lambda z: torch.cat([z, torch.zeros_like(z[..., :1])], -1).softmax(-1)[..., :-1])
    for found, expected in zip(of(beside, "attnlrp", "cp_lrp"), of(sink, "attnlrp", "cp_lrp"), strict=True):
        assert relative_error(found, expected) < 1e-14
    explainer = fastlrp.Explainer(beside, "attnlrp")
    assert explainer.verify(entries(), [0, 1]).ok
    assert relative_error(explainer(5 * entries(), [0]), fastlrp.Explainer(sink, "attnlrp")(5 * entries(), [0])) < 1e-13


def test_its_results_are_known_to_be_above_zero() -> None:
    graph = fastlrp.Explainer(Attends(FORMS["quotient"]), example_inputs=entries()).plan.graph
    softmax = next(n for n in graph.nodes if n.operation == "softmax")
    assert proves(softmax, set())


def test_exponentials_that_overflow_are_told() -> None:
    """Where the model gives NaN its explanation must not look as if it gave numbers."""
    model, x = Attends(FORMS["quotient"]), entries()
    fastlrp.Explainer(model)(x, [0])
    torch.testing.assert_close(fastlrp.Explainer(model).forward(x).output, model(x), rtol=0, atol=0)
    assert model(x * 100).isnan().all()
    with pytest.raises(fastlrp.NotFiniteError, match="NaN"):
        fastlrp.Explainer(model)(x * 100, [0])
    steady = Attends(FORMS["without the largest"])
    torch.testing.assert_close(
        fastlrp.Explainer(steady).forward(x * 100).output, steady(x * 100), rtol=1e-13, atol=1e-13
    )
