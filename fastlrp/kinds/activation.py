"""Element-wise activations and softmax: pass, the gradient, or one of the two clipped gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp import rules
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.kinds import textbook
from fastlrp.kinds.chained import is_chained
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.looking import may_look
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow, SweepPart
from fastlrp.plan.total import multiply
from fastlrp.reference import weightless
from fastlrp.reference.redistribution import total

_MASKS = (
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold", "hardshrink", "softshrink", "sign",
    "sgn", "floor", "ceil", "round", "trunc", "composed_activation",
)  # fmt: skip
"""Where their derivative is 0 nothing passes, also where that of what follows is infinite: autograd does not multiply
by 0 there."""


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """The lower bound, for proofs of sign; parameters that are numbers or constants."""
    low = bound.get("min_val", bound.get("min"))
    if isinstance(low, (Constant, Value)):
        low = None  # A bound per entry; what it is may change.
    node.attributes.update(low=low, parameters={k: v for k, v in bound.items() if not isinstance(v, Value)})
    power_of_a_number = node.operation == "pow" and isinstance(bound.get("self"), (int, float))
    others = any(isinstance(v, Value) for k, v in bound.items() if k not in ("self", "input"))
    if (others and not power_of_a_number) or node.inputs[0].shape != node.output.shape:
        return "unknown"  # Of two activations, a power or a bound; or of one that is broadcast.
    return None


def forward(b: Builder, node: Node) -> None:
    """A ReLU may become one step with the pool that follows it."""
    b.add_forward(node, part=SweepPart("relu") if node.operation == "relu" else None)


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Pass, the gradient, or one of the two clipped gradients."""
    x, y = node.inputs[0], node.output
    if isinstance(rule, rules.Pass):
        if not rule.chained or "softmax" in node.operation:
            b.send(x, flow)
        elif is_chained(flow, y):
            _send_quotient(b, node, flow)
        else:
            _send_where_a_limit_exists(b, node, flow)
    elif isinstance(rule, (rules.Deconvnet, rules.GuidedBackprop)):
        factor = b.slot_of(flow.factor)
        register = b.step(_clip, [flow.register], [factor], y.numel, is_linear=False)
        mask = None
        if isinstance(rule, rules.GuidedBackprop):
            mask = b.cache(lambda x: (x > 0).to(x.dtype), [x.index], x.numel)
        b.send(x, Flow(register, Factor(None, mask)))
    elif isinstance(rule, rules.Gradient):
        if node.operation == "relu" and is_chained(flow, y):
            b.send(x, flow)  # relu(x) is already zero where the gradient is.
        elif "softmax" in node.operation:
            transpose_at(b, node, flow)
        else:
            send_slope(b, node, flow)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Pass, Gradient, Deconvnet or GuidedBackprop")


def send_slope(b: Builder, node: Node, flow: Flow) -> None:
    """The gradient of an element-wise operation of one input: its derivative is a cached factor."""
    x, masks = node.inputs[0], node.operation in _MASKS
    derivative = _derivative(bind_forward(node), node.operation)
    factor = b.slot_of(flow.factor)
    ins = [x.index] + ([] if factor is None else [factor])

    def slope(x: Tensor, factor: Tensor | None = None) -> Tensor:
        found = derivative(x)
        if factor is None:
            return found
        return torch.where(found == 0, found, found * factor) if masks else found * factor

    b.send(x, Flow(flow.register, Factor(None, b.cache(slope, ins, x.numel))))


def _send_quotient(b: Builder, node: Node, flow: Flow) -> None:
    """``c_u = c_a act(u) / u``, and ``act'(0)`` where ``u`` is 0 (0 if ``act(0)`` is not: no limit exists there)."""
    x, y = node.inputs[0], node.output
    derivative = _derivative(bind_forward(node), node.operation)
    ins = [x.index, y.index, *(() if flow.factor.scale is None else (flow.factor.scale,))]

    def quotient(x: Tensor, y: Tensor, scale: Tensor | None = None) -> Tensor:
        result = None
        if may_look(x):
            result = y / x
            if not bool(result.sum().isfinite()):
                result = None  # Some x is 0, or beyond the dtype's range.
        if result is None:
            zero = x == 0
            result = torch.where(zero, torch.where(y == 0, derivative(x), 0.0), y / torch.where(zero, 1.0, x))
        return result if scale is None else result.mul_(scale)

    b.send(x, Flow(flow.register, Factor(x, b.cache(quotient, ins, x.numel))))


def _send_where_a_limit_exists(b: Builder, node: Node, flow: Flow) -> None:
    """Relevance unchanged, and none where ``u`` is 0 and ``act(0)`` is not: ``act(0)`` is a constant, as a bias is."""
    x, y = node.inputs[0], node.output
    factor = b.slot_of(flow.factor)

    def passes(x: Tensor, y: Tensor, factor: Tensor | None = None) -> Tensor:
        found = ~_is_constant(x, y)
        return found.to(y.dtype) if factor is None else factor * found

    scale = b.cache(passes, [x.index, y.index, *([] if factor is None else [factor])], x.numel)
    b.send(x, Flow(flow.register, Factor(None, scale)))


def _is_constant(x: Tensor, y: Tensor) -> Tensor:
    return (x == 0) & (y != 0)


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


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    x = node.sources[0]
    if isinstance(rule, rules.Pass):
        share = textbook.unchanged(node, R)
        if rule.chained and "softmax" not in node.operation and share.ledger is not None:
            stays = R * _is_constant(walk.values[x], walk.values[node.output]).unsqueeze(1)
            share = Share({x: R - stays}, replace(share.ledger, bias=total(stays)))
        return share
    if isinstance(rule, rules.Deconvnet):
        return Share({x: weightless.deconvnet(R)}, None)
    if isinstance(rule, rules.GuidedBackprop):
        return Share({x: weightless.guided_backprop(walk.values[x], R)}, None)
    return textbook.gradient(walk, node, R)


KIND = Kind(
    name="activation",
    operations=(
        "relu relu6 hardtanh sigmoid tanh silu gelu hardswish hardsigmoid elu leaky_relu softplus mish selu celu "
        "prelu softsign clamp clamp_min clamp_max threshold log_sigmoid hardshrink softshrink tanhshrink softmax "
        "log_softmax exp square abs pow rrelu sqrt rsqrt reciprocal log log2 log10 log1p expm1 exp2 sin cos tan asin "
        "acos atan sinh cosh asinh acosh atanh sinc erf erfc erfinv logit sign sgn floor ceil round trunc frac "
        "nan_to_num remainder fmod "
        "special_erf special_expm1 special_log1p special_exp2 special_sinc special_logit special_erfc special_ndtr"
    ),
    lower=lower,
    textbook=through,
    read=read,
    forward=forward,
    preset=lambda sums: rules.Pass(),
    modules={
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "hardtanh": nn.Hardtanh,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "silu": nn.SiLU,
        "gelu": nn.GELU,
        "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid,
        "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU,
        "softmax": nn.Softmax,
    },
)
