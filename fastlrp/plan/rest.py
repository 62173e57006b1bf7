"""Sums of one sign as what is left of others: ``N = P - z`` of a convolution, whose output is ``z = P - N``.

P holds what raises an output, N what lowers it, both at least zero. Where z is below zero no digits cancel. Where it is
not, N keeps all but one digit as long as it is at least an eighth of z. Smaller ones, which a look at each finds, are
made again as plain sums, so that N is as exact as P up to a factor of nine, and exactly zero where nothing lowers an
output. It is a product less in each layer under alpha-beta. Where too many sums are small, sample by sample, N is a
product of its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.plan import packed
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.steps import Flow

MOST_SHARE = 8.0
"""A sum of which the output, or what is divided by it, is more than this many times as large is a plain one."""


def subtracts(layer: AffineLayer, signed: bool, zero_bias: bool) -> bool:
    """Whether negative sums are made so.

    Args:
        signed: whether the input may be below zero. zero_bias: whether sums leave the bias out, which z has.
    """
    if not layer.subtracts or signed or (zero_bias and layer.bias is not None):
        return False
    return hasattr(loaded(), "conv_rest")


def negative_sums(b: Builder, layer: AffineLayer, flow: Flow, positive: int, passed_relu: bool) -> int:
    """Slot of ``-(N + b-)``, for layers that :func:`subtracts` holds for.

    Args:
        flow: what is divided by the sums. positive: slot of ``P + b+``. passed_relu: whether that stands only where
            the output is above zero, which it is a factor of.
    """
    value = flow.factor.value
    whole = value if passed_relu and value is not None else layer.y
    divided = None if whole is value and flow.factor.scale is None else b.slot_of(flow.factor)
    weight, bias = layer.negated_positive, None if layer.bias is None else (-layer.bias).clamp(min=0)
    plain, g = layer.of_input(weight, bias), layer.geometry

    def difference(x: Tensor, z: Tensor, p: Tensor, *above: Tensor) -> Tensor:
        if not all(packed.fits(t) for t in (x, z, p, *above)):
            return plain(x)
        kernel: Any = loaded()
        factor = above[0] if above else None
        found: Tensor
        found, kept = kernel.conv_rest(
            z, p, x, weight, bias, factor, list(g.stride), list(g.padding), list(g.dilation), MOST_SHARE
        )
        if not any(kept):
            return plain(x)
        for row, is_kept in enumerate(kept):
            if not is_kept:
                found[row : row + 1] = plain(x[row : row + 1])
        return found

    ins = [layer.x.index, whole.index, positive, *([] if divided is None else [divided])]
    key = None if flow.factor.scale is not None else ("rest", layer.node, value)
    return b.cache(difference, ins, layer.y.numel, key=key)
