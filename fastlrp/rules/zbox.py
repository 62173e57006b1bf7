"""LRP-zB: inputs within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten.conv import few_channels
from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import only_positive_outputs
from fastlrp.plan.input_terms import is_fused_input, send_from_input
from fastlrp.plan.layer import AffineLayer, same_layout
from fastlrp.plan.narrow import NARROW, representable, wide
from fastlrp.plan.products.rest import box_coefficient
from fastlrp.plan.products.sparse_form import sparse_form
from fastlrp.plan.products.transposes import transpose
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply
from fastlrp.plan.ups import up_through
from fastlrp.reference.redistribution import (
    Affine,
    Ledger,
    Stabilize,
    negative_part,
    part_of,
    positive_part,
    redistribute,
)
from fastlrp.rules.rule import WeightRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True, eq=False)
class ZBox(WeightRule):
    """LRP-zB for inputs in a box: ``R_i = sum_j (x_i w_ij - l_i w_ij+ - h_i w_ij-) / st(W x - l W+ - h W-)_j R_j``.

    The denominator is the sum of the numerators: biases cancel.

    Args:
        low, high: lowest and highest possible input, number or tensor that broadcasts to ``(1, C, H, W)``
            (``(1, 3, 1, 1)`` for bounds per channel), the same for all samples, in the units of the model's own
            (normalised) input.
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.first(), rules.ZBox(0.0, 1.0)))
        relevance = record.under(mine).relevance("top1")

    Source: Montavon et al. 2017, eq. 13.
    """

    low: float | Tensor
    high: float | Tensor
    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bounds("ZBox", self.low, self.high)

    def __str__(self) -> str:
        return f"ZBox({_extent(self.low)}, {_extent(self.high)}, {self.stabilizer})"

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        low, high = (_expanded(bound, x) for bound in (self.low, self.high))
        return textbook(layer, x, R, Stabilizer.ensure(self.stabilizer), low, high)

    def lower(self, b: Builder, layer: AffineLayer, flow: Flow) -> None:
        """``R = (x-l) * W+^T s + (x-h) * W-^T s``, with ``z = W+ (x-l) + W- (x-h)``: two products, not three."""
        x = layer.x
        weight = layer.weight
        low, high = (_bound(layer, bound) for bound in (self.low, self.high))
        positive, negative = weight.clamp(min=0), weight.clamp(max=0)
        stabilizer = Stabilizer.ensure(self.stabilizer)
        factor, epsilon = b.slot_of(flow.factor), stabilizer.epsilon
        exact = stabilizer.is_absolute and b.dtype in (torch.float32, torch.float64)
        # Of an input outside the box the sums have terms of both signs, which cancel: digits of float32 are needed, in
        # models of 16 bits also of the differences to the bounds.
        of_above, of_below = layer.of_input(wide(positive), None), layer.of_input(wide(negative), None)
        is_narrow, bounds = b.dtype in NARROW, (wide(low), wide(high))
        at_once = b.operation("elementwise_coefficients") if exact else None
        above = b.cache(lambda x: _minus(x, low), [x.index], x.numel)
        below = b.cache(lambda x: _minus(x, high), [x.index], x.numel)

        def coefficient(above: Tensor, below: Tensor, f: Tensor | None = None) -> Any:
            if is_narrow:
                above, below = (_minus(wide(x), bound) for x, bound in zip((above, below), bounds, strict=True))
            z = of_above(above).add_(of_below(below))
            if at_once is not None:
                return same_layout(layer, at_once(z, None, None, f, "epsilon", 1, epsilon)[0])
            inverse = stabilizer.reciprocal(z)
            quotient = inverse if f is None else inverse * f
            return same_layout(layer, representable(quotient, z.to(b.dtype), b.dtype))

        made: tuple[Callable[..., Tensor], int] | None = None
        if at_once is not None:
            passed_relu, parts = only_positive_outputs(layer, flow), (positive, negative)
            made = box_coefficient(b, layer, flow, low, high, parts, epsilon, passed_relu, coefficient)
        run_u, output = (coefficient, []) if made is None else (made[0], [made[1]])
        read = [x.index, x.index] if is_narrow else [above, below]
        ins = [*read, *output, *([] if factor is None else [factor])]
        u = b.cache(run_u, ins, layer.y.numel)
        form = sparse_form(b, layer, [(positive, u, False), (negative, u, False)], factors=(above, below))
        if is_fused_input(b, layer):
            send_from_input(b, layer, flow, [(positive, u, above), (negative, u, below)], form)
            return
        relevance_in_box = _in_one_product if _has_few_inputs(layer) else _in_two_products
        run = relevance_in_box(b, layer, positive, negative)

        first_up, second_up = (up_through(b, layer, w, None, signed=False) for w in (positive, negative))

        def up(t: Tensor, u: Tensor, above: Tensor, below: Tensor) -> Tensor:
            return first_up(multiply(t, above), u, None, None).add_(second_up(multiply(t, below), u, None, None))

        slots = [u, above, below]
        place = [flow.register], slots, x.numel, 2 * layer.work, form
        # Of both parts side by side there may be too many channels for the kernel that takes them few.
        few = layer.choice.is_narrow_few and few_channels(torch.cat([positive, negative], 1), False, 1)
        b.send(x, Flow(b.step(run, *place, takes_bf16=layer.choice.is_reduced or few, up=up)))


def _has_few_inputs(layer: AffineLayer) -> bool:
    """Whether both products take as long as one: oneDNN computes 16 channels at a time."""
    plain = layer.node.kind == "conv" and layer.geometry.is_plain and not layer.choice.is_reduced
    return plain and few_channels(layer.weight, False, 1)


def _in_one_product(b: Builder, layer: AffineLayer, positive: Tensor, negative: Tensor) -> Callable[..., Tensor]:
    both = transpose(b, layer, torch.cat([positive, negative], 1), None, signed=False, multiply=False)

    def relevance_in_box(flow: Tensor, u: Tensor, above: Tensor, below: Tensor) -> Tensor:
        by_positive, by_negative = both(flow, u, None, None).chunk(2, 2)
        return multiply(by_positive, above).addcmul_(by_negative, below.unsqueeze(1))

    return relevance_in_box


def _in_two_products(b: Builder, layer: AffineLayer, positive: Tensor, negative: Tensor) -> Callable[..., Tensor]:
    first = transpose(b, layer, positive, None, signed=False, multiply=True)
    second = transpose(b, layer, negative, None, signed=False, multiply=True)

    def relevance_in_box(flow: Tensor, u: Tensor, above: Tensor, below: Tensor) -> Tensor:
        return first(flow, u, None, above).add_(second(flow, u, None, below))

    return relevance_in_box


def textbook(
    layer: Affine, x: Tensor, R: Tensor, st: Stabilize, low: float | Tensor, high: float | Tensor
) -> tuple[Tensor, Ledger]:
    """LRP-zB: ``R_i = sum_j (x_i w_ij - l_i w_ij+ - h_i w_ij-) / st(z_j) R_j``, ``z = W x - W+ l - W- h``.

    The biases ``b - b+ - b-`` cancel. ``low`` and ``high`` are numbers or tensors that broadcast to ``x``.

    Source: Montavon et al. 2017, eq. 13.
    """
    lowest = torch.as_tensor(low, dtype=x.dtype, device=x.device).expand_as(x)
    highest = torch.as_tensor(high, dtype=x.dtype, device=x.device).expand_as(x)
    parts = [
        part_of(layer, layer.weight, x),
        part_of(layer, -positive_part(layer.weight), lowest),
        part_of(layer, -negative_part(layer.weight), highest),
    ]
    return redistribute(parts, None, R, st)


def _check_bounds(name: str, low: Any, high: Any) -> None:
    # Numbers stand on the CPU also where the caller's default device is another one.
    bounds = [bound if isinstance(bound, Tensor) else torch.as_tensor(bound, device="cpu") for bound in (low, high)]
    try:
        ordered = bool((bounds[0] <= bounds[1]).all())
    except RuntimeError as error:
        raise ValueError(f"{name}: low and high do not broadcast against each other: {error}") from error
    if not all(bool(torch.isfinite(bound).all()) for bound in bounds):
        raise ValueError(f"{name}: low and high must be finite, got low={low!r}, high={high!r}")
    if not ordered:
        raise ValueError(f"{name}: low must not exceed high, got low={low!r}, high={high!r}")


def _extent(bound: Any) -> str:
    """A bound in one line: a number, or the range of a tensor's entries."""
    if not isinstance(bound, Tensor):
        return f"{bound:g}"
    low, high = float(bound.min()), float(bound.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _bound(layer: AffineLayer, bound: float | Tensor) -> Tensor:
    """Of the layer's own input; where the layer pads that by itself, both bounds are zero as the padding is."""
    found = torch.as_tensor(bound, dtype=layer.weight.dtype, device=layer.weight.device)
    if "own_padding" not in layer.node.attributes:
        return found
    try:
        return layer.of_each_input(found)
    except RuntimeError as error:
        raise _no_bounds(found, layer.x.sizes) from error


def _minus(x: Tensor, bound: Tensor) -> Tensor:
    if bound.dim() == 0:
        return x - bound
    try:
        return x - bound.expand(x.shape[1:] if bound.dim() < x.dim() else (1, *x.shape[1:]))
    except RuntimeError as error:
        raise _no_bounds(bound, x.shape) from error


def _no_bounds(bound: Tensor, shape: Sequence[int]) -> ValueError:
    given = tuple(shape)
    fitting = f"pass numbers, or tensors of shape {(1, *given[1:])} in which any size may be 1"
    if bound.dim() == len(given) and bound.shape[0] != 1:
        return ValueError(
            f"ZBox: bounds are the same for all samples, so that their first axis has to be 1, got shape "
            f"{tuple(bound.shape)} at an input {given}: {fitting}; explain samples with bounds of their own one by one"
        )
    return ValueError(
        f"ZBox: bounds of shape {tuple(bound.shape)} do not broadcast to the layer's input {given}: {fitting}"
    )


def _expanded(bound: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=x.dtype, device=x.device).expand(1, *x.shape[1:])
