"""Sums of one sign as what is left of others: ``N = P - z`` of a convolution, whose output is ``z = P - N``.

P holds what raises an output, N what lowers it, both at least zero. Where z is below zero no digits cancel. Where it is
not, N keeps all but one digit as long as it is at least an eighth of z. Smaller ones, which a look at each finds, are
made again as plain sums, so that N is as exact as P up to a factor of nine, and exactly zero where nothing lowers an
output. It is a product less in each layer under alpha-beta, and what is divided by both sums comes from one pass that
reads P and z and never writes N. Where too many sums are small, sample by sample, N is a product of its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.plan import packed
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.steps import Flow
from fastlrp.stabilizer import Stabilizer

MOST_SHARE = 8.0
"""A sum of which the output, or what is divided by it, is more than this many times as large is a plain one."""


def subtracts(layer: AffineLayer, stabilizer: Stabilizer, signed: bool, zero_bias: bool) -> bool:
    """Whether negative sums are made so.

    Args:
        signed: whether the input may be below zero. zero_bias: whether sums leave the bias out, which z has.
    """
    if not layer.subtracts or signed or not stabilizer.is_absolute or (zero_bias and layer.bias is not None):
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
