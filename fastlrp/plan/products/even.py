"""Whether relevance per unit of activation is as even from place to place as the network's weights make it.

Rules that divide an output by at least as much hand down what is as even as what they were given. Others may send a
share that a nearly dark place deserves: relevance per unit is then larger there by as much as the place is darker than
those beside it. Winograd's filtering rounds relative to the largest numbers of a tile. Below such rules it would be
wrong where pictures are bright, and the activations of dark places, which it rounds likewise, would share wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.steps import Factor, Flow
from fastlrp.rules.gradient import GRADIENTS

_SHRINKING = {"relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "mish", "tanh"}
"""Activations whose result is at most as large as what they are given."""

_SMOOTH = _SHRINKING | {
    "sigmoid", "hardsigmoid", "softplus", "log_sigmoid", "logsigmoid", "elu", "celu", "selu", "hardtanh", "clamp",
    "softmax", "log_softmax", "threshold", "softsign", "hardshrink", "softshrink", "prelu", "erf",
}  # fmt: skip
"""Activations that make of a small error no large one."""

_WITHOUT_KINK = {
    "gelu", "silu", "mish", "tanh", "sigmoid", "softplus", "log_sigmoid", "logsigmoid", "celu", "softsign", "softmax",
    "log_softmax", "erf", "exp",
}  # fmt: skip
"""Activations whose derivative does not jump."""

_JUMPS = {"sign", "sgn", "floor", "ceil", "round", "trunc", "frac", "remainder", "fmod", "threshold", "hardshrink"}
"""Activations that jump themselves."""

_OF_RATIOS = {"reciprocal", "rsqrt", "sqrt", "log", "log2", "log10"}
"""Functions of which a small number's relative error makes as much as that of a large one."""

_PLACES = {"move", "cat", "identity", "detached", "chosen"}
_MEANS = {"avg_pool", "adaptive_avg_pool", "linear_map", "add"}


def begins_even(b: Builder) -> bool:
    """Whether it is so at the output: not where a target is one of many places, of which one may be dark."""
    return len(b.graph.output.shape) <= 2


def compares(node: Node, rule: rules.Rule | None) -> bool:
    """Whether a small error of what a node is given may change relevance much, however small that node's own is.

    A maximum takes one of several, a mask lets through or not; the derivative of a ReLU is that of its input's sign,
    also where a sum without bias is nearly zero because the picture is dark. Rules that share outputs send such a
    neuron next to nothing.
    """
    if node.output.is_tensor and not node.output.is_float:
        return any(value.is_float for value in node.inputs)
    if node.kind == "activation" and isinstance(rule, (rules.Gradient, rules.GuidedBackprop)):
        return node.operation not in _WITHOUT_KINK or isinstance(rule, rules.GuidedBackprop)
    return node.kind in ("max_pool", "chosen") or node.operation in _JUMPS


def evened_out(node: Node) -> Sequence[Value]:
    """Those of a node's operands that it makes as much of where they are nearly dark as where they are bright.

    Divisors, and what a norm, a logarithm or a root reads: all of their digits count, wherever they stand.
    """
    if node.attributes.get("divides"):
        return [operand for operand in node.attributes["operands"][1:] if isinstance(operand, Value)]
    small = node.operation in _OF_RATIOS or (node.operation == "pow" and not _is_power(node.args[1]))
    return node.inputs if small or node.kind == "normalization" else ()


def _is_power(exponent: object) -> bool:
    return isinstance(exponent, (int, float)) and exponent >= 1


def stays_even(b: Builder, node: Node, rule: rules.Rule | None, flow: Flow) -> bool:
    """Whether a node sends on what is as even as what arrives."""
    if not all(value.has_batch_first for value in (*node.sources, node.output)):
        return False  # It is refused, or has no places of one sample.
    if node.kind in _PLACES:
        return all(_keeps_places(x, node.output) for x in node.sources)
    if node.kind == "activation":
        chained = isinstance(rule, rules.Pass) and rule.chained and flow.factor.value is node.output
        return node.operation in (_SHRINKING if chained else _SMOOTH) and _slope(node) <= 1
    if node.kind in ("conv", "linear", "batch_norm"):
        return _weighted(b, node, rule, flow)
    if node.kind == "max_pool":
        return b.max_pool in ("winner", "ties") and not isinstance(rule, rules.WeightRule)
    if node.kind in _MEANS:
        shares = isinstance(rule, (rules.Norm, rules.Epsilon)) and _is_own(b, node.output, flow, _SHRINKING)
        shares = shares and not _leaves_out(rule)
        return shares or isinstance(rule, (rules.Gradient, rules.Pass))
    # With sigma of whole maps; that of one place, or column, would make dark ones bright.
    whole = node.operation in ("group_norm", "instance_norm") and _is_map(node.inputs[0])
    return whole and isinstance(rule, (rules.FixedSigma, rules.Pass)) and _is_own(b, node.output, flow, _SHRINKING)


def divides_by_output(node: Node, rule: rules.Rule | None) -> bool:
    """Whether the rule of a layer with a weight divides by the layer's own output, and not by its positive part."""
    others = (rules.ZPlus, rules.AlphaBeta, rules.WSquare, rules.Flat)
    return node.kind in ("conv", "linear", "batch_norm") and not isinstance(rule, (*others, *GRADIENTS, rules.Pass))


def divides_by_sum(b: Builder, node: Node, rule: rules.Rule | None, flow: Flow) -> bool:
    """Whether a sum or mean divides by itself what is no multiple of it: its terms need all of their digits then."""
    if node.kind not in _MEANS or not isinstance(rule, (rules.Norm, rules.Epsilon)):
        return False
    zero_at_zero = _SHRINKING | {"elu", "celu", "selu", "softsign", "prelu"}
    return _leaves_out(rule) or not _is_own(b, node.output, flow, zero_at_zero)


def _leaves_out(rule: rules.Rule | None) -> bool:
    """Whether a sum's denominator may be without its constant summand, and so be no multiple of the sum."""
    return isinstance(rule, rules.Epsilon) and rule.zero_bias


def _is_map(value: Value) -> bool:
    """Whether the channels of a value are those of a convolution or of the input, and no places."""
    node = value.producer
    while node is not None and node.kind in ("activation", "identity", "batch_norm", "normalization", "scalar", "add"):
        node = node.inputs[0].producer
    return node is None or node.kind in ("conv", "max_pool", "avg_pool", "adaptive_avg_pool")


def _keeps_places(x: Value, y: Value) -> bool:
    """Whether a move keeps all places; one that chooses a few of them may choose nearly dark ones alone."""
    return y.numel >= x.numel or x.sizes[1:] == y.sizes[1:]


def _weighted(b: Builder, node: Node, rule: rules.Rule | None, flow: Flow) -> bool:
    if isinstance(rule, (*GRADIENTS, rules.Pass)):
        return True
    if not isinstance(rule, (rules.Epsilon, rules.Gamma, rules.ZPlus, rules.AlphaBeta)):
        return False
    at_top = flow == Flow(b.top) and begins_even(b)
    if at_top:  # One number for all that a target reads.
        return not isinstance(rule, rules.AlphaBeta) or not rule.beta
    if rule.zero_bias and AffineLayer.of(b, node).bias is not None:
        return False
    if isinstance(rule, (rules.Epsilon, rules.Gamma)):
        return _is_own(b, node.output, flow, _SHRINKING)
    # The sum of what raises an output is no smaller than it, but may be smaller than one below zero is large.
    positive = flow.factor.value is not node.output and _is_own(b, node.output, flow, {"relu", "relu6"})
    return positive and (isinstance(rule, rules.ZPlus) or not rule.beta)


def _is_own(b: Builder, y: Value, flow: Flow, activations: set[str]) -> bool:
    """Whether what arrives is per unit of ``y``, or of what such an activation makes of it."""
    value = flow.factor.value
    producer = None if value is None else value.producer
    if value is y or (flow.factor == Factor() and flow.register == b.top and begins_even(b)):
        return True
    return (
        producer is not None and producer.operation in activations and producer.inputs[0] is y and _slope(producer) <= 1
    )


def _slope(node: Node) -> float:
    """Of a leaky ReLU below zero."""
    slope = node.attributes.get("parameters", {}).get("negative_slope", 0.0)
    return abs(slope) if isinstance(slope, (int, float)) else 2.0
