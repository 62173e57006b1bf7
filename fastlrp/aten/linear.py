"""Relevance through a linear layer for a block of targets, as matrix products."""

from __future__ import annotations

from torch import Tensor

from fastlrp.aten.elementwise import combine


def linear_relevance(
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """``c = (uF) W + (vF) W+``, (B, K, *, O) -> (B, K, *, I); see :func:`fastlrp.reference.linear.linear_relevance`."""

    def product(coefficient: Tensor, matrix: Tensor) -> Tensor:
        return (relevance * coefficient.unsqueeze(1)) @ matrix

    return combine(product, weight, u, v, input, weight_positive, signed, multiply)
