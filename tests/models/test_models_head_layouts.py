"""Rules per head in other layouts than (batch, heads, positions, channels): the same as there, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites, rules

HEADS, GROUPS, WIDTH = 4, 2, 3
COMPOSITES = {"attnlrp": composites.attnlrp(), "cp_lrp": composites.cp_lrp()}


class Attention(nn.Module):
    """Four heads of queries, two of keys and values, in one of several spellings."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout, self.project, self.last = layout, nn.Linear(12, 24), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        if self.layout.startswith("windows"):
            return self.attend(x.unflatten(1, (2, -1)).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1, 2)
        return self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).split((12, 6, 6), -1)
        q, k, v = (t.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for t in (q, k, v))
        return self.last(getattr(self, self.layout.removeprefix("windows_"))(q, k, v))

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=1.0)
        return y.transpose(1, 2).flatten(2)

    def positions_first(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)))
        weights = torch.einsum("bshd,bthd->bhst", q, k).softmax(-1)
        return torch.einsum("bhst,bthd->bshd", weights, v).flatten(2)

    def groups(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q.unflatten(1, (GROUPS, 2)) @ k.unsqueeze(2).mT).softmax(-1)
        return (weights @ v.unsqueeze(2)).flatten(1, 2).transpose(1, 2).flatten(2)

    def groups_by_einsum(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bgrsd,bgtd->bgrst", q.unflatten(1, (GROUPS, 2)), k).softmax(-1)
        return torch.einsum("bgrst,bgtd->bsgrd", weights, v).flatten(2)

    def groups_fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.unsqueeze(2).expand(-1, -1, 2, -1, -1) for t in (k, v))
        y = F.scaled_dot_product_attention(q.unflatten(1, (GROUPS, 2)), k, v, scale=1.0)
        return y.flatten(1, 2).transpose(1, 2).flatten(2)

    def groups_in_rows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = (q.unflatten(1, (GROUPS, 2)).flatten(2, 3) @ k.mT).softmax(-1) @ v
        return y.unflatten(2, (2, -1)).flatten(1, 2).transpose(1, 2).flatten(2)

    def positions_last(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        return (v.mT @ (k @ q.mT).softmax(-2)).flatten(1, 2).mT

    def not_transposed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        return ((q @ k.mT).softmax(-1) @ v).reshape(len(q), q.shape[2], -1)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        scores = F.linear((q @ k.mT).permute(0, 2, 3, 1), self.last.weight[:HEADS, :HEADS]).permute(0, 3, 1, 2)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, layout: str) -> None:
        super().__init__()
        self.attention, self.classes = Attention(layout), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes((x + self.attention(x)).mean(1))


def model_and_input(layout: str, positions: int = 6) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model(layout).double().eval(), torch.randn(2, positions, 12, dtype=torch.float64)


def of_heads(model: Model, x: Tensor) -> list[Tensor]:
    """Relevance through heads 0, 2 and (1, 3) of both composites, from one capture."""
    with fastlrp.Explainer(model, "attnlrp").forward(x) as record:
        return [
            record.under(composite.through_heads({"attention": heads})).relevance([0, 2])
            for composite in COMPOSITES.values()
            for heads in (0, 2, (1, 3))
        ]


@pytest.mark.parametrize(
    "layout", ["positions_first", "groups", "groups_by_einsum", "groups_fused", "groups_in_rows", "positions_last"]
)
def test_heads_are_those_of_the_plain_layout(layout: str) -> None:
    # With as many positions as heads an axis of the one could be taken for one of the other.
    model, x = model_and_input(layout, positions=HEADS)
    plain, _ = model_and_input("plain")
    for found, expected in zip(of_heads(model, x), of_heads(plain, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_heads_by_position_first_add_up_and_are_counted() -> None:
    model, x = model_and_input("positions_first")
    attnlrp = COMPOSITES["attnlrp"]
    with fastlrp.Explainer(model, attnlrp).forward(x) as record:
        none, *singles = (
            record.under(attnlrp.through_heads({"attention": heads})).relevance(0) for heads in ((), *range(HEADS))
        )
        torch.testing.assert_close(sum(s - none for s in singles) + none, record.relevance(0), rtol=1e-10, atol=1e-13)
        with pytest.raises(ValueError, match="no head 4: there are 4"):
            record.under(attnlrp.through_heads({"attention": 4})).relevance(0)
    assert fastlrp.Explainer(model, attnlrp.through_heads({"attention": 1})).verify(x, 0).ok


@pytest.mark.parametrize("layout", ["plain", "fused"])
def test_windows_are_no_heads(layout: str) -> None:
    model, x = model_and_input(f"windows_{layout}")
    whole, _ = model_and_input(layout)
    some = COMPOSITES["attnlrp"].through_heads({"attention": 1})
    windows = [fastlrp.explain(whole, part, 0, some) for part in x.split(3, 1)]
    # Each window's mean is over half of the positions.
    torch.testing.assert_close(fastlrp.explain(model, x, 0, some), torch.cat(windows, 2) / 2, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("layout", ["not_transposed", "mixed"])
def test_what_cannot_be_known_is_refused(layout: str) -> None:
    model, x = model_and_input(layout)
    with pytest.raises(fastlrp.UnsupportedOperationError, match=r"matmul \(attention\).*which head cannot be told"):
        fastlrp.explain(model, x, 0, COMPOSITES["attnlrp"].through_heads({"attention": 0}))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.TransformerEncoderLayer(12, 4, 24, 0.0, batch_first=True)
        self.h = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.t(x).mean(1))


def test_a_path_without_attention_is_an_error() -> None:
    with fastlrp.Explainer(Encoder().eval(), "attnlrp").forward(torch.randn(2, 5, 12)) as record:
        for path in ("t", "t.linear1", "t.norm1", "h"):
            for composite in (
                composites.attnlrp().through_heads({path: 0}),
                composites.attnlrp().with_entries((path, rules.Heads({0: rules.Uniform()}))),
            ):
                with pytest.raises(ValueError, match=rf"'{path}'.*matches no attention.*'t\.self_attn'"):
                    record.under(composite)


def test_a_path_without_a_layer_that_its_rule_is_for_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    for path, rule in (("1", rules.Gamma(0.1)), ("0", rules.ValueOnly())):
        with pytest.raises(ValueError, match=rf"\('{path}', .*reaches no layer: what stands there is"):
            fastlrp.explain(model, torch.ones(1, 4), 0, composites.epsilon_plus().with_entries((path, rule)))
