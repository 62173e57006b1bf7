"""LRP-alpha-beta."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import goes_in_float32, is_bounded, only_positive_outputs, part, part_coefficient
from fastlrp.plan.input_terms import Term, is_fused_input, send_from_input, split_terms
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.narrow import in_float32, wide
from fastlrp.plan.products.both import transpose_of_both
from fastlrp.plan.products.fused import unpooled_transpose
from fastlrp.plan.products.point_sums import coefficients as point_coefficients
from fastlrp.plan.products.rest import both_coefficients, subtracts
from fastlrp.plan.products.sparse_form import sparse_form
from fastlrp.plan.products.transposes import reduced_transpose_of_both, transpose
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.two_coefficients import without_last
from fastlrp.plan.ups import up_through
from fastlrp.reference.redistribution import (
    Affine,
    Ledger,
    Stabilize,
    bias_of,
    negative_part,
    negative_products,
    positive_part,
    positive_products,
    redistribute,
)
from fastlrp.rules.rule import PoolShares, WeightRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class AlphaBeta(WeightRule):
    """LRP-alpha-beta: ``R_i = sum_j (alpha (x_i w_ij)+ / st(P_j + b_j+) - beta (x_i w_ij)- / st(N_j + b_j-)) R_j``.

    Args:
        alpha, beta: ``alpha >= 0``, ``alpha - beta = 1``. With ``alpha < 1`` both parts add up (``alpha = 0``: the
            negative part alone).
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.
        zero_bias: leave the bias out of the denominators.

    Example::

        relevance = record.under(composites.uniform(rules.AlphaBeta(2.0, 1.0))).relevance("top1")

    Source: Bach et al. 2015, eq. 60.

    Raises:
        ValueError: if ``alpha - beta`` is not 1 or ``alpha`` is negative.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.alpha < math.inf and abs(self.alpha - self.beta - 1) <= 1e-6):
            raise ValueError(
                f"AlphaBeta: needs a finite alpha >= 0 and alpha - beta = 1 (so that relevance is conserved), "
                f"got alpha={self.alpha}, beta={self.beta}"
            )

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        return textbook(layer, x, R, Stabilizer.ensure(self.stabilizer), self.alpha, self.beta, self.zero_bias)

    def at_pools(self) -> PoolShares:
        return self.alpha, self.beta

    def lower(self, b: Builder, layer: AffineLayer, flow: Flow) -> None:
        """``alpha`` times the rule of the positive parts minus ``beta`` times that of the negative ones.

        Not as ``u W + v W+`` with ``u = -beta B``, ``v = alpha A + beta B``: where a neuron's negative part is nearly
        empty B is up to 1/epsilon, and A would be read off the difference of two numbers a million times its size.
        Products with W+ and W- cost the same and lose nothing. The negative part is the positive part of ``-W``.
        """
        x, st = layer.x, Stabilizer.ensure(self.stabilizer)
        signed = not b.is_nonnegative(x)
        exact = goes_in_float32(b, layer, flow)
        parts: list[Any] = []
        ups: list[Any] = []
        unpooled: list[Any] = []
        terms: list[Term] = []
        shares = self.alpha, -self.beta
        in_one_product, narrow = all(shares) and layer.choice.adds_in_one_product, layer.choice.is_reduced
        at_once = all(shares) and subtracts(layer, st, signed, self.zero_bias)
        if at_once:
            sums = part(b, layer, self.zero_bias, flow=flow, in_full=True)
            passed_relu = only_positive_outputs(layer, flow)
            vs_of_both = both_coefficients(b, layer, flow, st.epsilon, shares, sums, passed_relu)
        for negative, share in enumerate(shares):
            if share:
                apart = (st.mirrored() if negative else st), self.zero_bias, bool(negative)
                fused = None if at_once else point_coefficients(b, layer, flow, "zplus", share, *apart)
                if at_once:
                    v = vs_of_both[negative]
                elif fused is not None:
                    v = fused[1]
                else:
                    sums = part(b, layer, self.zero_bias, bool(negative), flow)
                    v = part_coefficient(b, layer, flow, st, sums, share, bool(negative))
                weight = layer.negated if negative else layer.weight
                positive = layer.negated_positive if negative else layer.positive
                for_product = (wide(weight), wide(positive)) if exact else (weight, positive)
                may_be_bounded = not (negative or exact or in_one_product)
                bounded = may_be_bounded and is_bounded(b, layer, flow, self.zero_bias)
                product = cast("Callable[..., Tensor] | None", None)
                if not in_one_product:
                    w, part_of_w = for_product
                    product = transpose(b, layer, w, part_of_w, signed, multiply=False, bounded=bounded)
                parts.append((product, v, weight))
                narrow = narrow and not layer.goes_filtered(bounded, signed)
                ups.append(up_through(b, layer, for_product[0], for_product[1], signed))
                if is_fused_input(b, layer):
                    terms += split_terms(b, layer, weight, positive, v) if signed else [(positive, v, x.index)]
                unpooled.append(None if exact else unpooled_transpose(b, layer, weight, positive, signed))
        sign_of = b.sign_slot(x) if signed else None
        times = None if terms else layer.factor_of(bounded=False, signed=signed)

        def total(flow: Tensor, x: Tensor | None, *given: Tensor) -> Tensor:
            vs, rest = given[: len(parts)], given[len(parts) :]
            results = [transposed(flow, None, v, x, *rest) for (transposed, *_), v in zip(parts, vs, strict=True)]
            return results[0] if len(results) == 1 else results[0].add_(results[1])

        if in_one_product:
            weights = [layer.weight, layer.negated], [layer.positive, layer.negated_positive]
            both_parts = reduced_transpose_of_both(b, layer, *weights, signed)

            def total(flow: Tensor, x: Tensor | None, *given: Tensor) -> Tensor:
                return both_parts(flow, given[:2], x, *given[2:])

        elif len(parts) == 2 and not signed and not exact:
            total = transpose_of_both(layer, [layer.positive, layer.negated_positive], total) or total

        def total_up(t: Tensor, x: Tensor | None, *vs: Tensor) -> Tensor:
            results = [up(t, None, v, x) for up, v in zip(ups, vs, strict=True)]
            return results[0] if len(results) == 1 else results[0].add_(results[1])

        def total_unpooled(flow: Tensor, index: Tensor, pool: Any, x: Tensor | None, *vs: Tensor) -> Tensor:
            results = [transposed(flow, index, pool, None, v, x) for transposed, v in zip(unpooled, vs, strict=True)]
            return results[0] if len(results) == 1 else results[0].add_(results[1])

        form = None if exact else sparse_form(b, layer, [(weight, v, True) for _, v, weight in parts], sign_of)
        if terms:
            send_from_input(b, layer, flow, terms, None)
            return
        slots = [sign_of, *(v for _, v, _ in parts)]
        both = None if None in unpooled else total_unpooled
        run = in_float32(total, b.dtype) if exact else total
        up = in_float32(total_up, b.dtype) if exact else total_up
        if times is not None:
            slots, up, both = [*slots, times], without_last(up), both and without_last(both)
        work = layer.work * len(parts)
        place = [flow.register], slots, x.numel, work, form
        register = b.step(run, *place, unpooled=both, takes_bf16=narrow, up=up)
        b.send(x, Flow(register, Factor(x)))


def textbook(
    layer: Affine,
    x: Tensor,
    R: Tensor,
    st: Stabilize,
    alpha: float,
    beta: float,
    zero_bias: bool = False,
) -> tuple[Tensor, Ledger]:
    """LRP-alpha-beta: ``R_i = sum_j (alpha (x_i w_ij)+ / st(P_j + b_j+) - beta (x_i w_ij)- / st(N_j + b_j-)) R_j``.

    The ledger is that of the positive part times alpha minus that of the negative part times beta; all of it adds up to
    ``(alpha - beta) R.sum()``.

    Source: Bach et al. 2015, eq. 60.
    """
    above, gains = redistribute(positive_products(layer, x), bias_of(layer, x, positive_part, zero_bias), R, st)
    below, losses = redistribute(negative_products(layer, x), bias_of(layer, x, negative_part, zero_bias), R, st)
    ledger = Ledger(
        bias=alpha * gains.bias - beta * losses.bias,
        stabilizer=alpha * gains.stabilizer - beta * losses.stabilizer,
        dead=alpha * gains.dead - beta * losses.dead,
    )
    return alpha * above - beta * below, ledger
