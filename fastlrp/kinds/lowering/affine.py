"""Layers with a weight: convolution, linear, batch norm. The two-coefficient form and the rules at the input.

``R_in = x * W^T(uR) + x+ * W+^T(vR) + x- * W-^T(vR)``; the relevance that arrives is ``factor * register``, so the
cached coefficients are ``u * factor`` and ``v * factor``, and what leaves is ``c = R_in / x``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds.lowering.input_rules import (
    Term,
    is_fused_input,
    lower_input_independent,
    lower_zbox,
    send_from_input,
    split_terms,
)
from fastlrp.kinds.lowering.layer import AffineLayer, same_layout
from fastlrp.plan.builder import Builder
from fastlrp.plan.narrow import in_float32, representable, wide
from fastlrp.plan.steps import Factor, Flow, SweepPart
from fastlrp.stabilizer import Stabilizer
from fastlrp.targets import OneHot


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Steps of one affine layer under any rule that needs a weight."""
    layer = AffineLayer.of(b, node)
    if isinstance(rule, rules.Gradient):
        _gradient(b, layer, flow)
    elif node.kind == "batch_norm":
        _elementwise(b, layer, rule, flow)
    elif isinstance(rule, rules.ZBox):
        lower_zbox(b, layer, rule, flow)
    elif isinstance(rule, (rules.WSquare, rules.Flat)):
        lower_input_independent(b, layer, rule, flow)
    elif isinstance(rule, rules.AlphaBeta):
        _alpha_beta(b, layer, rule, flow)
    else:
        _two_coefficients(b, layer, rule, flow)


def _goes_in_float32(b: Builder, layer: AffineLayer, flow: Flow) -> bool:
    """True where coefficients may be out of float16's range: relevance arrives that is no multiple of the output."""
    multiplies = layer.node.kind != "batch_norm" and not is_fused_input(b, layer)
    return b.dtype == torch.float16 and flow.factor == Factor() and multiplies


def _only_positive_outputs(layer: AffineLayer, flow: Flow) -> bool:
    """True if relevance can only stand where the layer's output is above zero: it passed a ReLU in chained form."""
    value = flow.factor.value
    producer = None if value is None else value.producer
    return producer is not None and producer.operation == "relu" and producer.inputs[0] is layer.y


def _two_coefficients(b: Builder, layer: AffineLayer, rule: Any, flow: Flow) -> None:
    x = layer.x
    signed = not b.is_nonnegative(x)
    u, v, weight, needs_split = _coefficients(b, layer, rule, flow, signed)
    split = needs_split and signed
    positive = None
    if v is not None:
        positive = layer.positive if weight is layer.weight else weight.clamp(min=0)
    exact = _goes_in_float32(b, layer, flow)
    for_run = (wide(weight), wide(positive)) if exact else (weight, positive)
    run = layer.transpose(b, for_run[0], for_run[1], split, multiply=False)
    one_hot = u is not None and v is None and layer.node.kind == "linear" and len(x.shape) == 2
    if one_hot:
        run = _rows_of(b, run, for_run[0])
    run = in_float32(run, b.dtype) if exact else run
    sign = b.sign_slot(x) if split else None
    products = [(weight, slot, splits) for slot, splits in ((u, False), (v, True)) if slot is not None]
    gamma = rule.gamma if isinstance(rule, rules.Gamma) and len(products) == 2 else None
    form = None if exact else layer.form(b, products, sign, gamma=gamma)
    if is_fused_input(b, layer):
        terms: list[Term] = [] if u is None else [(weight, u, x.index)]
        if v is not None:
            assert positive is not None
            terms += split_terms(b, layer, weight, positive, v) if split else [(positive, v, x.index)]
        # Without the sparse form, which makes c and not relevance itself.
        send_from_input(b, layer, flow, terms, None)
        return
    unpooled = None if exact else layer.unpooled(b, weight, positive, split)
    slots = [u, v, sign]
    register = b.step(
        run, [flow.register], slots, x.numel, layer.work * len(products), form, unpooled=unpooled,
        accepts_one_hot=one_hot,
    )  # fmt: skip
    b.send(x, Flow(register, Factor(x)))


def _alpha_beta(b: Builder, layer: AffineLayer, rule: rules.AlphaBeta, flow: Flow) -> None:
    """``alpha`` times the rule of the positive parts minus ``beta`` times that of the negative ones.

    Not as ``u W + v W+`` with ``u = -beta B``, ``v = alpha A + beta B``: where a neuron's negative part is nearly
    empty B is up to 1/epsilon, and A would be read off the difference of two numbers a million times its size.
    Products with W+ and W- cost the same and lose nothing. The negative part is the positive part of ``-W``.
    """
    x = layer.x
    signed = not b.is_nonnegative(x)
    exact = _goes_in_float32(b, layer, flow)
    parts: list[Any] = []
    unpooled: list[Any] = []
    terms: list[Term] = []
    for negative, share in ((False, rule.alpha), (True, -rule.beta)):
        if share:
            v = _part_coefficient(b, layer, rule, flow, share, negative)
            weight = layer.negated if negative else layer.weight
            positive = layer.negated_positive if negative else layer.positive
            for_run = (wide(weight), wide(positive)) if exact else (weight, positive)
            parts.append((layer.transpose(b, for_run[0], for_run[1], signed, multiply=False), v, weight))
            if is_fused_input(b, layer):
                terms += split_terms(b, layer, weight, positive, v) if signed else [(positive, v, x.index)]
            unpooled.append(None if exact else layer.unpooled(b, weight, positive, signed))
    sign_of = b.sign_slot(x) if signed else None

    def total(flow: Tensor, x: Tensor | None, *vs: Tensor) -> Tensor:
        results = [run(flow, None, v, x) for (run, *_), v in zip(parts, vs, strict=True)]
        return results[0] if len(results) == 1 else results[0].add_(results[1])

    def total_unpooled(flow: Tensor, index: Tensor, pool: Any, x: Tensor | None, *vs: Tensor) -> Tensor:
        results = [run(flow, index, pool, None, v, x) for run, v in zip(unpooled, vs, strict=True)]
        return results[0] if len(results) == 1 else results[0].add_(results[1])

    form = None if exact else layer.form(b, [(weight, v, True) for _, v, weight in parts], sign_of)
    if terms:
        send_from_input(b, layer, flow, terms, None)
        return
    slots = [sign_of, *(v for _, v, _ in parts)]
    both = None if None in unpooled else total_unpooled
    run = in_float32(total, b.dtype) if exact else total
    register = b.step(run, [flow.register], slots, x.numel, layer.work * len(parts), form, unpooled=both)
    b.send(x, Flow(register, Factor(x)))


def _part_coefficient(
    b: Builder, layer: AffineLayer, rule: Any, flow: Flow, share: float, negative: bool = False
) -> int:
    """Slot of ``share * factor / st(P + b+)``; negative: the same of ``-W`` and ``-b``."""
    factor = b.slot_of(flow.factor)
    part = _part(b, layer, rule.zero_bias, negative)
    stabilizer = Stabilizer.ensure(rule.stabilizer)
    if negative:
        stabilizer = stabilizer.mirrored()
    return _coefficient_pair(b, layer, "zplus", share, stabilizer, [part, part, None, factor])[1]


def _rows_of(b: Builder, run: Callable[..., Tensor], weight: Tensor) -> Callable[..., Tensor]:
    """A one-hot target selects a row of W instead of multiplying by all of them."""
    rows = b.operation("linear_one_hot_relevance")

    def call(flow: Tensor | OneHot, u: Tensor, v: None, x: None) -> Tensor:
        if isinstance(flow, OneHot):
            selected: Tensor = rows(flow.value, flow.index, weight, u, None, None, False, False)
            return selected
        return run(flow, u, v, x)

    return call


def _coefficients(
    b: Builder, layer: AffineLayer, rule: Any, flow: Flow, signed: bool
) -> tuple[int | None, int | None, Tensor, bool]:
    """Slots of ``u`` and ``v`` times the arriving factor, the weight they go with, whether ``v`` splits by sign."""
    factor = b.slot_of(flow.factor)
    x, y = layer.x.index, layer.y.index
    weight, bias = layer.weight, None if rule.zero_bias else layer.bias
    stabilizer = Stabilizer.ensure(rule.stabilizer)
    modify = getattr(rule, "modify", None)
    same_sign = bias is layer.bias  # Without its bias a neuron above zero may be below it.
    if isinstance(rule, rules.Gamma) and not signed and same_sign and _only_positive_outputs(layer, flow):
        # After a ReLU v/u is the same for every neuron that carries relevance: one product with W + gamma W+.
        modify = rules.PlainGamma(rule.gamma).modify
    if modify is not None:
        changed = modify(weight)
        changed_bias = bias if bias is None or not getattr(rule, "modify_bias", True) else modify(bias)
        z = b.cache(lambda x: layer.apply(x, changed, changed_bias), [x], layer.y.numel)
        u, _ = _coefficient_pair(b, layer, "epsilon", 1, stabilizer, [z, None, None, factor])
        return u, None, changed, False
    if rule.zero_bias and layer.bias is not None:
        y = b.cache(lambda x: layer.apply(x, weight, None), [x], layer.y.numel, key=("no bias", layer.node))
    if isinstance(rule, rules.Epsilon):
        u, _ = _coefficient_pair(b, layer, "epsilon", 1, stabilizer, [y, None, None, factor])
        return u, None, weight, False
    if isinstance(rule, rules.ZPlus):
        return None, _part_coefficient(b, layer, rule, flow, 1), weight, True
    if isinstance(rule, rules.Gamma):
        positive = _part(b, layer, rule.zero_bias)
        opposite = _part(b, layer, rule.zero_bias, negative=True)
        negative = b.cache(torch.neg, [opposite], layer.y.numel)
        u, v = _coefficient_pair(b, layer, "gamma", rule.gamma, stabilizer, [y, positive, negative, factor])
        return u, v, weight, True
    raise TypeError(f"{rule} is not defined for {layer.node}: see fastlrp.rules for the rules of layers with a weight")


def _part(b: Builder, layer: AffineLayer, zero_bias: bool, negative: bool = False) -> int:
    """Slot of ``P + b+``; negative: of ``-(N + b-)``, which is the same for ``-W`` and ``-b``."""
    signed = not b.is_nonnegative(layer.x)
    weight = layer.negated if negative else layer.weight
    positive = layer.negated_positive if negative else layer.positive
    part = None
    if layer.bias is not None and not zero_bias:
        part = (-layer.bias if negative else layer.bias).clamp(min=0)
    together = layer.node.kind == "conv" and layer.geometry.is_plain
    below = weight.clamp(max=0) if signed else None
    both = torch.cat([positive, below], 1) if below is not None and together else None

    def run(x: Tensor, sign: Any = False) -> Tensor:
        if sign is False:
            return layer.apply(x, positive, part)
        assert below is not None
        if both is not None:
            return layer.apply(torch.cat([x.clamp(min=0), x.clamp(max=0)], 1), both, part)
        return layer.apply(x.clamp(min=0), positive, part).add_(layer.apply(x.clamp(max=0), below, None))

    ins = [layer.x.index] + ([b.sign_slot(layer.x)] if signed else [])
    return b.cache(run, ins, layer.y.numel, key=("part", layer.node, negative, part is None))


def _coefficient_pair(
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

        def run(z: Tensor, p: Tensor | None, n: Tensor | None, f: Tensor | None) -> Any:
            return op(z, p, n, f, rule, alpha, epsilon)
    else:

        def run(z: Tensor, p: Tensor | None, n: Tensor | None, f: Tensor | None) -> Any:
            found = _general_coefficients(wide(z), wide(p), wide(n), wide(f), rule, alpha, stabilizer)
            return tuple(None if t is None else t.to(z.dtype) for t in found)

    present = [slot for slot in slots if slot is not None]
    missing = [slot is None for slot in slots]
    exact = slots[3] is None and _goes_in_float32(b, layer, Flow(0))
    narrow, dtype = b.dtype == torch.float16, torch.float32 if exact else b.dtype

    def call(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        arguments: list[Any] = [None if absent else next(rest) for absent in missing]
        u, v = run(*map(wide, arguments)) if exact else run(*arguments)
        if narrow:
            u, v = representable(u, tensors[0], dtype), representable(v, tensors[0], dtype)
        return same_layout(layer, u), same_layout(layer, v)

    part = None
    if stabilizer.is_absolute and not narrow:
        part = SweepPart("coefficients", (rule, alpha, stabilizer.epsilon), tuple(slots))
    first = b.cache(call, present, layer.y.numel, outs=2, part=part)
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


def _elementwise(b: Builder, layer: AffineLayer, rule: Any, flow: Flow) -> None:
    """A batch norm that stands alone: each output has one input, so the whole rule is a cached factor."""
    if isinstance(rule, (rules.ZBox, rules.WSquare, rules.Flat)):
        raise TypeError(f"{rule} is not defined for {layer.node}: use Pass, Epsilon, ZPlus or Gamma")
    if isinstance(rule, rules.AlphaBeta):
        raise TypeError(f"{rule} is not defined for {layer.node}: use Pass, Epsilon, ZPlus or Gamma")
    u, v, weight, _ = _coefficients(b, layer, rule, flow, signed=True)
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)

    def total(x: Tensor, u: Tensor | None, v: Tensor | None) -> Tensor:
        result = 0.0 if u is None else u * weight
        if v is not None:
            result = result + v * torch.where(x > 0, positive, torch.where(x < 0, negative, 0.0))
        assert isinstance(result, Tensor)
        return result

    present = [slot for slot in (u, v) if slot is not None]

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        tensors = iter(rest)
        return total(x, None if u is None else next(tensors), None if v is None else next(tensors))

    scale = b.cache(call, [layer.x.index, *present], layer.x.numel)
    b.send(layer.x, Flow(flow.register, Factor(layer.x, scale)))


def _gradient(b: Builder, layer: AffineLayer, flow: Flow) -> None:
    x, y = layer.x, layer.y
    factor = b.slot_of(flow.factor)
    if layer.node.kind == "batch_norm":
        scale = layer.weight
        if factor is None:
            slot = b.cache(lambda y: scale.expand(y.shape), [y.index], x.numel)
        else:
            slot = b.cache(lambda f: f * scale, [factor], x.numel)
        b.send(x, Flow(flow.register, Factor(None, slot)))
        return
    ones = b.cache(torch.ones_like, [y.index], y.numel) if factor is None else factor
    run = layer.transpose(b, layer.weight, None, signed=False, multiply=False)
    form = layer.form(b, [(layer.weight, ones, False)])
    b.send(x, Flow(b.step(run, [flow.register], [ones, None, None], x.numel, layer.work, form)))
