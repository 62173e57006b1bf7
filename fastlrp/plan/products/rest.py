"""Sums of one sign as what is left of others: ``N = P - z`` of a convolution, whose output is ``z = P - N``.

P holds what raises an output, N what lowers it, both at least zero. Where z is below zero no digits cancel. Where it is
not, N keeps all but one digit as long as it is at least an eighth of z. Smaller ones, which a look at each finds, are
made again as plain sums, so that N is as exact as P up to a factor of nine, and exactly zero where nothing lowers an
output. It is a product less in each layer under alpha-beta, and what is divided by both sums comes from one pass that
reads P and z and never writes N. Where too many sums are small, sample by sample, N is a product of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products import packed
from fastlrp.plan.steps import Flow
from fastlrp.stabilizer import Stabilizer

MOST_SHARE = 8.0
"""A sum of which the output, or what is divided by it, is more than this many times as large is a plain one."""


def subtracts(layer: AffineLayer, stabilizer: Stabilizer, signed: bool, zero_bias: bool) -> bool:
    """Whether negative sums are made so.

    Args:
        signed: whether the input may be below zero. zero_bias: whether sums leave the bias out, which z has.
    """
    if not layer.choice.subtracts or signed or not stabilizer.is_absolute or (zero_bias and layer.bias is not None):
        return False
    return hasattr(loaded(), "conv_rest")


def _is_measured(layer: AffineLayer, flow: Flow, passed_relu: bool) -> bool:
    """Whether what is divided by the sums is as large as the layer's own outputs are, so that it tells a small sum.

    Winograd's filtering makes z to 1e-6 of the largest ones nearby. Where relevance itself arrives, as below gradients,
    or what a factor without units makes of another value, it may be anything beside a sum in a dark place.
    """
    value = flow.factor.value
    return passed_relu or value is layer.y or (value is not None and flow.factor.scale is None)


def both_coefficients(
    b: Builder, layer: AffineLayer, flow: Flow, epsilon: float, shares: tuple[float, float], positive: int,
    passed_relu: bool,
) -> tuple[int, int]:  # fmt: skip
    """Slots of ``alpha factor / st(P + b+)`` and ``beta factor / st(-(N + b-))``, where :func:`subtracts` is true.

    Args:
        flow: what arrives, which has the factor. epsilon: of the stabilizer. shares: alpha and beta. positive: slot of
            ``P + b+``. passed_relu: whether relevance stands only where the output is above zero, which it is a factor
            of.
    """
    if not _is_measured(layer, flow, passed_relu):
        b.divided.add(layer.y)  # So that z is a plain sum.
    value, factor = flow.factor.value, b.slot_of(flow.factor)
    whole = value if passed_relu and value is not None else layer.y
    weight, bias = layer.negated_positive, None if layer.bias is None else (-layer.bias).clamp(min=0)
    plain, g = layer.of_input(weight, bias), layer.geometry
    geometry = list(g.stride), list(g.padding), list(g.dilation)
    op = b.operation("elementwise_coefficients")

    def alone(sums: Tensor, f: Tensor | None, share: float) -> Tensor:
        found: Tensor = op(sums, sums, None, f, "zplus", share, epsilon)[1]
        return found

    def coefficients(x: Tensor, z: Tensor, p: Tensor, f: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not all(packed.fits(t) for t in (x, z, p, f) if t is not None):
            return alone(p, f, shares[0]), alone(plain(x), f, shares[1])
        kernel: Any = loaded()
        above, below, kept = kernel.conv_rest(z, p, x, weight, bias, f, *geometry, MOST_SHARE, *shares, epsilon)
        if not any(kept):
            return above, alone(plain(x), f, shares[1])
        for row in (row for row, is_kept in enumerate(kept) if not is_kept):
            below[row : row + 1] = alone(plain(x[row : row + 1]), None if f is None else f[row : row + 1], shares[1])
        return above, below

    ins = [layer.x.index, whole.index, positive, *([] if factor is None else [factor])]
    first = b.cache(coefficients, ins, layer.y.numel, outs=2)
    return first, first + 1


def box_coefficient(
    b: Builder, layer: AffineLayer, flow: Flow, low: Tensor, high: Tensor, parts: tuple[Tensor, Tensor],
    epsilon: float, passed_relu: bool, apart: Callable[..., Tensor],
) -> tuple[Callable[..., Tensor], int] | None:  # fmt: skip
    """``(x - l, x - h, output, factor) -> factor / st(W+ (x - l) + W- (x - h))``, and the output's slot; None if not.

    These sums are what they are at x = 0, the same for all inputs, and ``W x``, which is the output without its bias:
    no product at all where there were two. Where zero is in the box the first is at least zero, and what was said of N
    above holds for ``-W x`` in the place of z; W x has to be a plain sum. Where rounding of it is a tenth of its terms'
    sizes, these are at most ten times the sum.

    Args:
        low, high: l and h. parts: W+ and W-. passed_relu: as for :func:`both_coefficients`. apart: the same by both
            products, ``(x - l, x - h, factor)``.
    """
    inside = bool((low <= 0).all()) and bool((high >= 0).all())
    known = layer.choice.packs and b.products.filtered and hasattr(loaded(), "conv_rest_of_box")
    if not known or not inside or layer.choice.filters or not layer.geometry.is_plain or layer.geometry.groups != 1:
        return None
    value = flow.factor.value
    whole = value if passed_relu and value is not None else layer.y
    both, g = torch.cat([part.detach() for part in parts], 1), layer.geometry
    geometry = list(g.stride), list(g.padding), list(g.dilation)
    shift = None if layer.bias is None else layer.bias.detach()

    @cache
    def at_zero() -> Tensor:
        rows = torch.cat([-bound.expand(1, *layer.x.sizes) for bound in (low, high)], 1)
        return layer.apply(packed.last(rows), both, None)

    def coefficient(above: Tensor, below: Tensor, y: Tensor, f: Tensor | None = None) -> Tensor:
        if not all(packed.fits(t) for t in (above, below, y, f) if t is not None):
            return apart(above, below, f)
        kernel: Any = loaded()
        x = torch.cat([above, below], 1)
        given = y, at_zero(), x, both, shift, f
        found: Tensor
        found, kept = kernel.conv_rest_of_box(*given, *geometry, MOST_SHARE, epsilon)
        for row in (row for row, is_kept in enumerate(kept) if not is_kept):
            one = slice(row, row + 1)
            found[one] = apart(above[one], below[one], None if f is None else f[one])
        return found

    return coefficient, whole.index
