"""The rules at the input: zB, w2 and flat. They emit relevance itself, not relevance per unit of activation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.builder import Builder
from fastlrp.lowering.layer import AffineLayer, same_layout
from fastlrp.program import Flow
from fastlrp.stabilizer import Stabilizer


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
        inverse = stabilizer.reciprocal(z)
        return same_layout(layer, inverse * f[0] if f else inverse)

    u = b.cache(coefficient, [above, below] + ([] if factor is None else [factor]), layer.y.numel)
    first = layer.transpose(b, positive, None, signed=False, multiply=True)
    second = layer.transpose(b, negative, None, signed=False, multiply=True)

    def run(flow: Tensor, u: Tensor, above: Tensor, below: Tensor) -> Tensor:
        return first(flow, u, None, above).add_(second(flow, u, None, below))

    form = layer.form(b, [(positive, u, False), (negative, u, False)], factors=(above, below))
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
    weight = torch.ones_like(layer.weight) if flat else layer.weight.square()
    keep_bias = isinstance(rule, rules.WSquare) and not rule.zero_bias and layer.bias is not None
    bias = layer.bias.square() if keep_bias else None
    ones = torch.ones((1, *x.sizes), dtype=weight.dtype, device=weight.device)
    inverse = Stabilizer.ensure(rule.stabilizer).reciprocal(layer.apply(ones, weight, bias))
    factor = b.slot_of(flow.factor)
    scaled = (lambda f: f * inverse) if factor is not None else (lambda y: inverse.expand_as(y))
    u = b.cache(lambda t: same_layout(layer, scaled(t)), [y.index if factor is None else factor], y.numel)
    simple = flat and layer.node.kind == "conv" and layer.geometry[5] == 1
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
