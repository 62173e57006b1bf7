"""Element-wise products and quotients: the signal takes all, gates nothing; half to each of two; or the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.capture.patterns.attention_weights import keeps_shares
from fastlrp.kinds import textbook
from fastlrp.kinds.activation import send_slope
from fastlrp.kinds.broadcasting import sum_to_shape
from fastlrp.kinds.chained import is_chained, send_times
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.reference.redistribution import vjp
from fastlrp.stabilizer import Stabilizer

_GATES = {"sigmoid", "hardsigmoid", "softmax", "reciprocal", "rsqrt"}
_ACTIVATIONS = {"activation", "attention_weights", "segment_softmax"}
_CLAMPS = {"clamp", "clamp_min", "clamp_max"}
_COPIES = {"move", "identity", "detached", "custom_backward"}
_CONVERSIONS = {"to", "_to_copy", "type_as"}
_SCALES = {"rsqrt", "reciprocal", "std", "var", "linalg_vector_norm", "norm"}


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """The operands in order, and whether it is a quotient."""
    operands = node.args[:1] if node.operation == "neg" else node.args[:2]
    node.attributes["operands"] = operands
    if bound.get("rounding_mode") is not None:
        return "unknown"  # A step function.
    if node.operation == "div" and isinstance(node.args[1], Value):
        node.attributes["divides"] = True
        numerator = node.args[0]
        node.attributes["inverts"] = not isinstance(numerator, Value) or not numerator.is_differentiable
    return None


def signal_and_gates(node: Node, activations: bool = False) -> list[Value]:
    """The operands of a product that carry its relevance.

    One of them if the others are gates (the output of a sigmoid, hard-sigmoid or softmax, or an operand that is
    broadcast or expanded over the other, as in squeeze-and-excitation, or the scale of a norm): the signal takes all.
    Else both, in equal shares.

    Args:
        activations: what any activation made is a gate too.
    """
    operands = [v for v in node.attributes["operands"] if isinstance(v, Value) and v.is_differentiable]
    if node.attributes.get("divides"):
        return operands[:1]  # Of a constant's quotient the divisor, whose reciprocal passes relevance on.
    operands = list(dict.fromkeys(operands))
    if node.attributes.get("routing") in operands and not activations:
        return operands  # What an expert computed, and the router's weight for it: half to each.
    signals = [v for v in operands if not _is_gate(v)]
    whole = [v for v in signals if v.shape == node.output.shape]
    # What was expanded before is the signal still where the other factor is broadcast over it here.
    found = [v for v in whole if not _is_scale(v)] or whole or signals or operands
    if activations and len(found) > 1:
        found = [v for v in found if not _is_made_by_activation(v)] or found
    return found


def _is_gate(value: Value) -> bool:
    """Whether a sigmoid or the like made it, or it is a multiple of a reciprocal: a divisor, which takes nothing.

    What lies between, a conversion to another dtype, a view, a clamp or a mask, leaves it one: a model that computes
    its gates in float32 has the same ones in every dtype. So do constants, ``2 z``, ``1 - z``; a product of gates is
    one, and a gate divided by a sum.
    """
    node = _source(value)
    if node is None:
        return False
    if node.operation in _GATES or node.attributes.get("inverts") or _is_inverse_power(node):
        return True
    changed = _changed_by(node)
    if changed is not None:
        return _is_gate(changed)
    if node.kind != "mul":
        return False
    operands = node.args[:1] if node.attributes.get("divides") else dict.fromkeys(node.attributes["operands"])
    return all(isinstance(v, Value) and _is_gate(v) for v in operands)


def _changed_by(node: Node) -> Value | None:
    """What a clamp, a mask, a constant factor or a constant summand changes; None for any other operation."""
    changes = node.operation in _CLAMPS or node.kind in ("write", "add") or _is_multiple(node) or keeps_shares(node)
    return node.sources[0] if changes and len(node.sources) == 1 else None


def _is_multiple(node: Node) -> bool:
    """Whether it is an activation times, or over, a constant."""
    return node.kind == "mul" and len(node.sources) == 1 and not node.attributes.get("divides")


def _is_inverse_power(node: Node) -> bool:
    """``d ** -p``."""
    exponent = node.args[1] if node.operation == "pow" else None
    return isinstance(exponent, (int, float)) and exponent < 0


def _is_scale(value: Value) -> bool:
    """Whether it is a norm's scale, or was broadcast in the place of the product, by ``expand`` or by constants."""
    producer = value.producer
    while producer is not None:
        if producer.kind in _COPIES and producer.carried is not None:
            if producer.operation in ("expand", "expand_as"):
                return True
            value = producer.carried
        elif _is_multiple(producer):
            (value,) = producer.sources
            if value.shape != producer.output.shape:
                return True
        else:
            break
        producer = value.producer
    return producer is not None and producer.operation in _SCALES


def _source(value: Value) -> Node | None:
    """What computed its entries: the node behind copies, views and conversions."""
    producer = value.producer
    while producer is not None and producer.kind in _COPIES and producer.carried is not None:
        producer = producer.carried.producer
    return producer


def _is_made_by_activation(value: Value) -> bool:
    """Also masked, times a constant or beside one.

    A clamp below zero and what puts numbers in the place of NaN are none, but leave what they change what it is.
    """
    node = _source(value)
    while node is not None:
        low = node.attributes.get("low") if node.operation in _CLAMPS else 0
        is_activation = node.kind in _ACTIVATIONS and low is not None and low >= 0  # A clamp at 0 is a ReLU.
        if (is_activation and node.operation != "nan_to_num") or _is_swish(node):
            return True
        changed = _changed_by(node)
        node = None if changed is None else _source(changed)
    return False


def _is_swish(node: Node) -> bool:
    """``x * sigmoid(c x)``, which is ``silu(x)`` or its like written out."""
    if node.kind != "mul" or node.attributes.get("divides") or len(node.sources) != 2:
        return False
    for gate, x in (node.sources, node.sources[::-1]):
        made = _source(gate)
        if made is None or made.operation not in ("sigmoid", "hardsigmoid"):
            continue
        x, inner = _unconverted(x), _unconverted(made.sources[0])
        while inner is not x and inner.producer is not None and _is_multiple(inner.producer):
            inner = _unconverted(inner.producer.sources[0])
        if inner is x:
            return True
    return False


def _unconverted(value: Value) -> Value:
    """The value in the dtype that it was computed in."""
    while (node := value.producer) is not None and node.operation in _CONVERSIONS and node.carried is not None:
        value = node.carried
    return value


def _signals(node: Node, rule: rules.Rule) -> list[Value]:
    if isinstance(rule, rules.HeldSelection):
        selects = node.attributes.get("selection")
        return _others(node, selects) if selects else signal_and_gates(node)
    return signal_and_gates(node, activations=isinstance(rule, rules.ValueOnly))


def _others(node: Node, selects: Sequence[Value]) -> list[Value]:
    operands = node.attributes["operands"]
    return [v for v in operands if isinstance(v, Value) and v.is_differentiable and v not in selects]


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Products and quotients: signal takes all (Arras et al. 2017), or the gradient.

    Relevance is the same under ``Pass`` and ``ValueOnly`` in either form; chained, ``c_x = c_y`` times what ``x`` is
    multiplied with.
    """
    y = node.output
    if isinstance(rule, rules.Gradient):
        if len(node.inputs) == 1 and node.inputs[0].shape == y.shape:
            send_slope(b, node, flow)
        elif _are_two_alike(node):
            _send_slopes_of_two(b, node, flow)
        else:
            transpose_at(b, node, flow)
        return
    if not isinstance(rule, (rules.Pass, rules.ValueOnly)):
        raise TypeError(
            f"{rule} is not defined for {node}: use Pass (the signal takes all, gates nothing), ValueOnly or Gradient"
        )
    signals = _signals(node, rule)
    if _flows_chained(rule) and is_chained(flow, y):
        for x in signals:
            _send_chained(b, node, x, 1 / len(signals), flow)
        return
    for x in signals:
        share = flow
        if len(signals) > 1:
            part = 1 / len(signals)

            def equal_part(f: Tensor, part: float = part) -> Tensor:
                return f * part

            share = Flow(b.step(equal_part, [flow.register], [], y.numel, up=equal_part), flow.factor)
        b.send(x, sum_to_shape(b, share, y, x))


def _are_two_alike(node: Node) -> bool:
    """Whether it is the product of two activations, of which none is broadcast or converted."""
    y, operands = node.output, node.attributes["operands"]
    if node.operation != "mul" or len(operands) != 2 or operands[0] is operands[1]:
        return False
    if y.dtype is None or y.dtype.is_complex:
        return False
    return all(
        isinstance(v, Value) and v.is_differentiable and (v.shape, v.dtype) == (y.shape, y.dtype) for v in operands
    )


def _send_slopes_of_two(b: Builder, node: Node, flow: Flow) -> None:
    """The gradient of ``x * t`` is ``t`` times what arrives: a factor, which meets those above before any target.

    So an infinite one ends at a mask below (``lp_pool2d``: a root, a product, a ReLU), as for autograd.
    """
    first, second = node.attributes["operands"]
    factor = b.slot_of(flow.factor)
    for x, other in ((first, second), (second, first)):
        scale = other.index
        if factor is not None:
            scale = b.cache(lambda t, f: t * f, [other.index, factor], node.output.numel)
        b.send(x, Flow(flow.register, Factor(None, scale)))


def _flows_chained(rule: rules.Pass | rules.ValueOnly) -> bool:
    return rule.chained if isinstance(rule, rules.Pass) else Stabilizer.ensure(rule.stabilizer).in_limit


def _send_chained(b: Builder, node: Node, x: Value, part: float, flow: Flow) -> None:
    operands = list(node.attributes["operands"])
    if node.operation == "neg":
        send_times(b, node, x, [-1.0], None, part, flow)
    elif node.operation == "div" and node.attributes.get("inverts"):
        send_times(b, node, x, [node.output], x, part, flow)
    elif node.operation == "div":
        send_times(b, node, x, [], operands[1], part, flow)
    else:
        operands.remove(x)
        send_times(b, node, x, operands, None, part, flow)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if not isinstance(rule, (rules.Pass, rules.ValueOnly)):
        return textbook.gradient(walk, node, R)
    signals = _signals(node, rule)
    broadcast = partial(torch.broadcast_to, size=walk.values[node.output].shape)
    # Summing R over the axes along which the operand was broadcast is the transpose of the broadcast.
    shares = {v: vjp(broadcast, walk.values[v], R / len(signals)) for v in signals}
    return Share(shares, textbook.nothing_kept(R))


KIND = Kind(
    name="mul",
    operations="mul div neg",
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: rules.Pass(),
)
