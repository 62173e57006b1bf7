"""Positions after a target's own are left out under causal attention, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp.run import reach
from fastlrp.targets.one_hot import OneHot
from tests.transformers.oracle import Block


class Reader(nn.Module):
    """Ids to scores of each next word."""

    def __init__(self, causal: bool, eager: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.blocks = nn.ModuleList(Block(16, 4, 2 if eager else 4, eager, eager, causal) for _ in range(3))
        self.head = nn.Linear(16, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def both(monkeypatch: pytest.MonkeyPatch, causal: bool, eager: bool, block_bytes: int, **asked: Any) -> Any:
    """Relevance with cut registers and without, and of how many positions the cut ones were."""
    torch.manual_seed(1)
    model = Reader(causal, eager).double().eval()
    ids = torch.randint(0, 11, (2, 12))
    explainer = fastlrp.Explainer(model, "attnlrp")
    cut, found, plain = [], reach.Reach.cut, []

    def noted(self: reach.Reach, registers: list[Any]) -> Any:
        made = found(self, registers)
        cut.extend([self.end] if made is not None else [])
        return made

    with explainer.forward(ids) as record:
        record.plan.block_bytes = block_bytes
        monkeypatch.setattr(reach.Reach, "cut", noted)
        ours = record.relevance(asked.get("targets", "next"), at=asked.get("at"))
        monkeypatch.setattr(reach, "LEAST_SAVED", 2.0)
        before = len(cut)
        plain = record.relevance(asked.get("targets", "next"), at=asked.get("at"))
        assert len(cut) == before
    return ours, plain, cut


@pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])
def test_next_tokens_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    """Small blocks of targets: each is cut after the last one's own position."""
    ours, plain, cut = both(monkeypatch, True, eager, 2 * 12 * 64 * 8)
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-16)
    assert min(cut) <= 4
    assert len(set(cut)) > 2


def test_positions_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain, cut = both(monkeypatch, True, False, 1 << 24, targets=[3, 4, 5], at=[6, 0, 3])
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-16)
    assert set(cut) == {7}


def test_positions_of_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two samples the later position counts."""
    at = fastlrp.each(torch.tensor([2, 5]))
    ours, plain, cut = both(monkeypatch, True, False, 1 << 24, targets=[3, 4], at=at)
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-16)
    assert set(cut) == {6}


def test_a_model_that_looks_ahead_is_not_cut_below_its_top(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain, cut = both(monkeypatch, False, False, 1 << 24, targets=[3, 4], at=[1, 2])
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-16)
    assert cut == [3]  # The queries of the top block.
    assert ours[..., 3:].abs().min() > 0


def test_relevance_behind_the_targets_is_seen() -> None:
    """A register with one entry behind the last target stays whole, NaN as well."""
    start = OneHot(torch.tensor([[[1], [13]]]), torch.ones(1, 2, 1), (8, 4))
    found = reach.Reach.of(start)
    assert found is not None
    assert (found.ends, found.end, found.narrow(0, 1).end) == ([1, 4], 4, 1)
    register = torch.zeros(1, 2, 8, 3)
    register[:, :, :4] = 1
    (cut,) = found.cut([register]) or []
    assert torch.equal(cut.dense(), register)
    assert cut.rows.shape == (1, 2, 4, 3)
    for place, value in ((7, 1.0), (4, 1e-40), (5, float("nan"))):
        other = register.clone()
        other[0, 1, place, 2] = value
        assert found.cut([other]) is None
    assert found.cut([register, torch.zeros(1, 2, 9, 3)]) is None


def test_positions_in_any_order_are_cut_as_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are made of targets whose positions lie together; results stay in the order that was asked for."""
    places = [9, 1, 7, 0, 3, 8, 1, 5]
    ordered = sorted(places)
    ours, plain, cut = both(monkeypatch, True, False, 2 * 12 * 64 * 8, targets=[4, 2], at=places)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)
    monkeypatch.undo()
    sorted_ours, _, sorted_cut = both(monkeypatch, True, False, 2 * 12 * 64 * 8, targets=[4, 2], at=ordered)
    assert sorted(cut) == sorted(sorted_cut)
    assert min(cut) < 3
    first = {place: ordered.index(place) for place in places}
    of_place = ours.unflatten(1, (len(places), 2))
    expected = sorted_ours.unflatten(1, (len(places), 2))[:, [first[place] for place in places]]
    torch.testing.assert_close(of_place, expected, rtol=1e-12, atol=1e-14)
    assert bool((of_place[:, 3, :, 1:] == 0).all())
    assert bool((of_place[:, 0, :, 9] != 0).any())
