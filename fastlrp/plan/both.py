"""The products of two weights, each with its coefficient, as one with the weights one behind the other.

Two products would write their results and add them up: five passes over what one writes once, a tenth of the way down
under alpha-beta for eight images of ResNet-50.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastlrp.aten.conv import few_channels
from fastlrp.plan import packed
from fastlrp.plan.layer import AffineLayer


def transpose_of_both(
    layer: AffineLayer, positives: Sequence[Tensor], plain: Callable[..., Tensor]
) -> Callable[..., Tensor] | None:
    """``(register, input, *vs) -> c``, the sum of what each weight and its coefficient v give, with one sum's rounding.

    None where there is no such way: where products may be filtered, and for inputs of few channels.

    Args:
        layer: whose input is never below zero. positives: weights of it. plain: the same for operands that
            :func:`fastlrp.plan.packed.fits` is not true of.
    """
    if not layer.packs or layer.is_reduced or layer.filters_sums or layer.geometry.groups != 1:
        return None
    if few_channels(layer.weight, layer.geometry.transposed, 1):
        return None
    product = layer.layouts.transpose_of(lambda: packed.last(torch.cat([w.detach() for w in positives], 0)))
    if product is None:
        return None

    def through(flow: Tensor, x: Tensor | None, *vs: Tensor) -> Tensor:
        if not all(packed.fits(t) for t in (flow, *vs)):
            return plain(flow, x, *vs)
        batch, targets, channels, *size = flow.shape
        shape = batch * targets, len(vs) * channels, *size
        rows = torch.empty(shape, dtype=flow.dtype, device=flow.device, memory_format=torch.channels_last)
        parts = rows.view(batch, targets, *shape[1:]).chunk(len(vs), 2)
        for part, v in zip(parts, vs, strict=True):
            torch.mul(flow, v.unsqueeze(1), out=part)
        result: Tensor = product(rows)
        return result.view(batch, targets, *result.shape[1:])

    return through
