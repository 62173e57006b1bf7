"""Message passing written by hand, in the forms in which models have it, and gradient times input as an oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 0, 2, 3], [1, 0, 2, 1, 4, 3, 0, 0, 1]])
GRAPHS = torch.tensor([0, 0, 0, 0, 0])
NODES = 5


def rows(h: Tensor, index: Tensor) -> Tensor:
    """An index along axis 0, for scatter."""
    return index.unsqueeze(1).expand(-1, h.shape[1])


def gcn(h: Tensor, edges: Tensor) -> Tensor:
    """Graph convolution, with self-loops and symmetric normalisation from the edges given."""
    loops = torch.arange(len(h))
    other = edges[0] != edges[1]  # As many as the graph has.
    source, target = torch.cat([edges[:, other], torch.stack([loops, loops])], 1)
    degree = torch.zeros(len(h), dtype=h.dtype).index_add_(0, target, torch.ones(len(target), dtype=h.dtype))
    weight = degree.pow(-0.5)[source] * degree.pow(-0.5)[target]
    return torch.zeros_like(h).index_add_(0, target, weight.unsqueeze(1) * h[source])


def gin(h: Tensor, edges: Tensor) -> Tensor:
    """The sum over neighbours beside the node itself."""
    return 1.1 * h + torch.zeros_like(h).scatter_add(0, rows(h, edges[1]), h.index_select(0, edges[0]))


def sage(h: Tensor, edges: Tensor) -> Tensor:
    """The mean over neighbours."""
    return torch.zeros_like(h).scatter_reduce(0, rows(h, edges[1]), h[edges[0]], "mean", include_self=False)


def pooled(h: Tensor, edges: Tensor) -> Tensor:
    """The largest of each channel over neighbours."""
    return torch.zeros_like(h).scatter_reduce(0, rows(h, edges[1]), h[edges[0]], "amax", include_self=False)


def put(h: Tensor, edges: Tensor) -> Tensor:
    """Added in place, on top of the node itself."""
    y = h.clone()
    y.index_put_((edges[1],), h[edges[0]], accumulate=True)
    return y


def sparse(h: Tensor, edges: Tensor) -> Tensor:
    """A sparse adjacency matrix."""
    ones = torch.ones(edges.shape[1], dtype=h.dtype)
    return torch.sparse.mm(torch.sparse_coo_tensor(edges.flip(0), ones, (len(h), len(h))), h)


def segments(h: Tensor, edges: Tensor) -> Tensor:
    """Messages sorted by node."""
    order = edges[1].argsort(stable=True)
    lengths = torch.bincount(edges[1], minlength=len(h))
    return torch.segment_reduce(h[edges[0]][order], "sum", lengths=lengths, axis=0)


def half(x: Tensor) -> Tensor:
    """The same number, whose derivative is half."""
    return (x + x.detach()) / 2


def attention(h: Tensor, edges: Tensor, halves: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Two heads of attention over each node's edges; the coefficients a softmax spelled out."""
    source, target = edges
    scores = F.leaky_relu(h[source, :2] + h[target, 2:], 0.2)
    top = torch.zeros(len(h), 2, dtype=h.dtype).scatter_reduce(
        0, target.unsqueeze(1).expand(-1, 2), scores.detach(), "amax", include_self=False
    )
    scores = (scores - top[target]).exp()
    total = torch.zeros(len(h), 2, dtype=h.dtype).index_add(0, target, scores) + 1e-16
    weights = scores / total[target]
    messages = halves(weights).unsqueeze(2) * halves(h[source].unflatten(1, (2, 2)))
    return torch.zeros(len(h), 2, 2, dtype=h.dtype).index_add(0, target, messages).flatten(1)


class Two(nn.Module):
    """Two layers of message passing and scores of nodes; ``pool`` gives scores of graphs."""

    def __init__(self, aggregate: Callable[..., Tensor], pool: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.aggregate, self.pool = aggregate, pool

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        x = F.leaky_relu(self.aggregate(self.first(x), edge_index), 0.5)
        x = F.leaky_relu(self.aggregate(self.second(x), edge_index), 0.5)
        if batch is not None:
            count = int(batch.max()) + 1  # A number from data, which only a fixed input may give.
            sums = torch.zeros(count, x.shape[1], dtype=x.dtype).index_add_(0, batch, x)
            x = sums / torch.bincount(batch, minlength=count).unsqueeze(1)
        return self.head(x)


def gradient_times_input(model: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    """``(K, N, F)`` for every entry of the output, in order."""
    point = x.clone().requires_grad_()
    scores = model(point, *rest).flatten()
    found = [torch.autograd.grad(s, point, retain_graph=True)[0] for s in scores]
    return torch.stack(found) * x
