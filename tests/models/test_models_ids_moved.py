"""Ids that move before they are looked up, what is computed from ids otherwise, and ids that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import Explainer
from fastlrp.errors import CaptureError, UnsupportedOperationError
from tests.models.cases import Written
from tests.models.id_texts import LENGTH, TARGETS, VOCABULARY, WIDTH, ids, text
from tests.models.oracle import relative_error

# Ids that move before they are looked up: from the ids of the sample, which conditions read, and the ids that move


def shifted(x: Tensor, moving: Tensor) -> Tensor:
    """As T5 and BART make the decoder's input of labels."""
    result = moving.new_zeros(moving.shape)
    result[:, 1:] = moving[:, :-1].clone()
    result[:, 0] = 2
    return result.masked_fill(result == -100, 1)


MOVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "view": lambda x, moving: moving.view(-1, x.shape[-1]),
    "flip": lambda x, moving: moving.flip(1),
    "slice and cat": lambda x, moving: torch.cat([moving[:, 3:], moving[:, :3]], 1),
    "cat with a constant": lambda x, moving: torch.cat([moving.new_full((x.shape[0], 2), 4), moving[:, 2:]], 1),
    "where": lambda x, moving: torch.where(x > 5, moving, 3),
    "masked_fill": lambda x, moving: moving.masked_fill(x < 4, 0),
    "shift": shifted,
    "twice": lambda x, moving: torch.cat([moving[:, :4], moving[:, :3]], 1),
    "gather": lambda x, moving: moving.gather(1, x.argsort(1)),
    "index": lambda x, moving: moving[:, [6, 0, 1, 2, 3, 3, 3]],
    "to int32": lambda x, moving: moving.int(),
}


@pytest.mark.parametrize("name", MOVES)
def test_relevance_goes_back_through_moves_of_ids(name):
    """Each id gets the relevance of its copies; where those are shows when numbers move in the place of ids."""
    move, x = MOVES[name], ids()
    model = text("mlp", prepare=lambda m, x: move(x, x))
    explainer = Explainer(model)
    found = explainer(x, TARGETS)
    rows = fastlrp.explain(model.body, model.embed(move(x, x)).detach(), TARGETS).sum(-1)
    numbers = move(x, torch.arange(100, 100 + LENGTH).expand(3, LENGTH).contiguous())
    copies = numbers.unsqueeze(1) == torch.arange(100, 100 + LENGTH).view(1, LENGTH, 1)
    assert relative_error(found, torch.einsum("bks,bes->bke", rows, copies.double())) <= 1e-12
    checked = explainer.verify(x, TARGETS)
    assert checked.ok, str(checked)


# Conditions


def test_what_is_computed_from_ids_is_a_condition():
    """A mask of the ids weighs, and gets no relevance of its own: the same as with a fixed mask."""

    def pooled(m: Any, x: Tensor) -> Tensor:
        mask = (x != 0).to(m.embed.weight.dtype).unsqueeze(-1)
        return m.head((m.embed(x) * mask).sum(1) / mask.sum(1))

    torch.manual_seed(0)
    model = Written(pooled, embed=nn.Embedding(VOCABULARY, WIDTH), head=nn.Linear(WIDTH, 4)).double().eval()
    x = ids()
    x[0, 5:] = 0
    explainer = Explainer(model, "lrp0")
    found = explainer(x, TARGETS)
    assert (found[0, :, 5:] == 0).all(), "the mask cuts them"
    rows = model.embed(x).detach().requires_grad_()
    mask = (x != 0).double().unsqueeze(-1)
    score = model.head((rows * mask).sum(1) / mask.sum(1))
    for k, target in enumerate(TARGETS):
        (gradient,) = torch.autograd.grad(score[:, target].sum(), rows, retain_graph=True)
        assert relative_error(found[:, [k]], (gradient * rows).sum(-1).detach().unsqueeze(1)) <= 1e-9
    assert explainer.verify(x, TARGETS).ok


def test_positions_counted_from_a_mask_keep_their_share():
    """As in RoBERTa: the rows for positions get relevance, which stays there and stands in the ledger."""

    def forward(m: Any, x: Tensor) -> Tensor:
        mask = (x != 0).long()
        return m.head((m.embed(x) + m.position(mask.cumsum(1) * mask)).mean(1))

    torch.manual_seed(0)
    model = Written(
        forward, embed=nn.Embedding(VOCABULARY, WIDTH), position=nn.Embedding(LENGTH + 1, WIDTH),
        head=nn.Linear(WIDTH, 4),
    ).double().eval()  # fmt: skip
    explainer, x = Explainer(model, "lrp0"), ids()
    checked = explainer.verify(x, [1])
    assert checked.ok, str(checked)
    row = next(row for row in checked.rows if row.path == "position")
    assert row.sent == 0
    assert row.bias == pytest.approx(row.arrived)
    assert abs(row.arrived) > 1e-3
    assert abs(checked.kept["unexplained"]) <= 1e-9
    total = float(explainer(x, [1]).sum())
    bias = float(model.head.bias.detach()[1]) * len(x)
    assert total + row.arrived + bias == pytest.approx(checked.score)


def test_ids_of_types_and_positions_are_inputs_of_their_own():
    def forward(m: Any, input_ids: Tensor, token_type_ids: Tensor, mask: Any = None, scale: float = 1.0) -> Tensor:
        e = m.embed(input_ids) + m.kind(token_type_ids)
        e = e if mask is None else e * mask.unsqueeze(-1).to(e.dtype)
        return m.head(e.mean(1)) * scale

    torch.manual_seed(0)
    model = Written(
        forward, embed=nn.Embedding(VOCABULARY, WIDTH), kind=nn.Embedding(2, WIDTH), head=nn.Linear(WIDTH, 4)
    ).double().eval()  # fmt: skip
    x, kinds = ids(), torch.randint(0, 2, (3, LENGTH))
    given = {"input_ids": x, "token_type_ids": kinds, "mask": None, "scale": 2.0}
    explainer = Explainer(model, "lrp0")
    found = explainer(given, [1], layers=["embed", "kind"])
    assert relative_error(found["input"]["input.input_ids"], found["embed"].sum(-1)) <= 1e-12
    assert relative_error(found["input"]["input.token_type_ids"], found["kind"].sum(-1)) <= 1e-12
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[2, 3:] = False
    masked = explainer({**given, "mask": mask}, [1])
    assert set(masked) == {"input_ids", "token_type_ids", "mask"}
    assert masked["mask"] is None
    assert (masked["input_ids"][2, :, 3:] == 0).all()
    assert explainer.verify({**given, "mask": mask}, [1]).ok


# Bad input


@pytest.mark.parametrize(("entry", "words"), [(VOCABULARY, "id 11"), (-1, "id -1")])
def test_ids_out_of_range(entry, words):
    x = ids()
    x[1, 4] = entry
    explainer = Explainer(text())
    for _ in range(2):
        with pytest.raises(
            IndexError, match=rf"{words} \(sample 1, position 4\).*'embed', which has 11 rows: .* 0 to 10"
        ):
            explainer(x, 0)
        explainer(ids(), 0)


def test_integers_that_no_embedding_reads():
    model = Written(lambda m, x: m.a(x.double()), a=nn.Linear(LENGTH, 4)).double().eval()
    with pytest.raises(TypeError, match=r"x is torch.int64: .* convert with x.float\(\)"):
        fastlrp.explain(model, ids(), 0)
    both = Written(lambda m, x, y: m.a(y.double()), a=nn.Linear(LENGTH, 4)).double().eval()
    with pytest.raises(UnsupportedOperationError, match="no relevance reaches the model's input"):
        fastlrp.explain(both, (ids().double(), ids()), 0)


class Keys:
    """As a cache of keys and values that a language model gave."""


def test_input_that_does_not_fit():
    model = text()
    with pytest.raises(CaptureError, match="ids are integers"):
        fastlrp.explain(model, ids().double(), 0)
    both = Written(lambda m, a, b: m.e(a).sum(1) + m.e(b).sum(1), e=nn.Embedding(VOCABULARY, 4)).double().eval()
    with pytest.raises(ValueError, match=r"input 'b' has 1 samples, the first input has 3: use expand\(3, …\)"):
        fastlrp.explain(both, {"a": ids(), "b": ids(1)}, 0)
    with pytest.raises(TypeError, match="input 'b' is a tuple with tensors in it"):
        fastlrp.explain(both, {"a": ids(), "b": (ids(),)}, 0)
    with pytest.raises(TypeError, match=r"'past' is or has Keys: inputs are tensors, .* give the whole text"):
        fastlrp.explain(both, {"a": ids(), "past": Keys()}, 0)
    masked = Written(lambda m, x, mask: m.e(x).sum(-1) * mask, e=nn.Embedding(VOCABULARY, 4)).double().eval()
    with pytest.raises(CaptureError, match=r"fails on this input itself \(x: \(3, 7\) torch.int64, mask: \(3, 6\)"):
        fastlrp.explain(masked, {"x": ids(), "mask": torch.ones(3, 6).double()}, 0)
