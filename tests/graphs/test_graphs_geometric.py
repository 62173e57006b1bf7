"""Layers of PyTorch Geometric, unmodified: against autograd in float64, the textbook, and walks. Skipped without it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import GraphExplainer
from tests.graphs.layers import EDGES, GRAPHS, NODES, gradient_times_input
from tests.torchvision_models import import_models

with contextlib.suppress(pytest.skip.Exception):
    import_models()  # It imports torchvision, if there is one.
geometric = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed", exc_type=ImportError)

CONVOLUTIONS = {
    "GCN": lambda a, b: geometric.GCNConv(a, b),
    "GIN": lambda a, b: geometric.GINConv(nn.Sequential(nn.Linear(a, b), nn.LeakyReLU(0.5), nn.Linear(b, b))),
    "GraphSAGE": lambda a, b: geometric.SAGEConv(a, b),
    "GraphSAGE, largest": lambda a, b: geometric.SAGEConv(a, b, aggr="max"),
    "GAT": lambda a, b: geometric.GATConv(a, b // 2, heads=2),
    "GATv2": lambda a, b: geometric.GATv2Conv(a, b),
    "Transformer": lambda a, b: geometric.TransformerConv(a, b),
    "Cheb": lambda a, b: geometric.ChebConv(a, b, K=2),
    "Graph": lambda a, b: geometric.GraphConv(a, b),
    "Edge": lambda a, b: geometric.EdgeConv(nn.Sequential(nn.Linear(2 * a, b), nn.LeakyReLU(0.5))),
}
ATTENTION = ("GAT", "GATv2", "Transformer")


class Network(nn.Module):
    def __init__(self, convolution):
        super().__init__()
        self.first, self.second, self.head = convolution(3, 4), convolution(4, 4), nn.Linear(4, 2)

    def forward(self, x, edge_index, batch):
        x = nn.functional.leaky_relu(self.first(x, edge_index), 0.5)
        x = nn.functional.leaky_relu(self.second(x, edge_index), 0.5)
        return self.head(geometric.global_add_pool(x, batch))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    model, x = Network(CONVOLUTIONS[name]).double().eval(), torch.randn(NODES, 3, dtype=torch.float64)
    given = {"x": x, "edge_index": EDGES, "batch": GRAPHS}
    composite = "gradient" if name in ATTENTION else "attnlrp"
    initial = "one" if name in ATTENTION else "output"
    explainer = GraphExplainer(model, composite)
    with explainer.forward(given) as record:
        torch.testing.assert_close(record.output, model(**given), rtol=1e-12, atol=1e-12)
        found = record.relevance([0, 1], at=0, initial=initial)["x"]
        edges = fastlrp.edge_relevance(record, 0, at=0)
    expected = gradient_times_input(model, x, EDGES, GRAPHS)
    expected = expected / x if name in ATTENTION else expected
    assert expected.norm() > 1e-2
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-12)
    assert {name.split("@")[0] for name in edges} == {"first", "second"}
    verification = GraphExplainer(model, "gamma").verify(given, [0, 1], at=0)
    assert verification.ok, verification


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_coefficients_are_one_softmax(name):
    model = Network(CONVOLUTIONS[name]).double().eval()
    given = {"x": torch.randn(NODES, 3, dtype=torch.float64), "edge_index": EDGES, "batch": GRAPHS}
    explainer = GraphExplainer(model, "attnlrp", example_inputs=given)
    assert [node.kind for node in explainer.plan.graph.nodes].count("segment_softmax") == 2
    every = torch.cartesian_prod(*[torch.arange(NODES)] * 3)
    found = fastlrp.walk_relevance(explainer, given, 0, every, ["first", "second"], at=0)
    nodes = explainer(given, 0, at=0)["x"].sum(-1)
    sums = torch.zeros_like(nodes).index_add(2, every[:, 0], found)
    torch.testing.assert_close(sums, nodes, rtol=1e-10, atol=1e-14)


def test_readouts_and_edge_attributes():
    class Readout(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.bonds = nn.Embedding(9, 4), nn.Linear(2, 4)
            self.convolution = geometric.GINEConv(nn.Linear(4, 4))
            self.norm, self.head = geometric.BatchNorm(4), nn.Linear(12, 2)

        def forward(self, z, edge_index, edge_attr, batch):
            h = self.norm(self.convolution(self.embed(z), edge_index, self.bonds(edge_attr))).relu()
            pools = (geometric.global_mean_pool, geometric.global_max_pool, geometric.global_add_pool)
            return self.head(torch.cat([pool(h, batch) for pool in pools], 1))

    given = {
        "z": torch.tensor([1, 4, 1, 8, 0]),
        "edge_index": EDGES,
        "edge_attr": torch.rand(EDGES.shape[1], 2, dtype=torch.float64),
        "batch": torch.tensor([0, 0, 0, 1, 1]),
    }
    explainer = GraphExplainer(Readout().double().eval(), "epsilon", ids="z")
    found = explainer(given, [0, 1], at="all")
    assert found["z"].shape == (1, 4, NODES)
    assert found["edge_attr"].shape == (1, 4, EDGES.shape[1], 2)
    assert explainer.verify(given, [0, 1], at="all").ok
