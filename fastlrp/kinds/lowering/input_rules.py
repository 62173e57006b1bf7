"""The rules at the input: zB, w2 and flat. They emit relevance itself, not relevance per unit of activation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.backends.dispatch import FUSED
from fastlrp.kinds.lowering.layer import AffineLayer, same_layout
from fastlrp.plan.builder import Builder
from fastlrp.plan.narrow import representable, wide
from fastlrp.plan.steps import Flow
from fastlrp.stabilizer import Stabilizer

MOST_TERMS = 3

FEW_CHANNELS = 8
"""Up to this many the kernels for a network's input take: its pixels, not its features."""

Term = tuple[Tensor, int, int | None]
"""``m * W^T (u F)``: weight, slot of the coefficient u, slot of the multiplier m or None for 1."""


def is_fused_input(b: Builder, layer: AffineLayer) -> bool:
    """Whether one kernel makes the relevance of a network's input: a convolution of few channels that reads it."""
    node, x = layer.node, layer.x
    if node.kind != "conv" or x.producer is not None or not 3 <= len(x.shape) <= 5:
        return False
    plain = layer.geometry.is_plain and x.sizes[0] <= FEW_CHANNELS
    return plain and b.backend_of("input_relevance") in FUSED


def split_terms(b: Builder, layer: AffineLayer, weight: Tensor, positive: Tensor, v: int) -> list[Term]:
    """``x+ * W+^T (v F) + x- * W-^T (v F)``."""
    x = layer.x
    above = b.cache(lambda x: x.clamp(min=0), [x.index], x.numel, key=("above", x))
    below = b.cache(lambda x: x.clamp(max=0), [x.index], x.numel, key=("below", x))
    return [(positive, v, above), (weight - positive, v, below)]


def send_from_input(b: Builder, layer: AffineLayer, flow: Flow, terms: Sequence[Term], form: Any) -> None:
    """Relevance of the network's input as a sum of terms, in one kernel; with its channels summed up where asked."""
    x = layer.x
    call = b.operation("input_relevance")
    stride, padding, dilation, _, _, groups = layer.geometry.arguments
    geometry = (list(x.sizes[1:]), stride, padding, dilation, groups)
    # Also what the sparse form reads, which may take this step's place: a record keeps what its steps name.
    read = [slot for _, u, m in terms for slot in (u, m) if slot is not None]
    slots = list(dict.fromkeys([*read, *(() if form is None else form.slots)]))
    # A kernel takes up to three terms; alpha-beta on an input of both signs has four.
    chunks = [terms] if len(terms) <= MOST_TERMS else [terms[:2], terms[2:]]

    def run(reduce: bool, flow: Tensor, *tensors: Tensor) -> Tensor:
        of = dict(zip(slots, tensors, strict=True))
        total: Tensor | None = None
        for chunk in chunks:
            weights, us, ms = zip(*chunk, strict=True)
            multipliers = [None if m is None else of[m] for m in ms]
            part = call(flow, list(weights), [of[u] for u in us], multipliers, *geometry, reduce)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    work, reduced = len(terms) * layer.work, partial(run, True)
    register = b.step(partial(run, False), [flow.register], slots, x.numel, work, form, reduced=reduced)
    b.send(x, Flow(register))


def _send_flat(b: Builder, layer: AffineLayer, flow: Flow, u: int) -> None:
    x = layer.x
    call = b.operation("input_flat_relevance")
    stride, padding, dilation, *_ = layer.geometry.arguments
    kernel, size = list(layer.weight.shape[2:]), list(x.sizes[1:])

    def run(reduce: bool, flow: Tensor, u: Tensor) -> Tensor:
        result: Tensor = call(flow, u, x.sizes[0], kernel, size, stride, padding, dilation, reduce)
        return result

    reduced = partial(run, True)
    b.send(x, Flow(b.step(partial(run, False), [flow.register], [u], x.numel, reduced=reduced)))


def lower_zbox(b: Builder, layer: AffineLayer, rule: rules.ZBox, flow: Flow) -> None:
    """``R = (x-l) * W+^T s + (x-h) * W-^T s``, with ``z = W+ (x-l) + W- (x-h)``: two products, not three."""
    x = layer.x
    weight = layer.weight
    low = torch.as_tensor(rule.low, dtype=weight.dtype, device=weight.device)
    high = torch.as_tensor(rule.high, dtype=weight.dtype, device=weight.device)
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    stabilizer = Stabilizer.ensure(rule.stabilizer)
    factor = b.slot_of(flow.factor)
    above = b.cache(lambda x: _minus(x, low, rule), [x.index], x.numel)
    below = b.cache(lambda x: _minus(x, high, rule), [x.index], x.numel)

    def coefficient(above: Tensor, below: Tensor, *f: Tensor) -> Tensor | None:
        z = layer.apply(above, positive, None).add_(layer.apply(below, negative, None))
        inverse = stabilizer.reciprocal(wide(z))
        quotient = inverse * f[0] if f else inverse
        return same_layout(layer, representable(quotient, z, z.dtype))

    u = b.cache(coefficient, [above, below] + ([] if factor is None else [factor]), layer.y.numel)
    form = layer.form(b, [(positive, u, False), (negative, u, False)], factors=(above, below))
    if is_fused_input(b, layer):
        send_from_input(b, layer, flow, [(positive, u, above), (negative, u, below)], form)
        return
    first = layer.transpose(b, positive, None, signed=False, multiply=True)
    second = layer.transpose(b, negative, None, signed=False, multiply=True)

    def run(flow: Tensor, u: Tensor, above: Tensor, below: Tensor) -> Tensor:
        return first(flow, u, None, above).add_(second(flow, u, None, below))

    b.send(x, Flow(b.step(run, [flow.register], [u, above, below], x.numel, 2 * layer.work, form)))


def _minus(x: Tensor, bound: Tensor, rule: rules.ZBox) -> Tensor:
    try:
        return x - bound.expand(x.shape[1:] if bound.dim() < x.dim() else (1, *x.shape[1:]))
    except RuntimeError as error:
        raise ValueError(
            f"ZBox: bounds of shape {tuple(bound.shape)} do not broadcast to the layer's input {tuple(x.shape)}: "
            "pass numbers or tensors of shape (1, C, 1, 1)"
        ) from error


def lower_input_independent(b: Builder, layer: AffineLayer, rule: rules.WSquare | rules.Flat, flow: Flow) -> None:
    """w2 and flat: denominators do not depend on the input, so they are constants of the plan."""
    x, y = layer.x, layer.y
    flat = isinstance(rule, rules.Flat)
    exact = wide(layer.weight)
    exact = torch.ones_like(exact) if flat else exact.square()
    keep_bias = isinstance(rule, rules.WSquare) and not rule.zero_bias and layer.bias is not None
    bias = wide(layer.bias).square() if keep_bias else None
    ones = torch.ones((1, *x.sizes), dtype=exact.dtype, device=exact.device)
    inverse = Stabilizer.ensure(rule.stabilizer).reciprocal(layer.apply(ones, exact, bias))
    if exact.dtype != layer.weight.dtype and not flat and exact.numel():
        # Squares of small weights vanish in 16 bits: what is divided out again is the largest of them.
        largest = exact.max().clamp(min=torch.finfo(exact.dtype).tiny)
        exact, inverse = exact / largest, inverse * largest
    weight, inverse = exact.to(layer.weight.dtype), inverse.to(layer.weight.dtype)
    factor = b.slot_of(flow.factor)
    scaled = (lambda f: f * inverse) if factor is not None else (lambda y: inverse.expand_as(y))
    u = b.cache(lambda t: same_layout(layer, scaled(t)), [y.index if factor is None else factor], y.numel)
    simple = flat and layer.node.kind == "conv" and layer.geometry.groups == 1
    if is_fused_input(b, layer):
        if flat:
            _send_flat(b, layer, flow, u)
        else:
            send_from_input(b, layer, flow, [(weight, u, None)], layer.form(b, [(weight, u, False)]))
        return
    if not simple:
        run = layer.transpose(b, weight, None, signed=False, multiply=False)
        form = layer.form(b, [(weight, u, False)])
        b.send(x, Flow(b.step(run, [flow.register], [u, None, None], x.numel, layer.work, form)))
        return
    # Flat: all input channels get the same, so sum over output channels first, then one box filter.
    box = weight[:1, :1]
    narrow = layer.transpose(b, box, None, signed=False, multiply=False)

    def box_filter(flow: Tensor, u: Tensor) -> Tensor:
        summed = (flow * u.unsqueeze(1)).sum(2, keepdim=True)
        unit = summed.new_ones(1).expand(summed.shape[0], *summed.shape[2:])
        return narrow(summed, unit, None, None).expand(-1, -1, x.sizes[0], *x.sizes[1:])

    b.send(x, Flow(b.step(box_filter, [flow.register], [u], x.numel)))
