"""Messages put together at the nodes of a graph: entries along one axis, added up or compared by constant places."""

from __future__ import annotations

import torch
from torch import Tensor


def added(x: Tensor, axis: int, index: Tensor, count: int) -> Tensor:
    """``y[n] = sum of x[e] over all e with index[e] = n``, along ``axis``, whose size becomes ``count``."""
    sizes = [*x.shape]
    sizes[axis] = count
    return x.new_zeros(sizes).index_add_(axis, index, x)


def largest(x: Tensor, axis: int, index: Tensor, count: int, smallest: bool = False) -> Tensor:
    """``y[n] = max of x[e] over all e with index[e] = n``; 0 where there is none."""
    sizes = [*x.shape]
    sizes[axis] = count
    where = index.view(-1, *[1] * (x.dim() - axis - 1)).expand_as(x)
    return x.new_zeros(sizes).scatter_reduce_(axis, where, x, "amin" if smallest else "amax", include_self=False)


def segment_softmax(x: Tensor, axis: int, index: Tensor, count: int, tiny: float = 0.0) -> Tensor:
    """``p[e] = exp(x[e]) / (sum of exp(x[f]) over all f with index[f] = index[e])``, along ``axis``.

    Args:
        tiny: added to each sum, after the largest score was taken from all.
    """
    top = largest(x.detach(), axis, index, count)
    scores = (x - top.index_select(axis, index)).exp()
    total = added(scores, axis, index, count)
    return scores / (total + tiny if tiny else total).index_select(axis, index)


def counted(index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """How many messages each node gets, at least 1."""
    return torch.bincount(index, minlength=count).clamp_(min=1).to(dtype)
