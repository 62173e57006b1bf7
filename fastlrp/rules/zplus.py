"""LRP-z+."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import Coefficients, is_bounded, part, part_coefficient
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products.point_sums import coefficients as point_coefficients
from fastlrp.plan.steps import Flow
from fastlrp.reference.redistribution import (
    Affine,
    Ledger,
    Stabilize,
    bias_of,
    positive_part,
    positive_products,
    redistribute,
)
from fastlrp.rules.rule import PoolShares, TwoCoefficientRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class ZPlus(TwoCoefficientRule):
    """LRP-z+ (alpha1 beta0): ``R_i = sum_j (x_i w_ij)+ / st(P_j + b_j+) R_j``.

    Args:
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.
        zero_bias: leave the bias out of the denominators.

    Example::

        relevance = record.under(composites.uniform(rules.ZPlus())).relevance("top1")

    Source: Montavon et al. 2017, eq. 15; for inputs of both signs Bach et al. 2015, eq. 60 with beta = 0.
    """

    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        return textbook(layer, x, R, Stabilizer.ensure(self.stabilizer), self.zero_bias)

    def at_pools(self) -> PoolShares:
        return 1.0, 0.0

    def coefficients(self, b: Builder, layer: AffineLayer, flow: Flow, signed: bool) -> Coefficients:
        st = Stabilizer.ensure(self.stabilizer)
        found = point_coefficients(b, layer, flow, "zplus", 1, st, self.zero_bias)
        if found is not None:
            return Coefficients(None, found[1], layer.weight, splits=True)
        sums, bounded = part(b, layer, self.zero_bias, flow=flow), is_bounded(b, layer, flow, self.zero_bias)
        v = part_coefficient(b, layer, flow, st, sums, 1)
        return Coefficients(None, v, layer.weight, splits=True, bounded=bounded)


def textbook(layer: Affine, x: Tensor, R: Tensor, st: Stabilize, zero_bias: bool = False) -> tuple[Tensor, Ledger]:
    """LRP-z+: ``R_i = sum_j (x_i w_ij)+ / st(P_j + b_j+) R_j``, for inputs of both signs.

    Source: Montavon et al. 2017, eq. 15; Bach et al. 2015, eq. 60 with beta = 0.
    """
    return redistribute(positive_products(layer, x), bias_of(layer, x, positive_part, zero_bias), R, st)
