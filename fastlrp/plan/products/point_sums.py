"""Coefficients of sums that :mod:`fastlrp.plan.products.point` makes, in the pass that makes these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer, same_layout
from fastlrp.plan.products import packed, point
from fastlrp.plan.steps import Flow
from fastlrp.stabilizer import Stabilizer


def coefficients(
    b: Builder, layer: AffineLayer, flow: Flow, rule: str, alpha: float, stabilizer: float | Stabilizer,
    zero_bias: bool, negative: bool = False,
) -> tuple[int, int] | None:  # fmt: skip
    """Slots of u and v from the sums P = ``W+ x + b+``, times the arriving factor; None where there is no such way.

    Args:
        rule: ``"zplus"``, v of ``alpha``; ``"gamma"``, both, with negative sums ``z - P``; ``"raised"``, u of
            ``z + alpha P``, for relevance that passed a ReLU.
        negative: whether those of ``-W`` and ``-b`` are meant.
    """
    st = Stabilizer.ensure(stabilizer)
    is_point = layer.choice.is_point or layer.choice.is_full_point
    takes = is_point and st.is_absolute and b.is_nonnegative(layer.x) and b.dtype == torch.float32
    if not takes or layer.part_key(negative, zero_bias or layer.bias is None) in b.keyed:
        return None
    positive = layer.negated_positive if negative else layer.positive
    shift = None
    if layer.bias is not None and not zero_bias:
        shift = (-layer.bias if negative else layer.bias).detach().clamp(min=0)
    weights = layer.layouts.point(positive) if layer.choice.is_point else layer.layouts.packed(positive)
    assert isinstance(weights, point.Point | point.Full)
    of_operands = point.fits if layer.choice.is_point else _fits_full
    stride, epsilon = list(layer.geometry.stride), st.epsilon
    # A factor of two is multiplied in the same pass.
    value, scale = flow.factor.value, flow.factor.scale
    factors = [slot for slot in (None if value is None else value.index, scale) if slot is not None]
    reads_z = rule != "zplus"
    op = b.operation("elementwise_coefficients")

    def apart(x: Tensor, z: Tensor | None, f: Tensor | None) -> Any:
        sums = layer.sum_of_one_sign(x, positive, shift)
        if rule == "raised":
            assert z is not None
            return op(z + alpha * sums, None, None, f, "epsilon", 1, epsilon)
        above = sums if z is None else z
        return op(above, sums, None, f, rule, alpha, epsilon)

    def found(x: Tensor, *given: Tensor) -> Any:
        rest = list(given)
        z = rest.pop(0) if reads_z else None
        f = rest.pop(0) if rest else None
        times = rest.pop(0) if rest else None
        if not of_operands(x, z, f, times):
            f = f if f is None or times is None else f * times
            return tuple(same_layout(layer, t) for t in apart(x, z, f))
        kernel: Any = loaded()
        return kernel.conv_point_coefficients(x, weights.packed, shift, z, f, rule, alpha, epsilon, stride, times)

    # Behind a ReLU, what it gives is the output wherever relevance stands, so that the ReLU may write over the output.
    z_slot = layer.y.index if rule != "raised" or value is None else value.index
    ins = [layer.x.index, *([z_slot] if reads_z else []), *factors]
    first = b.cache(found, ins, layer.y.numel, outs=2)
    if rule != "gamma":
        b.slot_bytes[first + (rule == "raised")] = 0
    return first, first + 1


def _fits_full(*operands: Tensor | None) -> bool:
    return all(packed.fits(t) for t in operands if t is not None)
