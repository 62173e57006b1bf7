"""LRP-alpha-beta."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
        x, signed, exact = layer.x, not b.is_nonnegative(layer.x), goes_in_float32(b, layer, flow)
        in_one_product = self.alpha != 0 != self.beta and layer.choice.adds_in_one_product
        halves = self._halves(b, layer, flow, signed, exact, in_one_product)
        sign_of = b.sign_slot(x) if signed else None
        if is_fused_input(b, layer):
            send_from_input(b, layer, flow, _input_terms(b, layer, halves, signed), None)
            return
        run = _down_in_one(b, layer, signed) if in_one_product else _down(layer, halves, signed, exact)
        up, pooled = _sum_of([half.up for half in halves]), [half.unpooled for half in halves]
        unpooled = None if None in pooled else _sum_of(pooled, before=3)
        if exact:
            run, up = in_float32(run, b.dtype), in_float32(up, b.dtype)
        form = None if exact else sparse_form(b, layer, [(half.weight, half.v, True) for half in halves], sign_of)
        slots = [sign_of, *(half.v for half in halves)]
        times = layer.factor_of(bounded=False, signed=signed)
        if times is not None:
            slots, up, unpooled = [*slots, times], without_last(up), unpooled and without_last(unpooled)
        narrow = layer.choice.is_reduced and not any(layer.goes_filtered(half.bounded, signed) for half in halves)
        place = [flow.register], slots, x.numel, layer.work * len(halves), form
        register = b.step(run, *place, unpooled=unpooled, takes_bf16=narrow, up=up)
        b.send(x, Flow(register, Factor(x)))

    def _halves(
        self, b: Builder, layer: AffineLayer, flow: Flow, signed: bool, exact: bool, in_one_product: bool
    ) -> list[_Half]:
        """The positive part and the negative one, without that whose share is zero."""
        st, shares = Stabilizer.ensure(self.stabilizer), (self.alpha, -self.beta)
        vs_of_both = None
        if all(shares) and subtracts(layer, st, signed, self.zero_bias):
            sums = part(b, layer, self.zero_bias, flow=flow, in_full=True)
            passed_relu = only_positive_outputs(layer, flow)
            vs_of_both = both_coefficients(b, layer, flow, st.epsilon, shares, sums, passed_relu)
        halves = []
        for negative, share in zip((False, True), shares, strict=True):
            if share:
                v = vs_of_both[negative] if vs_of_both else self._coefficient(b, layer, flow, st, share, negative)
                weight = layer.negated if negative else layer.weight
                positive = layer.negated_positive if negative else layer.positive
                whole, part_of_it = (wide(weight), wide(positive)) if exact else (weight, positive)
                may_be_bounded = not (negative or exact or in_one_product)
                bounded = may_be_bounded and is_bounded(b, layer, flow, self.zero_bias)
                product: Callable[..., Tensor] | None = None
                if not in_one_product:
                    product = transpose(b, layer, whole, part_of_it, signed, multiply=False, bounded=bounded)
                up = up_through(b, layer, whole, part_of_it, signed)
                unpooled = None if exact else unpooled_transpose(b, layer, weight, positive, signed)
                halves.append(_Half(weight, positive, v, bounded, product, up, unpooled))
        return halves

    def _coefficient(
        self, b: Builder, layer: AffineLayer, flow: Flow, st: Stabilizer, share: float, negative: bool
    ) -> int:
        """The slot of a share over the sums of one part."""
        mirrored = st.mirrored() if negative else st
        fused = point_coefficients(b, layer, flow, "zplus", share, mirrored, self.zero_bias, negative)
        if fused is not None:
            return fused[1]
        sums = part(b, layer, self.zero_bias, negative, flow)
        return part_coefficient(b, layer, flow, st, sums, share, negative)


@dataclass(frozen=True, eq=False)
class _Half:
    """The positive or the negative part of one layer.

    Attributes:
        weight, positive: the layer's weight, negated for the negative part, and what of it is positive.
        v: the slot of its coefficient. bounded: see :func:`fastlrp.plan.coefficients.is_bounded`.
        product, unpooled: one product of the way down, and that from below a max-pool. up: one of the way up.
    """

    weight: Any
    positive: Any
    v: int
    bounded: bool
    product: Callable[..., Tensor] | None
    up: Callable[..., Tensor]
    unpooled: Callable[..., Tensor] | None


def _input_terms(b: Builder, layer: AffineLayer, halves: Sequence[_Half], signed: bool) -> list[Term]:
    if not signed:
        return [(half.positive, half.v, layer.x.index) for half in halves]
    return [term for half in halves for term in split_terms(b, layer, half.weight, half.positive, half.v)]


def _down(layer: AffineLayer, halves: Sequence[_Half], signed: bool, exact: bool) -> Callable[..., Tensor]:
    apart = _sum_of([half.product for half in halves])
    if len(halves) < 2 or signed or exact:
        return apart
    return transpose_of_both(layer, [half.positive for half in halves], apart) or apart


def _down_in_one(b: Builder, layer: AffineLayer, signed: bool) -> Callable[..., Tensor]:
    weights = [layer.weight, layer.negated], [layer.positive, layer.negated_positive]
    product = reduced_transpose_of_both(b, layer, *weights, signed)
    return lambda flow, x, *given: product(flow, given[:2], x, *given[2:])


def _sum_of(products: Sequence[Any], before: int = 1) -> Callable[..., Tensor]:
    """All products added up, ``(*first, x, v of each, *rest)``; ``before``: how many operands come first."""

    def added(*given: Any) -> Tensor:
        first, x, vs = given[:before], given[before], given[before + 1 :]
        rest = vs[len(products) :]
        results = [product(*first, None, v, x, *rest) for product, v in zip(products, vs, strict=False)]
        return results[0] if len(results) == 1 else results[0].add_(results[1])

    return added


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
