"""One question at one position computes one row of the scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp.run import asked_rows
from tests.transformers.oracle import Block


class Reader(nn.Module):
    def __init__(self, read_again: bool = False) -> None:
        super().__init__()
        self.words, self.block, self.head = nn.Embedding(11, 16), Block(16, 4, 4, False, False, True), nn.Linear(16, 11)
        self.read_again = read_again

    def forward(self, ids: Tensor) -> Any:
        scores = self.head(self.block(self.words(ids)))
        return (scores, scores.softmax(-1)) if self.read_again else scores


@pytest.mark.parametrize("composite", ["attnlrp", "epsilon", "gamma"])
@pytest.mark.parametrize(
    ("at", "rows"),
    [(-1, [6]), ([2, 0, 2], [0, 2]), (fastlrp.each([1, 3]), None), ("all", None), (torch.tensor([1]), None)],
)  # fmt: skip
def test_the_same_relevance(monkeypatch: pytest.MonkeyPatch, composite: str, at: Any, rows: list[int] | None) -> None:
    """Where coefficients of the head are made beforehand (gamma) all rows are computed."""
    torch.manual_seed(0)
    model, ids = Reader().double().eval(), torch.randint(0, 11, (2, 7))
    explainer = fastlrp.Explainer(model, composite, example_inputs=ids)
    whole = explainer(ids, "top2", at=at, layers=["input", "head", "output"])
    monkeypatch.setattr(asked_rows, "LEAST_SAVED", 0)
    found = explainer(ids, "top2", at=at, layers=["input", "head", "output"])
    for name, relevance in whole.items():
        torch.testing.assert_close(found[name], relevance, rtol=1e-12, atol=1e-15)
    schedule = explainer.plan.forward_schedule()
    cut = asked_rows.only_rows(explainer.plan, schedule, at)
    assert (cut is schedule) == (rows is None or composite == "gamma")


def test_functions_of_the_output_see_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_rows, "LEAST_SAVED", 0)
    torch.manual_seed(0)
    explainer, ids = fastlrp.Explainer(Reader().double().eval(), "epsilon"), torch.randint(0, 11, (2, 7))
    with explainer.forward(ids) as record:
        right = record.relevance(3, lambda scores: scores - scores.mean(1, keepdim=True), at=-1)
    found = explainer(ids, 3, lambda scores: scores - scores.mean(1, keepdim=True), at=-1)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-15)


def test_rows_that_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_rows, "LEAST_SAVED", 0)
    torch.manual_seed(0)
    model, ids = Reader().double().eval(), torch.randint(0, 11, (2, 7))
    with fastlrp.Explainer(model, "attnlrp")._forward(ids, True, at_once=True, at=[-2, 1]) as record:
        torch.testing.assert_close(record.scores[:, [1, 5]], model(ids)[:, [1, 5]], rtol=1e-12, atol=0)
        assert not record.scores[:, [0, 2, 3, 4, 6]].any()


def test_errors_stay_and_scores_that_are_read_again_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_rows, "LEAST_SAVED", 0)
    torch.manual_seed(0)
    model, ids = Reader().double().eval(), torch.randint(0, 11, (2, 7))
    with pytest.raises(IndexError, match="7"):
        fastlrp.explain(model, ids, [1], "attnlrp", at=7)
    explainer = fastlrp.Explainer(Reader(read_again=True).eval(), "attnlrp", output=0, example_inputs=ids)
    schedule = explainer.plan.forward_schedule()
    assert asked_rows.only_rows(explainer.plan, schedule, -1) is schedule
