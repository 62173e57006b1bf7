"""Caches forget: however many different questions are asked, a plan remembers the latest few."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites
from fastlrp.plan import plan
from fastlrp.plan.bounded import Bounded
from fastlrp.plan.products import reduced
from fastlrp.run import answers, prepared


def test_the_value_not_asked_for_in_the_longest_time_is_forgotten():
    made = []
    cache: Bounded[str, str] = Bounded(2)

    def ask(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or key.upper())

    assert [ask(k) for k in "abacab"] == list("ABACAB")
    assert made == ["a", "b", "c", "b"], "c took the place of b, a was asked for in between"
    assert len(cache) == 2
    assert list(cache) == ["A", "B"]
    assert "c" not in cache
    cache.clear()
    assert len(cache) == 0


def test_a_cache_holds_at_least_one():
    with pytest.raises(ValueError, match="at least one value, got most=0"):
        Bounded(0)


def test_what_could_not_be_made_is_not_kept():
    cache: Bounded[int, int] = Bounded(2)
    with pytest.raises(ZeroDivisionError):
        cache.get(0, lambda: 1 // 0)
    assert cache.get(0, lambda: 5) == 5


def test_threads_get_the_same_value():
    cache: Bounded[int, object] = Bounded(4)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: (i % 3, cache.get(i % 3, object)), range(300)))
    assert len(set(found)) == 3


def test_a_plan_remembers_the_latest_questions_only(monkeypatch):
    monkeypatch.setattr(plan, "KEPT_SCHEDULES", 3)
    monkeypatch.setattr(answers, "KEPT_SPECIALIZED", 3)
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(5, 5), nn.ReLU())]).double().eval()
    x = torch.randn(2, 5, dtype=torch.float64)
    explainer = fastlrp.Explainer(net, "epsilon_plus")
    made = explainer.forward(x)
    for layers in combinations([str(i) for i in range(8)], 2):
        expected = explainer(x, [0, 3], layers=list(layers))
        for _ in range(2):  # An old schedule's memory may be that of a new one: nothing may go by its address.
            found = made.relevance([0, 3], layers=list(layers))
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    for count in range(1, 9):
        made.relevance([0] * count)
        with explainer.forward(x, lrp_aware=False) as other:
            other.relevance([0] * count, layers=[str(count - 1)])
    caches = (made.plan._schedules, made.plan._completions, made.plan.necks, made._answers.specialized)
    assert [len(cache) for cache in caches] == [3, 3, 3, 3]


def test_weights_of_plans_that_are_gone_are_forgotten(monkeypatch):
    """A sweep makes weights of its own for each gamma, and bfloat16 of them."""
    monkeypatch.setattr(reduced, "LEAST_WORK", 1)
    monkeypatch.setattr(prepared, "_KEPT_OTHERS", 2)
    net = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(6, 6), nn.ReLU())]).eval()
    explainer, x = fastlrp.Explainer(net, precision="bf16"), torch.rand(1, 6)
    with explainer.forward(x, lrp_aware="sweep") as record:
        for n in range(1, 11):
            record.under(composites.gamma(n / 10)).relevance([0, 1])
    shared = explainer._plans.of(explainer._plans.inputs(x))._shared
    gc.collect()
    kept = [len(layer.layouts._narrow) for key, layer in shared.items() if key[0] == "layer"]
    assert max(kept) == 4, "its own weight twice, and that of each plan which is kept"
