"""Similarity, generated text and tokens by layers against the plain way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import groups
from fastlrp.aten._attention_up import hides_later
from fastlrp.run.up import way_up
from tests.transformers.oracle import Block


class Language(nn.Module):
    """Embedding, two causal blocks, logits at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 16)
        self.blocks = nn.ModuleList(Block(16, 4, 4, False, False, True) for _ in range(2))
        self.head = nn.Linear(16, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def language() -> tuple[fastlrp.Explainer, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (2, 6))
    return fastlrp.Explainer(Language().double().eval(), "attnlrp", example_inputs=ids), ids


def test_similarity_is_the_sum_over_features():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double().eval()
    a, b = (torch.rand(2, 1, 6, 6, dtype=torch.float64) for _ in range(2))
    explainer, parts = fastlrp.Explainer(model, "gamma"), groups.patches(3)
    expected = torch.zeros(2, 4, 4, dtype=torch.float64)
    for m in range(5):
        one, other = (explainer(x, m)[:, 0, 0].unflatten(1, (2, 3)).unflatten(3, (2, 3)).sum((2, 4)) for x in (a, b))
        expected += one.flatten(1).unsqueeze(2) * other.flatten(1).unsqueeze(1)
    for way in ("up", "down", "auto"):
        torch.testing.assert_close(fastlrp.similarity(explainer, a, b, parts, direction=way), expected)
    assert fastlrp.similarity(model, a, b, parts, groups.patches(2)).shape == (2, 4, 9)


def test_similarity_of_a_linear_map_is_the_dot_product():
    model = nn.Linear(3, 2, bias=False).double().eval()
    a, b = torch.randn(1, 3).double(), torch.randn(1, 3).double()
    found = fastlrp.similarity(model, a, b, groups.features(range(3)), composite="lrp0")
    torch.testing.assert_close(found[0], a.t() * (model.weight.t() @ model.weight) * b)


def test_similarity_errors():
    model, x = nn.Conv2d(1, 2, 3).double().eval(), torch.rand(2, 1, 6, 6).double()
    with pytest.raises(ValueError, match=r"needs features \(B, D\)"):
        fastlrp.similarity(model, x, x, groups.patches(3))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double().eval()
    with pytest.raises(ValueError, match="compared one by one"):
        fastlrp.similarity(flat, x, x[:1], groups.patches(3))


def test_generated_tokens(language):
    explainer, ids = language
    with explainer.forward(ids) as record:
        found = fastlrp.generated(record, 2)
        assert found.shape == (2, 4, 6)
        for n, position in enumerate(range(2, 6)):
            expected = record.relevance(fastlrp.each(ids[:, position]), at=position - 1)[:, 0]
            torch.testing.assert_close(found[:, n], expected, rtol=1e-9, atol=1e-12)
            assert (found[:, n, position:] == 0).all(), "no later token"
        with pytest.raises(ValueError, match="a prompt of 1 to S - 1"):
            fastlrp.generated(record, 6)


def test_all_positions_and_classes_at_once(language):
    explainer, ids = language
    with explainer.forward(ids) as record:
        up = record.relevance("all", at="all", groups="tokens", direction="up")
        assert up.shape == (2, 66, 6)
        torch.testing.assert_close(up, record.relevance("all", at="all"), rtol=1e-9, atol=1e-11)
        # Each sample its own position, and pairs of position and class.
        for targets, at in (("all", fastlrp.each([3, 5])), ([(0, 1), (4, 7), (4, 2)], "pairs"), ("top2", [1, -1])):
            up = record.relevance(targets, at=at, groups="tokens", direction="up")
            torch.testing.assert_close(up, record.relevance(targets, at=at), rtol=1e-9, atol=1e-11)


def test_tokens_by_layers(language):
    explainer, ids = language
    with explainer.forward(ids) as record:
        found = fastlrp.tokens_by_layers(record, [3, 5], ["table", "blocks.0", "blocks.1"], at=-1)
        assert found.shape == (2, 2, 3, 6)
        torch.testing.assert_close(found[:, :, 0], record.relevance([3, 5], at=-1))
        assert (found[:, :, 2, :-1] == 0).all(), "above the last block only the position itself"
    flat = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=r"outputs \(B, S, D\) of one length"):
        fastlrp.tokens_by_layers(fastlrp.Explainer(flat).forward(torch.rand(1, 3)), 1, ["1"])


def test_many_positions_in_pieces(language, monkeypatch):
    explainer, ids = language
    with explainer.forward(ids) as record:
        whole = record.relevance("all", at="all", groups="tokens", direction="up")
        monkeypatch.setattr(way_up, "TOP_ENTRIES", 300)
        torch.testing.assert_close(record.relevance("all", at="all", groups="tokens", direction="up"), whole)


def test_masks_that_hide_later_keys_are_causal_order():
    lower = torch.ones(5, 5, dtype=torch.bool).tril()
    weights = torch.zeros(1, 1, 5, 5).masked_fill(~lower, -torch.inf)
    assert hides_later(lower[None, None], 5, 5)
    assert hides_later(weights, 5, 5)
    assert not hides_later(lower.roll(1, 1), 5, 5), "the first query sees the second key"
    assert not hides_later(torch.zeros(5, 5), 5, 5)
    assert not hides_later(lower, 5, 6)
    assert not hides_later(None, 5, 5)
