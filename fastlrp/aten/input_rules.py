"""Relevance of a network's input for a block of targets, as the library's transposed convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp.aten.conv import conv_relevance


def input_relevance(
    relevance: Tensor,
    weights: list[Tensor],
    coefficients: list[Tensor],
    multipliers: list[Tensor | None],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    reduce: bool,
) -> Tensor:
    """``sum_j m_j W_j^T (u_j F)``, (B, K, Co, *S') -> (B, K, Ci, *S) or (B, K, 1, *S); see the reference's namesake.

    Terms of one coefficient go side by side through one product: what flows is multiplied and read once for all.
    """
    geometry = (input_size, stride, padding, dilation, False, [0] * len(input_size), groups)
    total: Tensor | None = None
    for u, terms in _products(weights, coefficients, multipliers, groups):
        # Channels that all get the same multiplier may as well be added up before the product.
        summed = reduce and groups == 1 and all(m is None for _, m in terms)
        stacked = [w.sum(1, keepdim=True) if summed else w for w, _ in terms]
        weight = stacked[0] if len(stacked) == 1 else torch.cat(stacked, 1)
        c = conv_relevance(relevance, weight, u, None, None, None, *geometry, False, False)
        parts = c.chunk(len(terms), 2)
        if reduce or len(terms) == 1:
            for part, (_, m) in zip(parts, terms, strict=True):
                if m is not None:
                    part.mul_(m.unsqueeze(1))
            c = c.sum(2, keepdim=True) if reduce else c
        else:
            c = _sum_of_products(parts, [m for _, m in terms])
        total = c if total is None else total.add_(c)
    assert total is not None, "at least one term must be given"
    return total


_Term = tuple[Tensor, Tensor | None]


def _products(
    weights: list[Tensor], coefficients: list[Tensor], multipliers: list[Tensor | None], groups: int
) -> list[tuple[Tensor, list[_Term]]]:
    """Terms, those of one coefficient together; every term alone where the channels of groups would interleave."""
    found: list[tuple[Tensor, list[_Term]]] = []
    for w, u, m in zip(weights, coefficients, multipliers, strict=True):
        mates = next((terms for other, terms in found if other is u and groups == 1), None)
        if mates is None:
            found.append((u, [(w, m)]))
        else:
            mates.append((w, m))
    return found


def _sum_of_products(parts: Sequence[Tensor], multipliers: list[Tensor | None]) -> Tensor:
    """``sum_j m_j c_j`` in memory of its own: that of the parts is larger than the result."""
    (first, *parts), (m, *multipliers) = parts, multipliers
    total = first.clone() if m is None else first * m.unsqueeze(1)
    for part, m in zip(parts, multipliers, strict=True):
        total = total.add_(part) if m is None else total.addcmul_(part, m.unsqueeze(1))
    return total


def input_flat_relevance(
    relevance: Tensor,
    u: Tensor,
    channels: int,
    kernel_size: list[int],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    reduce: bool,
) -> Tensor:
    """``1^T (u F)``, (B, K, Co, *S') -> (B, K, Ci, *S) or (B, K, 1, *S): sum over output channels, then a box filter.

    All channels of the result are one in memory.
    """
    summed = (relevance * u.unsqueeze(1)).sum(2, keepdim=True)
    box = summed.new_full((1, 1, *kernel_size), channels if reduce else 1)
    unit = summed.new_ones(1).expand(summed.shape[0], *summed.shape[2:])
    geometry = (input_size, stride, padding, dilation, False, [0] * len(input_size), 1)
    result = conv_relevance(summed, box, unit, None, None, None, *geometry, False, False)
    return result if reduce else result.expand(-1, -1, channels, *input_size)
