"""Generalised LRP-gamma."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import (
    Coefficients,
    of_changed_weights,
    only_positive_outputs,
    output_slot,
    pair,
    part,
    subtracts_itself,
)
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products.point_sums import coefficients as point_coefficients
from fastlrp.plan.steps import Flow
from fastlrp.reference.redistribution import (
    Affine,
    Ledger,
    Stabilize,
    bias_of,
    negative_part,
    negative_products,
    part_of,
    positive_part,
    positive_products,
    redistribute,
    times,
    total,
)
from fastlrp.rules.plain_gamma import PlainGamma
from fastlrp.rules.rule import TwoCoefficientRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Gamma(TwoCoefficientRule):
    """Generalised LRP-gamma, for inputs of both signs.

    ``R_i = sum_j (x_i w_ij + gamma (x_i w_ij)+) / st(z_j + gamma (P_j + b_j+)) R_j`` where ``z_j > 0``,
    the same with ``-``, ``N`` and ``b-`` where ``z_j < 0``, nothing where ``z_j = 0``.

    Args:
        gamma: how much more positive contributions count, at least 0; 0 is the epsilon rule.
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.
        zero_bias: leave the bias out of the denominators.

    Raises:
        ValueError: for a gamma below 0 or infinite.

    Example::

        relevance = record.under(composites.uniform(rules.Gamma(0.1))).relevance("top1")

    Source: Andeol et al. 2021; Montavon et al. 2019, section 10.2.3, for ``x >= 0``.
    """

    gamma: float = 0.25
    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"Gamma: gamma must be >= 0 and finite, got {self.gamma}")

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        return textbook(layer, x, R, Stabilizer.ensure(self.stabilizer), self.gamma, self.zero_bias)

    def coefficients(self, b: Builder, layer: AffineLayer, flow: Flow, signed: bool) -> Coefficients:
        same_sign = not self.zero_bias or layer.bias is None  # Without its bias a neuron above zero may be below it.
        if not signed and same_sign and only_positive_outputs(layer, flow):
            # After a ReLU v/u is the same for every neuron that carries relevance: one product with W + gamma W+.
            modify = PlainGamma(self.gamma).modify
            found = point_coefficients(b, layer, flow, "raised", self.gamma, self.stabilizer, self.zero_bias)
            if found is not None:
                return Coefficients(found[0], None, modify(layer.weight), splits=False)
            if layer.choice.is_reduced and not layer.choice.filters_sums:
                # z is in float32 from the model's own pass, and few digits are enough for the sum that is added to it.
                # The ReLU's output is z wherever relevance stands, so that it may be written over z.
                above = flow.factor.value or layer.y
                sums = [above.index, part(b, layer, self.zero_bias)]
                z = b.cache(lambda y, p: y + self.gamma * p, sums, layer.y.numel)
                return of_changed_weights(b, layer, flow, self.stabilizer, modify, self.zero_bias, z=z)
            return of_changed_weights(b, layer, flow, self.stabilizer, modify, self.zero_bias, raises=True)
        if same_sign:
            found = point_coefficients(b, layer, flow, "gamma", self.gamma, self.stabilizer, self.zero_bias)
            if found is not None:
                return Coefficients(*found, layer.weight, splits=True, gamma=self.gamma)
        factor, z = b.slot_of(flow.factor), output_slot(b, layer, self.zero_bias)
        positive = part(b, layer, self.zero_bias, flow=flow)
        # N + b-, read only where z < 0: there it is the sum of two negative numbers, and no digits cancel.
        st = Stabilizer.ensure(self.stabilizer)
        negative = None if subtracts_itself(b, st) else b.cache(torch.sub, [z, positive], layer.y.numel)
        u, v = pair(b, layer, "gamma", self.gamma, st, [z, positive, negative, factor])
        return Coefficients(u, v, layer.weight, splits=True, gamma=self.gamma)


def textbook(
    layer: Affine, x: Tensor, R: Tensor, st: Stabilize, gamma: float, zero_bias: bool = False
) -> tuple[Tensor, Ledger]:
    """LRP-gamma, generalised to inputs and outputs of both signs.

    ``R_i = sum_j (x_i w_ij + gamma (x_i w_ij)+) / st(z_j + gamma (P_j + b_j+)) R_j`` over the neurons with ``z_j > 0``,
    the same with ``-``, ``N`` and ``b-`` over those with ``z_j < 0``. Neurons with ``z_j = 0`` are dead. With
    ``zero_bias`` the layer has no bias at all, so the sign of ``z_j`` is that of ``W x`` too.

    Source: Andeol et al. 2021; Montavon et al. 2019, section 10.2.3, for ``x >= 0``.
    """
    bias = None if zero_bias else layer.bias
    z = layer.apply(x, layer.weight, bias).unsqueeze(1)
    plain = part_of(layer, layer.weight, x)

    def more(clamp: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda w: w + gamma * clamp(w)

    up = [times(part, gamma) for part in positive_products(layer, x)]
    down = [times(part, gamma) for part in negative_products(layer, x)]
    above, gains = redistribute(
        [plain, *up], bias_of(layer, x, more(positive_part), zero_bias), torch.where(z > 0, R, 0.0), st
    )
    below, losses = redistribute(
        [plain, *down], bias_of(layer, x, more(negative_part), zero_bias), torch.where(z < 0, R, 0.0), st
    )
    ledger = Ledger(
        bias=gains.bias + losses.bias,
        stabilizer=gains.stabilizer + losses.stabilizer,
        dead=gains.dead + losses.dead + total(torch.where(z == 0, R, 0.0)),
    )
    return above + below, ledger
