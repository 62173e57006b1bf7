"""LRP-epsilon."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import Coefficients, is_bounded, output_slot, pair
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.steps import Flow
from fastlrp.reference.redistribution import Affine, Ledger, Stabilize
from fastlrp.rules import modified_weights
from fastlrp.rules.rule import TwoCoefficientRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Epsilon(TwoCoefficientRule):
    """LRP-epsilon: ``R_i = sum_j x_i w_ij / st(z_j) R_j``; with ``epsilon=0`` it is LRP-0.

    Args:
        epsilon: number (absolute) or :class:`Stabilizer`. With ``Stabilizer.limit()`` what arrives in chained form
            passes the transposed weight undivided: gradient times input.
        zero_bias: leave the bias out of the denominator; at a sum its constant summand. Pools, linear maps and other
            operations without a bias are the same with it.

    Example::

        relevance = record.under(composites.uniform(rules.Epsilon(0.1))).relevance("top1")

    Source: Bach et al. 2015, eq. 58.
    """

    epsilon: float | Stabilizer = 1e-6
    zero_bias: bool = False

    @property
    def stabilizer(self) -> float | Stabilizer:
        return self.epsilon

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        return textbook(layer, x, R, Stabilizer.ensure(self.stabilizer), self.zero_bias)

    def coefficients(self, b: Builder, layer: AffineLayer, flow: Flow, signed: bool) -> Coefficients:
        stabilizer = Stabilizer.ensure(self.stabilizer)
        own, even = flow.factor.value is layer.y and (layer.bias is None or not self.zero_bias), layer.y not in b.uneven
        if stabilizer.in_limit and own:
            return Coefficients(flow.factor.scale, None, layer.weight, splits=False, bounded=even)
        slots = [output_slot(b, layer, self.zero_bias), None, None, b.slot_of(flow.factor)]
        u, _ = pair(b, layer, "epsilon", 1, stabilizer, slots)
        bounded = (own and even) or is_bounded(b, layer, flow, self.zero_bias)
        return Coefficients(u, None, layer.weight, splits=False, bounded=bounded)


def textbook(layer: Affine, x: Tensor, R: Tensor, st: Stabilize, zero_bias: bool = False) -> tuple[Tensor, Ledger]:
    """LRP-epsilon: ``R_i = sum_j x_i w_ij / st(z_j) R_j``, ``z = W x + b``. With epsilon 0 it is LRP-0.

    Source: Bach et al. 2015, eq. 58.
    """
    return modified_weights.textbook(layer, x, R, st, lambda w: w, zero_bias)
