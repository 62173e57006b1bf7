"""LRP-gamma as first published."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import Coefficients, of_changed_weights
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.steps import Flow
from fastlrp.reference.redistribution import Affine, Ledger
from fastlrp.rules.modified_weights import textbook
from fastlrp.rules.rule import TwoCoefficientRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class PlainGamma(TwoCoefficientRule):
    """LRP-gamma as first published: ``rho(w) = w + gamma w+`` for weight and bias, no split by the sign of ``x``.

    Args:
        modify_bias: ``False`` leaves the bias in the denominator as it is (Captum does).
        gamma: of the positive weights, at least 0.
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.
        zero_bias: leave the bias out of the denominators.

    Raises:
        ValueError: for a gamma below 0 or infinite.

    Example::

        relevance = record.under(composites.uniform(rules.PlainGamma(0.1))).relevance("top1")

    Source: Montavon et al. 2019, section 10.2.3.
    """

    gamma: float = 0.25
    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False
    modify_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"PlainGamma: gamma must be >= 0 and finite, got {self.gamma}")

    def modify(self, w: Tensor) -> Tensor:
        return w + self.gamma * w.clamp(min=0)

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        st = Stabilizer.ensure(self.stabilizer)
        return textbook(layer, x, R, st, self.modify, self.zero_bias, self.modify_bias)

    def coefficients(self, b: Builder, layer: AffineLayer, flow: Flow, signed: bool) -> Coefficients:
        return of_changed_weights(b, layer, flow, self.stabilizer, self.modify, self.zero_bias, self.modify_bias)
