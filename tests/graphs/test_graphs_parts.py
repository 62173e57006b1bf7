"""Edges and walks: they add up to nodes, and single ones equal a computation with everything else cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import GraphExplainer
from tests.graphs import layers
from tests.graphs.layers import EDGES, NODES, Two


class Layer(nn.Module):
    """One layer of message passing as a module, so that walks can name it."""

    def __init__(self, aggregate, inner, outer):
        super().__init__()
        self.linear, self.aggregate = nn.Linear(inner, outer), aggregate

    def forward(self, x, edge_index):
        return self.aggregate(self.linear(x), edge_index)


class Network(nn.Module):
    def __init__(self, aggregate):
        super().__init__()
        self.first, self.second, self.head = Layer(aggregate, 3, 4), Layer(aggregate, 4, 4), nn.Linear(4, 2)

    def forward(self, x, edge_index):
        x = nn.functional.leaky_relu(self.first(x, edge_index), 0.5)
        x = nn.functional.leaky_relu(self.second(x, edge_index), 0.5)
        return self.head(x.mean(0, keepdim=True))


def given(form):
    model = Network(form).double().eval()
    return model, torch.randn(NODES, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "composite"),
    [
        (layers.gcn, "gamma"),
        pytest.param(layers.gcn, "attnlrp", marks=pytest.mark.slow),
        pytest.param(layers.attention, "gamma", marks=pytest.mark.slow),
        pytest.param(layers.attention, "attnlrp", marks=pytest.mark.slow),
    ],
)
def test_all_walks_add_up_to_the_relevance_of_nodes(form, composite):
    model, x = given(form)
    explainer = GraphExplainer(model, composite)
    every = torch.cartesian_prod(*[torch.arange(NODES)] * 3)
    found = fastlrp.walk_relevance(explainer, (x, EDGES), [0, 1], every, ["first", "second"], at=0)
    nodes = explainer((x, EDGES), [0, 1], at=0)[0].sum(-1)
    sums = torch.zeros_like(nodes).index_add(2, every[:, 0], found)
    assert nodes.norm() > 1e-3
    torch.testing.assert_close(sums, nodes, rtol=1e-10, atol=1e-14)
    along = fastlrp.all_walks(EDGES, 2)  # A query is a self-loop, too.
    some = fastlrp.walk_relevance(explainer, (x, EDGES), [0, 1], along, ["first", "second"], at=0)
    torch.testing.assert_close(some.sum(2), found.sum(2), rtol=1e-11, atol=1e-13)
    assert len(along) < len(every)


def test_single_walks_equal_autograd_with_all_other_nodes_cut():
    """In the limit of epsilon to 0 relevance is gradient times input: here with each layer's other nodes masked."""
    model, x = given(layers.gin)
    walks = [(0, 1, 2), (3, 4, 3), (2, 2, 1), (0, 4, 4)]
    found = fastlrp.walk_relevance(
        GraphExplainer(model, "attnlrp"), (x, EDGES), 1, walks, ["first", "second"], at=0
    )[0, 0]  # fmt: skip
    for walk, relevance in zip(walks, found, strict=True):
        handles = []
        for layer, node in ((model.first, walk[1]), (model.second, walk[2])):

            def cut(module, given, output, node=node):
                mask = torch.zeros(NODES, 1, dtype=output.dtype)
                mask[node] = 1
                return output * mask + (output * (1 - mask)).detach()

            handles.append(layer.register_forward_hook(cut))
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(point, EDGES)[0, 1], point)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(relevance, (gradient * x)[walk[0]].sum(), rtol=1e-10, atol=1e-14)
    assert found[3] == 0  # There is no edge from 0 to 4.
    assert (found[:3] != 0).all()


def test_walks_of_a_dense_adjacency_matrix_and_several_samples():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
            self.register_buffer("adjacency", torch.rand(NODES, NODES))

        def forward(self, x):
            return (self.adjacency @ self.second((self.adjacency @ self.first(x)).relu())).sum(1)

    model = Dense().double().eval()
    explainer = fastlrp.Explainer(model, "epsilon")
    x = torch.randn(2, NODES, 3, dtype=torch.float64)
    every = fastlrp.all_walks(torch.zeros(2, 0, dtype=torch.long), 0, NODES)
    assert every.tolist() == [[n] for n in range(NODES)]
    every = torch.cartesian_prod(torch.arange(NODES), torch.arange(NODES))
    found = fastlrp.walk_relevance(explainer, x, [0, 1], every, ["first"])
    nodes = torch.zeros(2, 2, NODES, dtype=x.dtype).index_add(2, every[:, 0], found)
    torch.testing.assert_close(nodes, explainer(x, [0, 1]).sum(-1), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("walks", "names", "error", "match"),
    [
        ([(0, 1)], ["first", "second"], ValueError, "sequences of 3 nodes"),
        ([(0, 1, 9)], ["first", "second"], IndexError, "nodes from 0 to 4"),
        ([(0, 1, 2)], ["first", "third"], KeyError, "no module 'third'"),
        ([(0, 1, 2)], ["first", "head"], ValueError, "modules whose outputs are"),
    ],
)
def test_walks_that_do_not_fit(walks, names, error, match):
    model, x = given(layers.gin)
    with pytest.raises(error, match=match):
        fastlrp.walk_relevance(GraphExplainer(model, "gamma"), (x, EDGES), 0, walks, names, at=0)


def test_edges_add_up_to_what_arrives_at_the_nodes():
    """A sum over neighbours shares all that arrives: of the layer's output, less the bias, and without epsilon."""
    model, x = given(layers.gcn)
    with GraphExplainer(model, "attnlrp").forward((x, EDGES)) as record:
        edges = fastlrp.edge_relevance(record, [0, 1], at=0)
        layer = record.relevance([0, 1], at=0, layers=["first", "second"])
    assert list(edges) == ["first", "second"]
    for path, found in edges.items():
        assert found.relevance.shape == (1, 2, len(found.source))
        arriving = torch.zeros(1, 2, NODES, dtype=x.dtype).index_add(2, found.target, found.relevance)
        torch.testing.assert_close(arriving, layer[path].sum(-1), rtol=1e-11, atol=1e-14)
    other = EDGES[:, EDGES[0] != EDGES[1]]  # The layer takes self-loops out and puts one at each node.
    assert edges["first"].source.tolist() == [*other[0].tolist(), *range(NODES)]
    assert edges["first"].target.tolist() == [*other[1].tolist(), *range(NODES)]


def test_edges_of_attention_are_those_of_its_values():
    model, x = given(layers.attention)
    with GraphExplainer(model, "cp_lrp").forward((x, EDGES)) as record:
        found = fastlrp.edge_relevance(record, 0, at=0)["second"]
        layer = record.relevance(0, at=0, layers=["second"])["second"].sum(-1)
    assert found.source.tolist() == EDGES[0].tolist()
    arriving = torch.zeros_like(layer).index_add(2, found.target, found.relevance)
    torch.testing.assert_close(arriving, layer, rtol=1e-11, atol=1e-14)


def test_a_model_without_messages_has_no_edges():
    model = nn.Linear(3, 2).double().eval()
    with (
        GraphExplainer(model, "epsilon").forward(torch.randn(NODES, 3, dtype=torch.float64)) as record,
        pytest.raises(ValueError, match="passes messages along constant edges"),
    ):
        fastlrp.edge_relevance(record, 0, at=0)


def test_two_layers_without_modules_of_their_own_are_told_apart():
    with GraphExplainer(Two(layers.gin).double().eval(), "epsilon").forward(
        (torch.randn(NODES, 3, dtype=torch.float64), EDGES)
    ) as record:
        assert list(fastlrp.edge_relevance(record, 0, at=0)) == ["(model)", "(model)@1"]
