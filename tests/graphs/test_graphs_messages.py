"""Message passing in the forms in which models write it: relevance of nodes against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import GraphExplainer
from tests.graphs import layers
from tests.graphs.layers import EDGES, NODES, Two, gradient_times_input

FORMS = [
    layers.gcn, layers.gin, layers.sage, layers.pooled, layers.put, layers.sparse, layers.segments, layers.attention
]  # fmt: skip


def features() -> torch.Tensor:
    return torch.randn(NODES, 3, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_relevance_is_gradient_times_input_in_the_limit(form):
    """Layers of a ReLU network; for attention with half of a product to each factor (AttnLRP)."""
    model, x = Two(form).double().eval(), features()
    explainer = GraphExplainer(model, "attnlrp")
    with explainer.forward((x, EDGES)) as record:
        torch.testing.assert_close(record.output, model(x, EDGES), rtol=1e-12, atol=1e-12)
        found, edges = record.relevance([0, 1], at="all")
    assert edges is None
    assert found.shape == (1, 2 * NODES, NODES, 3)
    own = Two(lambda h, e: layers.attention(h, e, layers.half)) if form is layers.attention else Two(form)
    own.load_state_dict(model.state_dict())
    expected = gradient_times_input(own.double(), x, EDGES)
    assert expected.norm() > 1e-2
    torch.testing.assert_close(found[0], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("composite", ["gamma", "gradient"])
@pytest.mark.parametrize("form", [layers.gcn, layers.pooled, layers.attention], ids=lambda form: form.__name__)
def test_kernels_equal_the_textbook(form, composite):
    explainer = GraphExplainer(Two(form).double().eval(), composite)
    initial = "one" if composite == "gradient" else "output"
    verification = explainer.verify((features(), EDGES), [0, 1], at="all", initial=initial)
    assert verification.ok, verification
    assert verification.end_to_end < 1e-12


@pytest.mark.parametrize("form", [layers.gcn, layers.pooled, layers.attention], ids=lambda form: form.__name__)
def test_up_equals_down(form):
    with GraphExplainer(Two(form).double().eval(), "gamma").forward((features(), EDGES)) as record:
        ways = [
            record.relevance([0, 1], at="all", groups="tokens", direction=direction) for direction in ("up", "down")
        ]
    assert ways[0].shape == (1, 2 * NODES, NODES)
    torch.testing.assert_close(*ways, rtol=1e-11, atol=1e-13)


class Sum(nn.Module):
    """Node 1 gets 2 x0 and -3 x1 + 1, through weights 1 and 1."""

    def forward(self, x, edge_index):
        source, target = edge_index
        return torch.zeros_like(x).index_add_(0, target, x[source])


class Masked(nn.Module):
    """Sizes that only the edges say: self-loops taken out of float weights, and nodes treated by their degree."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))

    def forward(self, x, edge_index, weight):
        other = edge_index[0] != edge_index[1]
        source, target = edge_index[:, other]
        weight = weight[other]
        count = torch.zeros(len(x), dtype=torch.long).scatter_add_(0, target, torch.ones_like(target))
        h = torch.zeros_like(x).index_add_(0, target, weight[:, None] * x[source])
        y = x.new_zeros(len(x), 2)
        for degree, layer in enumerate(self.layers):
            nodes = (count.clamp(max=2) == degree).nonzero().view(-1)
            y = y.index_copy(0, nodes, layer(h[nodes]))
        if bool(torch.tensor([1.0, 2.0]) @ torch.tensor([3.0, 4.0]) > 0):
            y = 2 * y
        return y


def test_sizes_that_depend_on_the_edges_alone():
    model, x = Masked().double().eval(), features()
    weight = torch.rand(EDGES.shape[1], dtype=torch.float64)
    explainer = GraphExplainer(model, "attnlrp")
    found, edges, weights = explainer((x, EDGES, weight), [0, 1], at="all")
    assert edges is None
    assert weights is None  # Broadcast over the channels: a gate, which takes nothing.
    torch.testing.assert_close(found[0], gradient_times_input(model, x, EDGES, weight), rtol=1e-10, atol=1e-14)
    assert explainer.verify((x, EDGES, weight), [0, 1], at="all").ok


def test_fractions_by_hand():
    """Node 1 adds up 2 and 6, node 0 keeps 6: of the 8 of node 1 two come from node 0 and six from node 1."""
    edges = torch.tensor([[0, 1, 1], [1, 1, 0]])
    found = GraphExplainer(Sum(), "lrp0")((torch.tensor([[2.0], [6.0]]), edges), 0, at=[0, 1])[0]
    torch.testing.assert_close(found[0, :, :, 0], torch.tensor([[0.0, 6.0], [2.0, 6.0]]))


class Largest(nn.Module):
    def forward(self, x, edge_index):
        source, target = edge_index
        where = target.unsqueeze(1).expand(-1, x.shape[1])
        return torch.zeros_like(x).scatter_reduce(0, where, x[source], "amax", include_self=False)


def test_the_largest_message_takes_all_and_equal_ones_share():
    """Node 0 takes the larger of -3 and -1; node 1 has two equal messages of 4."""
    x = torch.tensor([[-3.0], [-1.0], [4.0], [4.0]])
    edges = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]])
    explainer = GraphExplainer(Largest(), "epsilon")
    found = explainer((x, edges), 0, at=[0, 1, 2])[0][0, :, :, 0]
    torch.testing.assert_close(found, torch.tensor([[0.0, -1, 0, 0], [0, 0, 2, 2], [0, 0, 0, 0]]))
    assert explainer.verify((x, edges), 0, at="all").ok


@pytest.mark.slow
def test_attention_coefficients_keep_nothing_under_cp_lrp():
    """They are constants: what arrives goes to the values."""
    x = features()
    model = Two(layers.attention).double().eval()

    def held(h, edges):
        return layers.attention(h, edges, lambda t: t.detach() if t.shape[1:] == (2,) else t)

    own = Two(held).double()
    own.load_state_dict(model.state_dict())
    found = GraphExplainer(model, "cp_lrp")((x, EDGES), [0, 1], at="all")[0]
    torch.testing.assert_close(found[0], gradient_times_input(own, x, EDGES), rtol=1e-10, atol=1e-14)
    names = [node.operation for node in GraphExplainer(model, example_inputs=(x, EDGES)).plan.graph.nodes]
    assert names.count("segment_softmax") == 2
    assert "exp" not in names


def test_a_batch_of_graphs_is_as_the_graphs_alone():
    """One target of both graphs' classes gives both explanations at once: graphs do not mix."""
    model = Two(layers.gin, pool=True).double().eval()
    x, edges = features(), torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    batch = torch.tensor([0, 0, 0, 1, 1])
    explainer = GraphExplainer(model, "gamma")
    given = {"x": x, "edge_index": edges, "batch": batch}
    each = explainer(given, [(0, 1), (1, 0)], at="pairs")["x"]
    both = explainer(given, {(0, 1): 1.0, (1, 0): 1.0}, at="pairs")["x"]
    first = explainer({"x": x[:3], "edge_index": edges[:, :4], "batch": batch[:3]}, 1, at=0)["x"]
    second = explainer({"x": x[3:], "edge_index": edges[:, 4:] - 3, "batch": batch[3:] - 1}, 0, at=0)["x"]
    torch.testing.assert_close(each[:, 0, :3], first[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(each[:, 1, 3:], second[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both[:, 0], each.sum(1), rtol=1e-12, atol=1e-12)


def test_dense_adjacency_as_buffer_as_input_and_for_each_sample():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("adjacency", torch.zeros(NODES, NODES).index_put((EDGES[1], EDGES[0]), torch.ones(())))

        def forward(self, x, adjacency=None):
            adjacency = self.adjacency if adjacency is None else adjacency
            return adjacency.to(x.dtype) @ self.linear(x).relu()

    model, x = Dense().double().eval(), features()
    matrix = model.adjacency
    expected = GraphExplainer(model, "gamma")(x, [0, 1], at="all")
    fixed = GraphExplainer(model, "gamma", fixed="adjacency")
    for adjacency in (matrix, matrix.to_sparse(), matrix.to_sparse_csr()):
        found = fixed((x, adjacency), [0, 1], at="all")
        assert found[1] is None
        torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12)
    own = GraphExplainer(model, "gamma")((x, matrix), [0, 1], at="all")  # Half of a product to each factor.
    torch.testing.assert_close(own[0], expected / 2, rtol=1e-12, atol=1e-12)
    assert own[1].shape == (1, 2 * NODES, NODES, NODES)
    several = fastlrp.Explainer(model, "gamma")  # Truth values are conditions.
    each = several((torch.stack([x, 2 * x]), torch.stack([matrix, matrix]).bool()), [0, 1], at="all")
    torch.testing.assert_close(each[0][:1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduce", ["amax", "mean", "sum"])
def test_a_graph_without_edges(reduce: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.first(x).relu()
            source, target = edge_index
            messages = h[source]
            places = target[:, None].expand_as(messages)
            return self.last(h + torch.zeros_like(h).scatter_reduce(0, places, messages, reduce, include_self=False))

    model, edges = Net().double().eval(), torch.zeros(2, 0, dtype=torch.long)
    x = torch.randn(3, 3, dtype=torch.float64)
    found = fastlrp.GraphExplainer(model, "gradient")({"x": x, "edge_index": edges}, [0], at=[0], initial="one")["x"]
    point = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(point, edges)[0, 0], point)
    torch.testing.assert_close(found[0, 0], expected)
