"""The products of two weights, each with its coefficient, as one with the weights one behind the other.

Two products would write their results and add them up: five passes over what one writes once, a tenth of the way down
under alpha-beta for eight images of ResNet-50. Where products are filtered, one puts the tiles of the sum together
where two put together their own: VGG-16 under alpha-beta, one image and target, 0.96 of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten.conv import few_channels
from fastlrp.backends.extension import loaded
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products import looked, packed
from fastlrp.plan.products.by_rows import Rows, by_rows


def transpose_of_both(
    layer: AffineLayer, positives: Sequence[Tensor], plain: Callable[..., Tensor]
) -> Callable[..., Tensor] | None:
    """``(register, input, *vs) -> c``, the sum of what each weight and its coefficient v give, with one sum's rounding.

    None where there is no such way: for inputs of few channels, and where products are filtered without a look.

    Args:
        layer: whose input is never below zero. positives: weights of it. plain: the same for operands that
            :func:`fastlrp.plan.products.packed.fits` is not true of. It is given what
            :class:`fastlrp.plan.products.looked.Looked` wants to know last, where the layer's products are looked at.
    """
    if not layer.choice.packs or layer.choice.is_reduced or layer.geometry.groups != 1:
        return None
    if layer.choice.filters_sums:
        spread = layer.choice.looks and all(looked.spreads(weight, down=True) for weight in positives)
        return _filtered(layer, positives, plain) if spread and len(positives) == 2 else None
    if few_channels(layer.weight, layer.geometry.transposed, 1):
        return None
    of_point = layer.layouts.transpose_of_both(positives)
    if of_point is not None:
        return lambda flow, x, *vs: (
            of_point.through(flow, vs) if all(packed.fits(t) for t in (flow, *vs)) else plain(flow, x, *vs)
        )
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


def _filtered(layer: AffineLayer, positives: Sequence[Tensor], plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``(register, input, v, v, times) -> c``, for samples and targets that a look allows the filtering of both for.

    What flows is looked at with each coefficient, and the sum is compared with what each product rounds. Other rows
    take ``plain``, which looks at each product by itself.
    """
    product = layer.layouts.filtered_of_both(*positives)
    sizes = [weight.detach().abs().amax((0, 2, 3)) for weight in positives]

    def is_even(rows: Tensor, vs: Sequence[Tensor]) -> list[bool]:
        kernel: Any = loaded()
        found = [kernel.winograd_even(rows, v, product.padding, looked.MOST) for v in vs]
        return [all(each) for each in zip(*found, strict=True)]

    def is_told(sums: Tensor, rows: Tensor, vs: Sequence[Tensor], times: Tensor) -> list[bool]:
        kernel: Any = loaded()
        given = [
            (sums, rows, v, times, size, product.padding, looked.MOST_NOISE) for v, size in zip(vs, sizes, strict=True)
        ]
        return [all(each) for each in zip(*(kernel.winograd_tells(*one) for one in given), strict=True)]

    def through(flow: Tensor, x: Tensor | None, *given: Tensor) -> Tensor:
        vs = given[:2]
        if not all(packed.fits(t) for t in (flow, *given)):
            return plain(flow, x, *given)

        def filtered(rows: Rows) -> tuple[Tensor, list[bool]]:
            chosen, own = rows.of_flow(flow), [rows.of_samples(t) for t in given]
            flat = chosen.flatten(0, 1)
            sums = product(flat, scale=own[0], second=own[1])
            return sums.view(*chosen.shape[:2], *sums.shape[1:]), is_told(sums, flat, own[:2], own[2])

        def others(rows: Rows) -> Tensor:
            return plain(rows.of_flow(flow), x, *(rows.of_samples(t) for t in given))

        return by_rows(flow.shape[:2], is_even(flow.flatten(0, 1), vs), filtered, others)

    return through
