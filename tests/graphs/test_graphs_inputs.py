"""What a graph explainer takes, what it gives back, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import GraphExplainer
from tests.graphs import layers
from tests.graphs.layers import EDGES, NODES, Two


def given():
    return Two(layers.gin).double().eval(), torch.randn(NODES, 3, dtype=torch.float64)


class Atoms(nn.Module):
    """Nodes are kinds of atoms, edges kinds of bonds."""

    def __init__(self):
        super().__init__()
        self.atoms, self.bonds, self.head = nn.Embedding(7, 4), nn.Embedding(3, 4), nn.Linear(4, 2)

    def forward(self, z, edge_index, bond):
        h = self.atoms(z)
        messages = (h[edge_index[0]] + self.bonds(bond)).relu()
        h = h + torch.zeros_like(h).index_add_(0, edge_index[1], messages)
        return self.head(h.sum(0, keepdim=True))


def test_ids_have_the_relevance_of_their_rows():
    model = Atoms().double().eval()
    x = {"z": torch.tensor([1, 5, 1, 0, 6]), "edge_index": EDGES, "bond": torch.arange(9) % 3}
    found = GraphExplainer(model, "epsilon", ids=["z", "bond"])(x, [0, 1], at=0, layers=["atoms", "bonds"])
    torch.testing.assert_close(found["input"]["input.bond"], found["bonds"].sum(-1), rtol=1e-11, atol=1e-13)
    explainer = GraphExplainer(model, "epsilon", ids="z")
    relevance = explainer(x, [0, 1], at=0)
    assert relevance["edge_index"] is None
    assert relevance["bond"] is None
    assert relevance["z"].shape == (1, 2, NODES)
    torch.testing.assert_close(relevance["z"], found["atoms"].sum(-1), rtol=1e-11, atol=1e-13)
    assert explainer.verify(x, [0, 1], at=0).ok


def test_options_are_those_of_the_explainer():
    model, x = given()
    plain = GraphExplainer(model, "epsilon", precision="float32", backend="torch", labels=["no", "yes"])
    assert (plain.precision, plain.backend) == ("float32", "torch")
    torch.testing.assert_close(
        plain((x, EDGES), "yes", at=0)[0], GraphExplainer(model, "epsilon")((x, EDGES), 1, at=0)[0]
    )
    with pytest.raises(ValueError, match="precision"):
        GraphExplainer(model, "epsilon", precision="half")
    with pytest.raises(TypeError, match="precison"):
        GraphExplainer(model, "epsilon", precison="bf16")


def test_another_graph_is_another_plan_and_the_same_graph_is_not():
    model, x = given()
    explainer = GraphExplainer(model, "epsilon")
    first = explainer((x, EDGES), 0, at=0)[0]
    plan = explainer.plan
    explainer((x + 1, EDGES.clone()), 0, at=0)
    assert explainer.plan is plan
    changed = EDGES.clone()
    changed[0, 0] = 2
    other = explainer((x, changed), 0, at=0)[0]
    assert explainer.plan is not plan
    torch.testing.assert_close(other, GraphExplainer(model, "epsilon")((x, changed), 0, at=0)[0])
    assert not torch.allclose(first, other)


def test_a_record_keeps_the_graph_of_its_forward_pass():
    model, x = given()
    edges = EDGES.clone()
    with GraphExplainer(model, "epsilon").forward((x, edges)) as record:
        before = record.relevance(0, at=0)[0]
        edges.zero_()
        torch.testing.assert_close(record.relevance(0, at=0)[0], before, rtol=0, atol=0)


def test_trained_weights_are_seen():
    model, x = given()
    explainer = GraphExplainer(model, "epsilon")
    before = explainer((x, EDGES), 0, at=0)[0]
    with torch.no_grad():
        model.first.weight.mul_(-1)
    after = explainer((x, EDGES), 0, at=0)[0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, GraphExplainer(model, "epsilon")((x, EDGES), 0, at=0)[0])


def test_copies_and_pickles_keep_what_is_fixed():
    model = Atoms().double().eval()
    x = {"z": torch.tensor([1, 5, 1, 0, 6]), "edge_index": EDGES, "bond": torch.arange(9) % 3}
    explainer = GraphExplainer(model, "epsilon", ids="z")
    expected = explainer(x, 0, at=0)["z"]
    for other in (copy.deepcopy(explainer), pickle.loads(pickle.dumps(explainer))):
        torch.testing.assert_close(other(x, 0, at=0)["z"], expected, rtol=0, atol=0)


def test_other_rules_and_layers_of_one_forward_pass():
    model, x = given()
    with GraphExplainer(model, "epsilon").forward((x, EDGES)) as record:
        assert record.output.shape == (NODES, 2)
        assert record.scores.shape == (1, NODES, 2)
        assert record.batch == 1
        layer = record.relevance("top1", at=[0, 3], layers=["first"])["first"]
        assert layer.shape == (1, 2, NODES, 4)
        other = record.under("gamma").relevance(0, at=0)[0]
    torch.testing.assert_close(other, GraphExplainer(model, "gamma")((x, EDGES), 0, at=0)[0])


def test_what_does_not_fit_is_refused():
    model, x = given()
    explainer = GraphExplainer(model, "epsilon")
    with pytest.raises(ValueError, match="contains 1 NaN"):
        explainer((x.clone().index_fill_(0, torch.tensor(2), 0).index_put_((torch.tensor(1), torch.tensor(1)),
                  torch.tensor(torch.nan, dtype=x.dtype)), EDGES), 0)  # fmt: skip
    with pytest.raises(TypeError, match=r"input '0' is torch\.float32"):
        explainer((x.float(), EDGES), 0)
    with pytest.raises(ValueError, match="ids= names 'z', which is no input of integers: edge_index"):
        GraphExplainer(model, ids="z")((x, EDGES), 0)
    with pytest.raises(ValueError, match="fixed= names 'adjacency', which is no input: edge_index, x"):
        GraphExplainer(model, fixed="adjacency")((x, EDGES), 0)
    with pytest.raises(TypeError, match="all inputs are fixed"):
        GraphExplainer(Atoms().eval())({"z": torch.arange(5), "edge_index": EDGES, "bond": torch.arange(9) % 3}, 0)
    with pytest.raises(fastlrp.CaptureError, match="it fails on this input itself"):
        explainer((x[:, :2], EDGES), 0)
    with pytest.raises(IndexError, match="position 5 is out of range"):
        explainer((x, EDGES), 0, at=NODES)


def test_an_explainer_with_a_batch_axis_says_what_to_use():
    model, x = given()
    with pytest.raises(ValueError, match=r"GraphExplainer"):
        fastlrp.Explainer(model, "epsilon")((x, EDGES), 0)
