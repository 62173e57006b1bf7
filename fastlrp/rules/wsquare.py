"""LRP-w2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.input_terms import (
    constant_shares,
    forms_shares_in_float32,
    is_fused_input,
    send_from_input,
    send_product,
)
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.narrow import wide
from fastlrp.plan.products.sparse_form import sparse_form
from fastlrp.plan.steps import Flow
from fastlrp.reference.redistribution import Affine, Ledger, Stabilize, bias_of, part_of, redistribute
from fastlrp.rules.rule import PoolShares, WeightRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class WSquare(WeightRule):
    """LRP-w2: ``R_i = sum_j w_ij^2 / st(sum_i w_ij^2 + b_j^2) R_j``.

    Args:
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.
        zero_bias: leave the bias out of the denominators.

    Example::

        relevance = record.under(composites.uniform(rules.WSquare())).relevance("top1")

    Source: Montavon et al. 2017, eq. 12.
    """

    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        return textbook(layer, x, R, Stabilizer.ensure(self.stabilizer), self.zero_bias)

    def at_pools(self) -> PoolShares:
        return "equal"

    def lower(self, b: Builder, layer: AffineLayer, flow: Flow) -> None:
        squares, largest = wide(layer.weight).square(), 1.0
        bias = None if self.zero_bias or layer.bias is None else wide(layer.bias).square()
        fused = is_fused_input(b, layer)
        exact = forms_shares_in_float32(b) and not fused
        if squares.dtype != layer.weight.dtype and squares.numel():
            # Squares of small weights vanish in 16 bits: what is divided out again is the largest of them.
            largest = squares.max().clamp(min=torch.finfo(squares.dtype).tiny)
        u = constant_shares(b, layer, flow, Stabilizer.ensure(self.stabilizer), squares, bias, largest, exact)
        weight = squares / largest
        weight = weight if exact else weight.to(layer.weight.dtype)
        if fused:
            send_from_input(b, layer, flow, [(weight, u, None)], sparse_form(b, layer, [(weight, u, False)]))
        else:
            send_product(b, layer, flow, weight, u, exact)


def textbook(layer: Affine, x: Tensor, R: Tensor, st: Stabilize, zero_bias: bool = False) -> tuple[Tensor, Ledger]:
    """LRP-w2: ``R_i = sum_j w_ij^2 / st(sum_i w_ij^2 + b_j^2) R_j``. The values of ``x`` play no part.

    Source: Montavon et al. 2017, eq. 12.
    """
    part = part_of(layer, layer.weight.square(), torch.ones_like(x))
    return redistribute([part], bias_of(layer, x, torch.square, zero_bias), R, st)
