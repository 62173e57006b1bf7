"""Relevance through a linear layer for a block of targets, as matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp.aten import _product
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

    def product(coefficient: Tensor | None, matrix: Tensor) -> Tensor:
        scaled = relevance if coefficient is None else relevance * coefficient.unsqueeze(1)
        return _product.product(scaled, matrix)

    return combine(product, weight, u, v, input, weight_positive, signed, multiply)


def linear_one_hot_relevance(
    value: Tensor,
    index: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """As :func:`linear_relevance` for relevance that stands in one class per target: rows of W, no product.

    (B, K) -> (B, K, I); see :func:`fastlrp.reference.linear.linear_one_hot_relevance`.
    """
    rows = torch.embedding(weight, index)

    def product(coefficient: Tensor, part: Tensor) -> Tensor:
        return part * (value * coefficient.gather(1, index)).unsqueeze(2)

    result = None if u is None else product(u, rows)
    if v is not None:
        term = product(v, rows.clamp(min=0))
        if signed:
            assert input is not None, "a signed layer needs its input"
            sign = input.unsqueeze(1)
            term = torch.where(sign > 0, term, product(v, rows.clamp(max=0))).masked_fill_(sign == 0, 0)
        result = term if result is None else result.add_(term)
    assert result is not None, "u or v must be given"
    if multiply:
        assert input is not None, "multiply needs the layer's input"
        result.mul_(input.unsqueeze(1))
    return result
