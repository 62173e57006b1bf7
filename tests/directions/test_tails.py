"""Under causal order a block of groups is cut before its first position: the same numbers, of fewer positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import groups
from fastlrp.groups import Part, resolve
from fastlrp.kinds.places import Taken
from fastlrp.run.up import ascent, causal, way_up
from fastlrp.run.up.tails import Tail, Tails, moved


class Rotated(nn.Module):
    """A block as language models have them: RMS norm, grouped keys, rotated queries and keys, a gated layer."""

    def __init__(self, mask: bool) -> None:
        super().__init__()
        self.table, self.norm, self.last = nn.Embedding(11, 16), nn.RMSNorm(16), nn.LayerNorm(16)
        self.q, self.kv, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.gate, self.rise, self.fall = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head, self.mask = nn.Linear(16, 7), mask

    def turned(self, t: Tensor) -> Tensor:
        angle = torch.arange(t.shape[2], dtype=t.dtype).unsqueeze(1) * torch.tensor([1.0, 0.1], dtype=t.dtype).repeat(2)
        half = torch.cat([-t[..., 2:], t[..., :2]], -1)
        return t * angle.cos() + half * angle.sin()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        h = self.norm(x)
        q = self.turned(self.q(h).view(*h.shape[:2], 4, 4).transpose(1, 2))
        k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in self.kv(h).split(8, 2))
        mask = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).tril() if self.mask else None
        attention = nn.functional.scaled_dot_product_attention
        o = attention(q, self.turned(k), v, mask, is_causal=not self.mask, enable_gqa=True)
        x = x + self.out(o.transpose(1, 2).reshape(h.shape))
        return self.head(self.last(x + self.fall(nn.functional.silu(self.gate(x)) * self.rise(x))))


@pytest.mark.parametrize("mask", [False, True])
def test_the_same_as_whole(mask, monkeypatch):
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (2, 9))
    seen: list[str] = []
    cut_steps: set[str] = set()
    through = Tails.through

    def counted(self, step, arriving, state):
        found = through(self, step, arriving, state)
        if found is None and any(isinstance(t, Tail) for t in arriving):
            seen.append(step.name)
        elif found is not None:
            cut_steps.add(step.name)
        return found

    explainer = fastlrp.Explainer(Rotated(mask).double().eval(), "attnlrp", example_inputs=ids)
    with explainer.forward(ids) as record:
        monkeypatch.setattr(Tails, "through", counted)
        record.plan.block_bytes = 2 * 9 * 24 * 8 * 3  # Three tokens at once.
        labels = groups.labels(torch.tensor([8, 2, 4, 4, 0, 1, 3, 6, 5]))
        cut = [record.relevance("all", at="all", groups=parts, direction="up") for parts in ("tokens", labels)]
        layers = record.contributions("tokens", ["q", "norm", "fall", "last"])
        assert not seen, "every step goes on with what is cut"
        assert len(cut_steps) > 15
        monkeypatch.setattr(way_up, "Tails", lambda: None)
        assert way_up.Tails() is None
        monkeypatch.setattr(ascent, "transposed", lambda step, shapes: step.up)
        whole = [record.relevance("all", at="all", groups=parts, direction="up") for parts in ("tokens", labels)]
        every = record.contributions("tokens", ["q", "norm", "fall", "last"])
        for one, other in zip(cut, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
        for name in every:
            torch.testing.assert_close(layers[name], every[name], rtol=1e-12, atol=1e-13)
        down = record.relevance([0, 3], at=5, groups="tokens", direction="down")
    torch.testing.assert_close(cut[0].unflatten(1, (9, 7))[:, 5, [0, 3]], down, rtol=1e-9, atol=1e-12)


def test_moves():
    """Where the positions are after a move, by hand."""
    rows = torch.arange(2 * 3 * 4 * 6.0).reshape(1, 2, 3, 4, 6)  # Three of five positions.
    cases = [
        (lambda t: t.transpose(2, 3), 1, lambda t: t.transpose(2, 3)),
        (lambda t: t.reshape(*t.shape[:2], 5, 24), 0, lambda t: t.flatten(3)),
        (lambda t: t[..., 1:3], 0, lambda t: t[..., 1:3]),
        (lambda t: t.reshape(*t.shape[:2], 5, 2, 2, 6).movedim(2, 4), 2, None),
        (lambda t: t.reshape(*t.shape[:2], 20, 6), None, None),
        (lambda t: t[:, :, 1:], None, None),
        (lambda t: t.flip(4), None, None),
        (Taken(2, 1, 6, False).inverse((5, 4, 8)), 0, lambda t: nn.functional.pad(t, (1, 1))),
        (Taken(0, 1, 5, False).inverse((7, 4, 6)), None, None),
        (lambda t: t.repeat_interleave(2, 3), None, None),
    ]
    for up, at, by_hand in cases:
        found = moved(up, (5, 4, 6), 0)
        if by_hand is None:
            assert found is None
        else:
            assert found is not None
            assert found[0] == at
            assert torch.equal(found[1](rows, ()), by_hand(rows))


@pytest.mark.parametrize("mask", [False, True])
def test_how_many_groups_at_once_and_what_is_left(mask, monkeypatch):
    """32 tokens in blocks of 8: each block begins at its first token."""
    monkeypatch.setattr(causal, "FEWEST_ROWS", 256)
    monkeypatch.setattr(causal, "MOST_ROWS", 256)
    ids = torch.randint(0, 11, (1, 32))
    explainer = fastlrp.Explainer(Rotated(mask).eval(), "attnlrp", example_inputs=ids)
    with explainer.forward(ids) as record:
        path = way_up.WayUp(record.plan, record.asked("all", at=-1)).path
        assert {8, causal.UNLIMITED} == set(causal.at_once(path, 32))
        tokens = resolve("tokens", [Part("ids", (32,), False, 1, ids.device)])
        assert causal.share_left(path, tokens, record.state()) == (32 + 24 + 16 + 8) / 4 / 32
        before = record.estimate("all", at=-1, groups="tokens").up
        monkeypatch.setattr(causal, "MOST_ROWS", 1 << 20)
        monkeypatch.setattr(causal, "FEWEST_ROWS", 1 << 20)
        assert causal.share_left(path, tokens, record.state()) == 1
        assert record.estimate("all", at=-1, groups="tokens").up > before


def test_groups_in_the_order_of_their_first_positions():
    labels = torch.tensor([2, 0, -1, 1, 1, 0, 4])
    found = resolve(groups.labels(labels), [Part("ids", (7,), False, 1, labels.device)])
    assert found.firsts is not None
    assert found.firsts.tolist() == [1, 3, 0, 7, 6]
    ordered, order = found.in_order()
    assert order is not None
    assert order.tolist() == [2, 0, 1, 4, 3]
    assert ordered.maps[0].tolist() == [[0, 1, -1, 2, 2, 1, 3]]
    weights = torch.tensor([[0.0, 0, 1], [1, 1, 0]])
    found = resolve(weights, [Part("ids", (3,), False, 1, labels.device)])
    ordered, order = found.in_order()
    assert order is not None
    assert order.tolist() == [1, 0]
    assert torch.equal(ordered.maps[0], weights.flip(0))
    assert resolve(groups.patches(2), [Part("x", (3, 4, 4), True, 1, labels.device)]).in_order()[1] is None
