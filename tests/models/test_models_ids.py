"""Ids in, relevance out: an id's relevance is that of the row of the embedding that it chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import Explainer
from fastlrp.errors import UnsupportedOperationError
from tests.models.cases import Written
from tests.models.id_texts import BODIES, LENGTH, TARGETS, VOCABULARY, WIDTH, ids, text, with_norms
from tests.models.oracle import relative_error


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
