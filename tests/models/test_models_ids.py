"""Ids in, relevance out: an id's relevance is that of the row of the embedding that it chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import Explainer, composites, rules
from fastlrp.errors import CaptureError, UnsupportedOperationError
from tests.models.cases import Written
from tests.models.oracle import relative_error

VOCABULARY, LENGTH, WIDTH = 11, 7, 6
TARGETS = [0, 2, 3]


def ids(samples: int = 3, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(1, VOCABULARY, (samples, LENGTH), generator=torch.Generator().manual_seed(3), dtype=dtype)


class Text(nn.Module):
    """Embedding, then a body of floats; the body alone is what other tests explain."""

    def __init__(self, body: nn.Module, prepare: Callable[[Any, Tensor], Tensor] = lambda m, x: x) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.body, self.prepare = body, prepare

    def forward(self, x: Tensor) -> Any:
        return self.body(self.embed(self.prepare(self, x)))


def convolutions() -> nn.Module:
    return Written(
        lambda m, e: m.head(F.max_pool1d(F.relu(m.conv(e.transpose(1, 2))), LENGTH).flatten(1)),
        conv=nn.Conv1d(WIDTH, 8, 3, padding=1), head=nn.Linear(8, 4),
    )  # fmt: skip


def positions() -> nn.Module:
    def forward(m: Any, e: Tensor) -> Tensor:
        e = e + m.position(torch.arange(e.shape[1], device=e.device))
        return m.head(F.gelu(m.up(m.norm(e))).mean(1))

    return Written(
        forward, position=nn.Embedding(LENGTH, WIDTH), norm=nn.LayerNorm(WIDTH), up=nn.Linear(WIDTH, 9),
        head=nn.Linear(9, 4),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * LENGTH, 4))


BODIES = {"convolutions": convolutions, "positions": positions, "mlp": mlp}


def with_norms(name: str = "epsilon_plus") -> composites.Composite:
    return composites.resolve(name).with_entries((nn.LayerNorm, rules.Pass()))


def text(body: str | nn.Module = "mlp", **options: Any) -> Text:
    torch.manual_seed(0)
    return Text(BODIES[body]() if isinstance(body, str) else body, **options).double().eval()


@pytest.mark.each_value
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("composite", [with_norms(), with_norms("epsilon"), with_norms("gamma")], ids=lambda c: c.name)
def test_ids_get_the_relevance_of_their_rows(body, composite):
    model, x = text(body), ids()
    explainer = Explainer(model, composite)
    found = explainer(x, TARGETS)
    rows = fastlrp.explain(model.body, model.embed(x).detach(), TARGETS, composite)
    assert found.shape == (3, 3, LENGTH)
    assert relative_error(found, rows.sum(-1)) <= 1e-12
    layers = explainer(x, TARGETS, layers=["embed"])
    assert relative_error(layers["embed"], rows) <= 1e-12
    assert torch.equal(layers["input"], found)
    checked = explainer.verify(x, TARGETS)
    assert checked.ok, str(checked)
    assert checked.relevance == pytest.approx(float(found.sum()), abs=1e-12)
    assert abs(checked.kept["unexplained"]) <= 1e-9
    assert checked.rows[-1].operation == "embedding"


@pytest.mark.parametrize("body", BODIES)
def test_the_gradient_composite_gives_row_times_gradient(body):
    model, x = text(body), ids()
    found = fastlrp.explain(model, x, TARGETS, "gradient", initial="one")
    rows = model.embed(x).detach().requires_grad_()
    score = model.body(rows)
    for k, target in enumerate(TARGETS):
        (gradient,) = torch.autograd.grad(score[:, target].sum(), rows, retain_graph=True)
        assert relative_error(found[:, [k]], (gradient * rows).sum(-1).detach().unsqueeze(1)) <= 1e-12


def test_fractions_by_hand():
    """Two ids, rows (1, 2) and (3, -1), weights (1, 1) each: the score is 5, relevance 3 and 2."""
    model = nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.Linear(4, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]]))
        model[2].weight.fill_(1)
    found = fastlrp.explain(model, torch.tensor([[1, 2], [2, 2], [0, 1]]), 0, "lrp0")
    torch.testing.assert_close(found[:, 0], torch.tensor([[3.0, 2.0], [2.0, 2.0], [0.0, 3.0]]).double())


def test_padding_gets_nothing_where_the_row_is_zero():
    model, x = text("mlp"), ids()
    x[1, 4:] = 0
    found = fastlrp.explain(model, x, TARGETS)
    assert (found[1, :, 4:] == 0).all()
    assert (found[1, :, :4] != 0).any()


def test_samples_targets_dtypes_and_sizes():
    model, x = text("positions"), ids(4)
    explainer = Explainer(model, with_norms())
    found = explainer(x, TARGETS)
    for i in range(4):
        assert relative_error(explainer(x[i : i + 1], TARGETS), found[i : i + 1]) <= 1e-12
    for k, target in enumerate(TARGETS):
        assert relative_error(explainer(x, target), found[:, k : k + 1]) <= 1e-12
    assert relative_error(explainer(x.int(), TARGETS), found) <= 1e-12
    assert explainer(x[:0], TARGETS).shape == (0, 3, LENGTH)
    assert relative_error(explainer(x[[2, 0, 3, 1]], TARGETS), found[[2, 0, 3, 1]]) <= 1e-12
    assert relative_error(explainer(x.T.contiguous().T, TARGETS), found) <= 1e-12


def test_records_streams_and_out():
    model, x = text("convolutions"), ids()
    explainer = Explainer(model)
    expected = explainer(x, "all")
    for aware in (True, False, "sweep"):
        with explainer.forward(x, lrp_aware=aware) as record:
            assert torch.equal(record.relevance("all"), expected)
            assert torch.equal(record.relevance("all", reduce="channels"), expected), "ids have no channels"
            parts = [part for _, part in record.stream("all", block=3)]
            assert relative_error(torch.cat(parts, 1), expected) <= 1e-12
            under = record.under("epsilon").relevance("all")
    assert relative_error(under, fastlrp.explain(model, x, "all", "epsilon")) <= 1e-12
    out = torch.empty_like(expected)
    assert explainer(x, "all", out=out) is out
    assert torch.equal(out, expected)
    bounded = Explainer(model, max_memory="1MB")(x, "all")
    assert relative_error(bounded, expected) <= 1e-12


def test_a_record_notices_changed_ids_and_weights():
    model, x = text(), ids()
    with Explainer(model).forward(x) as record:
        x[0, 0] = 5 if x[0, 0] != 5 else 6
        with pytest.raises(RuntimeError, match="input was changed"):
            record.relevance(0)
    explainer, x = Explainer(model), ids()
    before = explainer(x, 0)
    with torch.no_grad():
        model.embed.weight.mul_(2)
    assert relative_error(explainer(x, 0), before) > 0.1
    assert torch.equal(explainer(x, 0), Explainer(model)(x, 0))


def test_single_precision_and_bfloat16():
    model, x = text("mlp"), ids()
    expected = fastlrp.explain(model, x, TARGETS, "epsilon")
    found = fastlrp.explain(model.float(), x, TARGETS, "epsilon")
    assert found.dtype == torch.float32
    assert relative_error(found.double(), expected) <= 1e-5
    found = fastlrp.explain(model.bfloat16(), x, TARGETS, "epsilon")
    assert found.dtype == torch.bfloat16
    rows = fastlrp.explain(model.body, model.embed(x).detach(), TARGETS, "epsilon")
    assert relative_error(found.double(), rows.double().sum(-1)) <= 0.02


@pytest.mark.parametrize(
    "options", [{"mode": "mean"}, {"mode": "sum", "padding_idx": 0}, {"mode": "mean", "padding_idx": 0}]
)
def test_a_bag_is_an_embedding_and_a_pool(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(VOCABULARY, WIDTH, **options), nn.ReLU(), nn.Linear(WIDTH, 4)).double().eval()
    x = ids()
    x[1, 5:] = 0

    def written(m: Any, x: Tensor) -> Tensor:
        counted = (x != 0).double() if "padding_idx" in options else torch.ones_like(x).double()
        counted = counted / counted.sum(1, keepdim=True) if options["mode"] == "mean" else counted
        return m.rest((m.embed(x) * counted.unsqueeze(-1)).sum(1))

    same = Written(written, embed=nn.Embedding.from_pretrained(model[0].weight), rest=model[1:]).eval()
    for composite in ("epsilon_plus", "lrp0", "gradient"):
        explainer = Explainer(model, composite)
        expected = fastlrp.explain(same, x, TARGETS, composite)
        assert relative_error(explainer(x, TARGETS), expected) <= 1e-9
        checked = explainer.verify(x, TARGETS)
        assert checked.ok, str(checked)
    with pytest.raises(IndexError, match=r"id \d+ \(sample 0, position 0\).*'0', which has 11 rows"):
        explainer(x + 10, 0)


def test_bags_without_a_rule():
    model = nn.Sequential(nn.EmbeddingBag(VOCABULARY, WIDTH, mode="max"), nn.Linear(WIDTH, 4)).double().eval()
    with pytest.raises(
        UnsupportedOperationError, match=r"embedding_bag .*'max', for which there is no rule: use nn.Embedding"
    ):
        fastlrp.explain(model, ids(), 0)


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
