"""Activations, normalisations, gates and sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.kinds.lowering.jacobian import transpose_at
from fastlrp.plan.builder import Builder, bind_forward, multiply
from fastlrp.plan.steps import Factor, Flow
from fastlrp.stabilizer import Stabilizer

_GATES = {"sigmoid", "hardsigmoid", "softmax"}


def lower_activation(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Pass, the gradient, or one of the two clipped gradients."""
    x, y = node.inputs[0], node.output
    if isinstance(rule, rules.Pass):
        b.send(x, flow)
    elif isinstance(rule, (rules.Deconvnet, rules.GuidedBackprop)):
        factor = b.slot_of(flow.factor)
        register = b.step(_clip, [flow.register], [factor], y.numel)
        mask = None
        if isinstance(rule, rules.GuidedBackprop):
            mask = b.cache(lambda x: (x > 0).to(x.dtype), [x.index], x.numel)
        b.send(x, Flow(register, Factor(None, mask)))
    elif isinstance(rule, rules.Gradient):
        if node.operation == "relu" and flow.factor.value is y:
            b.send(x, flow)  # relu(x) is already zero where the gradient is.
        elif "softmax" in node.operation:
            transpose_at(b, node, flow)
        else:
            _slope(b, node, flow)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Pass, Gradient, Deconvnet or GuidedBackprop")


def _slope(b: Builder, node: Node, flow: Flow) -> None:
    """The gradient of an element-wise operation of one input: its derivative is a cached factor."""
    x = node.inputs[0]
    derivative = _derivative(bind_forward(node), node.operation)
    factor = b.slot_of(flow.factor)
    ins = [x.index] + ([] if factor is None else [factor])
    slope = b.cache(lambda x, *f: derivative(x) * f[0] if f else derivative(x), ins, x.numel)
    b.send(x, Flow(flow.register, Factor(None, slope)))


def _clip(flow: Tensor, factor: Tensor | None) -> Tensor:
    return (flow if factor is None else multiply(flow, factor)).clamp(min=0)


def _derivative(forward: Callable[[Tensor], Tensor], operation: str) -> Callable[[Tensor], Tensor]:
    if operation == "relu":
        return lambda x: (x > 0).to(x.dtype)

    def derivative(x: Tensor) -> Tensor:
        # Inference mode records nothing, and its tensors cannot require grad: their copies made outside it can.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            return torch.autograd.grad(forward(leaf).sum(), leaf)[0]

    return derivative


def lower_normalization(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Layer, group, instance norm: Pass (the identity rule of AttnLRP, Achtibat et al. 2024, prop. 3.4) or gradient."""
    if isinstance(rule, rules.Pass):
        b.send(node.inputs[0], flow)
    elif isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Pass or Gradient")


def signal_and_gates(node: Node) -> list[Value]:
    """The operands of a product that carry its relevance.

    One of them if the others are gates (the output of a sigmoid, hard-sigmoid or softmax, or an operand that is
    broadcast over the other, as in squeeze-and-excitation): the signal takes all. Else both, in equal shares.
    """
    operands = [v for v in node.attributes["operands"] if isinstance(v, Value) and v.is_differentiable]
    if node.attributes.get("divides"):
        return operands[:1]
    operands = list(dict.fromkeys(operands))
    signals = [v for v in operands if not (v.producer is not None and v.producer.operation in _GATES)]
    full = [v for v in signals if v.shape == node.output.shape]
    return full or signals or operands


def lower_mul(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Products and quotients: signal takes all (Arras et al. 2017), or the gradient."""
    y = node.output
    if isinstance(rule, rules.Gradient):
        if len(node.inputs) == 1 and node.inputs[0].shape == y.shape:
            _slope(b, node, flow)
        else:
            transpose_at(b, node, flow)
        return
    if not isinstance(rule, rules.Pass):
        raise TypeError(f"{rule} is not defined for {node}: use Pass (the signal takes all, gates nothing) or Gradient")
    signals = signal_and_gates(node)
    for x in signals:
        share = flow
        if len(signals) > 1:
            part = 1 / len(signals)
            share = Flow(b.step(lambda f, p=part: f * p, [flow.register], [], y.numel), flow.factor)
        b.send(x, _to_shape(b, share, y, x))


def _to_shape(b: Builder, flow: Flow, y: Value, x: Value) -> Flow:
    """The same relevance summed over the axes along which ``x`` was broadcast to ``y``."""
    if x.shape == y.shape:
        return flow
    sizes = (1,) * (len(y.shape) - len(x.shape)) + x.sizes
    axes = [2 + i for i, (have, want) in enumerate(zip(sizes, y.sizes, strict=False)) if have == 1 and want != 1]

    def summed(f: Tensor, s: Tensor | None) -> Tensor:
        full = f if s is None else multiply(f, s)
        return full.sum(axes, keepdim=True).reshape(*f.shape[:2], *x.sizes)

    return Flow(b.step(summed, [flow.register], [b.slot_of(flow.factor)], x.numel))


def lower_add(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Sums: in proportion to the summands (constants keep their share), or the gradient."""
    y = node.output
    terms = [(v, c) for v, c in node.attributes["terms"] if isinstance(v, Value) and v.is_differentiable]
    if isinstance(rule, rules.Gradient):
        for x, coefficient in terms:
            _send_scaled(b, x, coefficient, flow, y, Factor())
        return
    if isinstance(rule, rules.Pass) and len(terms) == 1 and terms[0][0].shape == y.shape:
        b.send(terms[0][0], flow)
        return
    if not isinstance(rule, (rules.Norm, rules.Epsilon)):
        raise TypeError(f"{rule} is not defined for {node}: use Norm, Epsilon or Gradient")
    stabilizer = Stabilizer.ensure(rule.stabilizer)
    share = b.share(flow, y.index, y.numel, stabilizer)
    for x, coefficient in terms:
        _send_scaled(b, x, coefficient, Flow(flow.register, Factor(None, share)), y, Factor(x))


def _send_scaled(b: Builder, x: Value, coefficient: Any, flow: Flow, y: Value, left: Factor) -> None:
    """Send ``coefficient * relevance``, read with the factor ``left`` on top of the flow's own."""
    scale = b.slot_of(flow.factor)
    if coefficient != 1:
        old = scale
        if old is None:
            scale = b.cache(lambda y: torch.full_like(y, float(coefficient)), [y.index], y.numel)
        else:
            scale = b.cache(lambda s: s * coefficient, [old], y.numel)
    if x.shape != y.shape:
        summed = _to_shape(b, Flow(flow.register, Factor(None, scale)), y, x)
        b.send(x, Flow(summed.register, left))
    else:
        b.send(x, Flow(flow.register, Factor(left.value, scale)))
