"""The coefficients of rules in two-coefficient form, made from denominators: two numbers for each output of a layer.

``R_in = x * W^T(uR) + x+ * W+^T(vR) + x- * W-^T(vR)``; the relevance that arrives is ``factor * register``, so what is
cached is ``u * factor`` and ``v * factor``. The steps that multiply by them: :mod:`fastlrp.plan.two_coefficients`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.input_terms import is_fused_input
from fastlrp.plan.layer import AffineLayer, same_layout
from fastlrp.plan.narrow import representable, wide
from fastlrp.plan.products import layer_calls
from fastlrp.plan.products.looked_sums import denominators, looked
from fastlrp.plan.steps import Factor, Flow, SweepPart
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Coefficients:
    """What a rule multiplies the arriving register with.

    Attributes:
        u, v: slots of the coefficients times the arriving factor, ``(B, *out)`` each; None where the rule has none.
            Both are None where nothing is to be multiplied: the plain product with the transposed weight.
        weight: ``W``, or what the rule makes of it.
        splits: whether ``v`` goes with ``W+`` where the input is positive and with ``W-`` where it is negative.
        gamma: of the generalised gamma rule, whose two products one sparse kernel does together; None for others.
        bounded: whether the arriving factor over the denominator is at most one in size wherever relevance stands, and
            what arrives is even (:mod:`fastlrp.plan.products.even`). An error that is small beside a layer's largest
            sums is then small beside its relevance, too.
    """

    u: int | None
    v: int | None
    weight: Tensor
    splits: bool
    gamma: float | None = None
    bounded: bool = False


def goes_in_float32(b: Builder, layer: AffineLayer, flow: Flow) -> bool:
    """True where coefficients may be out of float16's range: relevance arrives that is no multiple of the output."""
    multiplies = layer.node.kind != "batch_norm" and not is_fused_input(b, layer)
    return b.dtype == torch.float16 and flow.factor == Factor() and multiplies


def only_positive_outputs(layer: AffineLayer, flow: Flow) -> bool:
    """True if relevance can only stand where the layer's output is above zero: it passed a ReLU in chained form."""
    value = flow.factor.value
    producer = None if value is None else value.producer
    return producer is not None and producer.operation == "relu" and producer.inputs[0] is layer.y


def is_raised(layer: AffineLayer, flow: Flow, zero_bias: bool) -> bool:
    """Whether where relevance stands an output is at most the sum of what raises it, its bias included."""
    return only_positive_outputs(layer, flow) and (layer.bias is None or not zero_bias)


def is_bounded(b: Builder, layer: AffineLayer, flow: Flow, zero_bias: bool) -> bool:
    """The same, and what arrives is even."""
    return layer.y not in b.uneven and is_raised(layer, flow, zero_bias)


def output_slot(b: Builder, layer: AffineLayer, zero_bias: bool) -> int:
    """Slot of the layer's output, without its bias where the rule leaves that out."""
    if not zero_bias or layer.bias is None:
        return layer.y.index
    return b.cache(layer.of_input(layer.weight, None), [layer.x.index], layer.y.numel, key=("no bias", layer.node))


def of_changed_weights(
    b: Builder,
    layer: AffineLayer,
    flow: Flow,
    stabilizer: float | Stabilizer,
    modify: Callable[[Tensor], Tensor],
    zero_bias: bool,
    modify_bias: bool = True,
    z: int | None = None,
    raises: bool = False,
) -> Coefficients:
    """Those of epsilon for the weight ``modify(W)``: its own denominators, one product; or in the slot ``z``.

    ``raises``: whether no output above zero is larger than its denominator.
    """
    bias = None if zero_bias else layer.bias
    weight, shift = modify(layer.weight), bias if bias is None or not modify_bias else modify(bias)
    stabilizer = Stabilizer.ensure(stabilizer)
    if b.dtype == torch.float16 and z is None:
        weight, shift, stabilizer = _in_range(layer, bias, modify, modify_bias, stabilizer)
    raised, bounded = raises and is_raised(layer, flow, zero_bias), raises and is_bounded(b, layer, flow, zero_bias)
    if z is None:
        least = flow.factor.value if raised and (layer.choice.filters_sums if bounded else layer.choice.looks) else None
        if least is None:
            z = b.cache(layer.of_input(weight, shift), [layer.x.index], layer.y.numel)
        else:
            b.note_filtered("denominators", looked=not bounded)
            sums = layer.of_input(weight, shift, True, True) if bounded else looked(layer, weight, shift)
            z = b.cache(sums, [layer.x.index, least.index], layer.y.numel)
    u, _ = pair(b, layer, "epsilon", 1, stabilizer, [z, None, None, b.slot_of(flow.factor)])
    return Coefficients(u, None, weight, splits=False, bounded=bounded)


def _in_range(
    layer: AffineLayer, bias: Tensor | None, modify: Callable[[Tensor], Tensor], modify_bias: bool, st: Stabilizer
) -> tuple[Tensor, Tensor | None, Stabilizer]:
    """``modify(W)``, its bias and epsilon, all divided by how much larger than W it is: relevance is the same.

    ``W + gamma W+`` times ``1 / z``, which is as much smaller, leaves less of relevance than float16 holds.
    """
    dtype, weight = layer.weight.dtype, modify(wide(layer.weight))
    shift = bias if bias is None or not modify_bias else modify(wide(bias))
    if not weight.numel():
        return weight.to(dtype), None if shift is None else shift.to(dtype), st
    by = max(1.0, float(weight.abs().max()) / max(float(layer.weight.abs().max()), torch.finfo(torch.float32).tiny))
    found = (weight / by).to(dtype), None if shift is None else (wide(shift) / by).to(dtype)
    return *found, st if st.relative else replace(st, epsilon=st.epsilon / by)


def part_coefficient(
    b: Builder, layer: AffineLayer, flow: Flow, st: Stabilizer, sums: int, share: float, negative: bool = False
) -> int:
    """Slot of ``share * factor / st(P + b+)``; negative: the same of ``-W`` and ``-b``. ``sums``: slot of these."""
    st = st.mirrored() if negative else st
    return pair(b, layer, "zplus", share, st, [sums, sums, None, b.slot_of(flow.factor)])[1]


def part(
    b: Builder, layer: AffineLayer, zero_bias: bool, negative: bool = False, flow: Flow | None = None,
    in_full: bool = False,
) -> int:  # fmt: skip
    """Slot of ``P + b+``; negative: of ``-(N + b-)``, which is the same for ``-W`` and ``-b``.

    Args:
        flow: what arrives, where the sums are read as denominators of it alone. in_full: whether they are of float32
            although the layer's products are of bfloat16.
    """
    signed = not b.is_nonnegative(layer.x)
    weight = layer.negated if negative else layer.weight
    positive = layer.negated_positive if negative else layer.positive
    shift = None
    if layer.bias is not None and not zero_bias:
        shift = (-layer.bias if negative else layer.bias).clamp(min=0)
    value = None if flow is None or not is_bounded(b, layer, flow, zero_bias) else flow.factor.value
    if layer.choice.filters_sums and not signed and not negative and value is not None:
        b.note_filtered("denominators")
        sums = layer.of_input(positive, shift, filtered=True, takes_least=True)
        return b.cache(sums, [layer.x.index, value.index], layer.y.numel, key=("bounded part", layer.node))
    together = layer.node.kind == "conv" and layer.geometry.is_plain
    below = weight.clamp(max=0) if signed else None
    both = torch.cat([positive, below], 1) if below is not None and together else None
    looks = flow is not None and (layer.choice.looks if in_full else layer.choice.looks_down)
    divided = b.slot_of(flow.factor) if flow is not None and looks else None

    if divided is not None:
        b.note_filtered("denominators", looked=True)

    def sum_of(weight: Tensor) -> Callable[..., Tensor]:
        if divided is not None:
            return denominators(layer, weight, shift)
        return layer.of_input(weight, shift) if in_full else lambda x: layer.sum_of_one_sign(x, weight, shift)

    of_positive, of_both = sum_of(positive), None if both is None else sum_of(both)

    def positive_sum(x: Tensor, *given: Any) -> Tensor:
        sign = given[0] if signed else False
        rest = given[signed:]
        if sign is False:
            return of_positive(x, *rest)
        assert below is not None
        if of_both is not None:
            return of_both(torch.cat([x.clamp(min=0), x.clamp(max=0)], 1), *rest)
        above = layer.sum_of_one_sign(x.clamp(min=0), positive, shift)
        return above.add_(layer.sum_of_one_sign(x.clamp(max=0), below, None))

    ins = [layer.x.index] + ([b.sign_slot(layer.x)] if signed else [])
    name = layer.part_key(negative, shift is None, in_full)
    if flow is None or divided is None:
        return b.cache(positive_sum, ins, layer.y.numel, key=name)
    key = None if flow.factor.scale is not None else ("looked", *name, flow.factor.value)
    return b.cache(positive_sum, [*ins, divided], layer.y.numel, key=key)


def subtracts_itself(b: Builder, stabilizer: Stabilizer) -> bool:
    """Whether the kernel of gamma's coefficients takes ``z - positive`` where no negative sums are given.

    Otherwise it reads and writes six maps, and the difference three more.
    """
    full = b.dtype in (torch.float32, torch.float64)
    return full and stabilizer.is_absolute and b.backend_of("elementwise_coefficients") == "cpu"


def pair(
    b: Builder,
    layer: AffineLayer,
    rule: str,
    alpha: float,
    stabilizer: Stabilizer,
    slots: list[int | None],
) -> tuple[int, int]:
    """Two slots, u and v, from ``(z, positive, negative, factor)``; one of them may hold None."""
    if stabilizer.is_absolute:
        op, epsilon = b.operation("elementwise_coefficients"), stabilizer.epsilon

        def coefficients_of(z: Tensor, p: Tensor | None, n: Tensor | None, f: Tensor | None) -> Any:
            return op(z, p, n, f, rule, alpha, epsilon)
    else:

        def coefficients_of(z: Tensor, p: Tensor | None, n: Tensor | None, f: Tensor | None) -> Any:
            found = _general_coefficients(wide(z), wide(p), wide(n), wide(f), rule, alpha, stabilizer)
            return tuple(None if t is None else t.to(z.dtype) for t in found)

    present = [slot for slot in slots if slot is not None]
    missing = [slot is None for slot in slots]
    exact = slots[3] is None and goes_in_float32(b, layer, Flow(0))
    narrow, dtype = b.dtype == torch.float16, torch.float32 if exact else b.dtype

    def coefficients(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        arguments: list[Any] = [None if absent else next(rest) for absent in missing]
        u, v = coefficients_of(*map(wide, arguments)) if exact else coefficients_of(*arguments)
        if narrow:
            u, v = representable(u, tensors[0], dtype), representable(v, tensors[0], dtype)
        return same_layout(layer, u), same_layout(layer, v)

    if stabilizer.is_absolute and not (exact or narrow):  # As a rule: without a question that has one answer.
        is_map = layer.node.kind == "conv" and len(layer.y.shape) == 4 and b.device.type in ("cpu", "cuda")
        coefficients = layer_calls.coefficients(op, missing, (rule, alpha, epsilon), is_map)
    swept = None
    if stabilizer.is_absolute and not narrow and (rule != "gamma" or slots[2] is not None):
        swept = SweepPart("coefficients", (rule, alpha, stabilizer.epsilon), tuple(slots))
    first = b.cache(coefficients, present, layer.y.numel, outs=2, part=swept)
    if rule in ("epsilon", "zplus"):
        b.slot_bytes[first + (rule == "epsilon")] = 0
    return first, first + 1


def _general_coefficients(
    z: Tensor, p: Any, n: Any, f: Tensor | None, rule: str, alpha: float, st: Stabilizer
) -> tuple[Tensor | None, Tensor | None]:
    """The same coefficients for any stabilizer."""

    def scaled(value: Tensor) -> Tensor:
        return value if f is None else torch.where(f == 0, 0.0, value * f)

    if rule == "epsilon":
        return scaled(st.reciprocal(z)), None
    if rule == "zplus":
        return None, scaled(alpha * st.reciprocal(p))
    above, below = scaled(st.reciprocal(z + alpha * p)), scaled(st.reciprocal(z + alpha * n))
    u = torch.where(z > 0, above, torch.where(z < 0, (1 + alpha) * below, 0.0))
    v = torch.where(z > 0, alpha * above, torch.where(z < 0, -alpha * below, 0.0))
    return u, v
