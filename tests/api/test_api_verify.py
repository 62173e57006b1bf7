"""``verify`` where a layer's relevance is exactly zero in the reference, and zero but for rounding here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastlrp import Explainer
from fastlrp.verify import compare
from fastlrp.verify.relative import relative
from tests.models.cases import Written

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def explainer_of(dtype: torch.dtype) -> tuple[Explainer, torch.Tensor]:
    """Of ``|h| + g - |h|``: what one branch brings to h the other takes away."""
    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 30), "g": nn.Linear(6, 30), "b": nn.Linear(30, 4)}

    def body(m, x):
        h = m.a(x)
        return m.b(h.abs() + m.g(x) + (-h.abs()))

    return Explainer(Written(body, **layers).to(dtype).eval(), "lrp0"), torch.randn(3, 6).to(dtype)


def disturb(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    """To what the fast path has at h comes ``amount`` times what the branches bring, of either sign."""
    follow = compare.Comparison.follow

    def disturbed(self, initial, arrive, schedule):
        found = {}

        def changed(value, relevance):
            found[value.name] = relevance
            if value.name == "linear":
                above = found["abs_1"]
                relevance = relevance + amount * above * torch.randn_like(above).sign()
            arrive(value, relevance)

        follow(self, initial, changed, schedule)

    monkeypatch.setattr(compare.Comparison, "follow", disturbed)


def error_at_h(report: compare.Report) -> float:
    return max(row.error for row in report.rows if row.operation == "abs")


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_but_for_rounding(dtype, monkeypatch):
    explainer, x = explainer_of(dtype)
    report = explainer.verify(x, "all")
    assert report.ok, report
    assert math.isfinite(report.end_to_end)
    disturb(monkeypatch, 0.5 * torch.finfo(dtype).eps)
    report = explainer.verify(x, "all")
    assert 0 < error_at_h(report) <= report.tolerance, report


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_zero(dtype, monkeypatch):
    explainer, x = explainer_of(dtype)
    disturb(monkeypatch, 30 * torch.finfo(dtype).eps)
    report = explainer.verify(x, "all")
    assert report.tolerance < error_at_h(report) < math.inf, report
    assert not report.ok


def test_relevance_from_nowhere_and_numbers_that_are_none():
    zero, one = torch.zeros(2, 1, 3), torch.ones(2, 1, 3)
    assert relative(zero, zero) == 0
    assert relative(one, zero) == math.inf
    assert relative(one, zero, torch.tensor([10.0, 0.0])) == math.inf
    assert relative(one, zero, torch.full((2,), 3**0.5)) == pytest.approx(1)
    assert relative(one, 2 * one, torch.full((2,), 1e-3)) == pytest.approx(0.5)
    for wrong in (math.nan, math.inf):
        assert math.isnan(relative(one * wrong, one))
        assert math.isnan(relative(one, one * wrong))


def test_a_score_that_the_stabilizer_swallowed_is_pointed_out():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1e-7, 1e-7]])
    small = Explainer(model.eval(), "epsilon").verify(torch.ones(1, 2), 0)
    # z = 2e-7, epsilon = 1e-6: z / (z + epsilon) = 1/6 of the score arrives.
    assert small.relevance == pytest.approx(small.score / 6, rel=1e-3)
    assert "more than half: the score is too near to their epsilon" in str(small)
    fine = Explainer(model, "lrp0").verify(torch.ones(1, 2), 0)
    assert "too near" not in str(fine)


def _added(scores, allowed, lowest):
    return scores + torch.zeros_like(scores).masked_fill(~allowed, lowest)


MASKED = {
    "added": _added,
    "filled": lambda scores, allowed, lowest: scores.masked_fill(~allowed, lowest),
    "chosen": lambda scores, allowed, lowest: torch.where(allowed, scores, lowest),
}


@pytest.mark.each_value
@pytest.mark.parametrize("mask", MASKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_the_lowest_number_masks_everywhere(dtype, mask):
    """Padding attends evenly to all. What scores are worth there is 1e38 times what comes to them, or infinite."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(6, 6) for name in "qkvo"}

    def body(m, x, kept):
        allowed = kept.unsqueeze(1) & kept.unsqueeze(2)
        scores = MASKED[mask](m.q(x) @ m.k(x).mT * 0.4, allowed, torch.finfo(x.dtype).min)
        return m.o(scores.softmax(-1) @ m.v(x)).sum(1)

    explainer = Explainer(Written(body, **layers).to(dtype).eval(), "attnlrp")
    kept = torch.tensor([[True, True, True, False], [True] * 4])
    report = explainer.verify((torch.randn(2, 4, 6, dtype=dtype), kept), [0, 1])
    assert report.ok, report
    assert abs(report.kept["bias"]) < 100
    assert abs(report.kept["unexplained"]) < (1e-5 if dtype == torch.float32 else 1e-9)
