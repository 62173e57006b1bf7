"""Rules that change the weights: any ``rho(w)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import Coefficients, of_changed_weights
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.steps import Flow
from fastlrp.reference.redistribution import Affine, Ledger, Stabilize, bias_of, part_of, redistribute
from fastlrp.rules.rule import TwoCoefficientRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class ModifiedWeights(TwoCoefficientRule):
    """Any rule of the form ``R_i = x_i sum_j rho(w_ij) / st(sum_i x_i rho(w_ij) + rho(b_j)) R_j``.

    The shortest way to a rule of your own; see ``examples/own_rule.py``.

    Args:
        modify: ``rho``, applied element-wise to the (batch-norm folded) weight and to the bias.
        name: how the plan shows it.
        modify_bias: ``False`` leaves the bias in the denominator as it is (Captum does).
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.
        zero_bias: leave the bias out of the denominators.

    Raises:
        TypeError: if ``modify`` is no function.

    Example::

        squares = rules.ModifiedWeights(lambda w: w * w.abs(), name="squares")
        relevance = record.under(composites.uniform(squares)).relevance("top1")

    Source: Montavon et al. 2019, eq. 10.2 to 10.4.
    """

    modify: Callable[[Tensor], Tensor]
    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False
    name: str = "ModifiedWeights"
    modify_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.modify):
            raise TypeError(f"ModifiedWeights: modify must be a function of a tensor, got {type(self.modify).__name__}")

    def __str__(self) -> str:
        return self.name

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        st = Stabilizer.ensure(self.stabilizer)
        return textbook(layer, x, R, st, self.modify, self.zero_bias, self.modify_bias)

    def coefficients(self, b: Builder, layer: AffineLayer, flow: Flow, signed: bool) -> Coefficients:
        return of_changed_weights(b, layer, flow, self.stabilizer, self.modify, self.zero_bias, self.modify_bias)


def textbook(
    layer: Affine,
    x: Tensor,
    R: Tensor,
    st: Stabilize,
    modify: Callable[[Tensor], Tensor],
    zero_bias: bool = False,
    modify_bias: bool = True,
) -> tuple[Tensor, Ledger]:
    """``R_i = x_i sum_j rho(w_ij) / st(sum_i x_i rho(w_ij) + rho(b_j)) R_j``, with ``rho = modify``.

    ``rho(w) = w + gamma max(w, 0)`` is LRP-gamma as first published. Without ``modify_bias`` it is ``b_j`` as it is.

    Source: Montavon et al. 2019, eq. 10.2 to 10.4.
    """
    part = part_of(layer, modify(layer.weight), x)
    return redistribute([part], bias_of(layer, x, modify if modify_bias else torch.clone, zero_bias), R, st)
