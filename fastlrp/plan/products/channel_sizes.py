"""How large the activations of each channel are beside one another, by the weights and batch norms before them alone.

The mean and the standard deviation of each channel go from layer to layer as if channels were independent and sums of
them normal. That is seldom right to a factor of two, and never meant to be: it finds channels that are a hundred times
as large as others without any data, and costs one pass over the weights of convolutions when a model is planned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlrp.capture.canonizers import merged_parameters
from fastlrp.capture.graph import Constant, Graph, Node, Value
from fastlrp.capture.patterns.scale_and_shift import OPERATION
from fastlrp.plan.forward_builder import ForwardBuilder

_GATES = {"sigmoid", "hardsigmoid", "softmax"}
"""Activations whose results lie between zero and one."""

_RECTIFIERS = {"relu", "relu6", "gelu", "silu", "hardswish", "mish", "elu", "celu", "selu", "softplus"}
"""Activations that leave next to nothing of what is below zero."""

_LEAKY = {"leaky_relu", "prelu", "rrelu", "clamp", "hardtanh", "threshold"}
_SAME = {"max_pool", "avg_pool", "adaptive_avg_pool", "identity", "detached"}


@dataclass(frozen=True)
class _Spread:
    """``(C,)`` each, of float64."""

    mean: Tensor
    deviation: Tensor

    @property
    def size(self) -> Tensor:
        """What few entries of a channel exceed."""
        return self.mean.abs() + 3 * self.deviation


class ChannelSizes:
    """Of all values of a graph: what few entries of each channel exceed; None where nothing is known about them."""

    def __init__(self, graph: Graph) -> None:
        self._known: dict[Value, _Spread] = {}
        for value in graph.inputs:
            if _has_channels(value):
                self._known[value] = _alike(value.sizes[0])
        for node in graph.nodes:
            found = self._of(node) if _has_channels(node.output) else None
            if found is not None and len(found.mean) == node.output.sizes[0]:
                self._known[node.output] = found

    def of_input(self, node: Node) -> Tensor | None:
        """``(Ci,)`` of float32, the largest being 1: what a convolution, its batch norms merged in, is given."""
        found = self._given(node)
        size = None if found is None else found.size
        if size is None or not bool(torch.isfinite(size).all()) or not bool((size > 0).any()):
            return None
        return (size / size.max()).float()

    def _given(self, node: Node) -> _Spread | None:
        norm = node.attributes.get("norm_before")
        if norm is None:
            return self._known.get(node.inputs[0])
        mean, variance = (norm.attributes[name].tensor().double() for name in ("running_mean", "running_var"))
        return _Spread(mean, variance.clamp(min=0).sqrt())

    def _of(self, node: Node) -> _Spread | None:
        known = [self._known.get(value) for value in node.inputs]
        if node.kind == "conv":
            return self._convolved(node)
        if node.kind == "batch_norm" or node.operation in ("group_norm", "instance_norm"):
            return _normed(node)
        if node.kind == "mul":
            return self._multiplied(node)
        given = [each for each in known if each is not None]
        if len(given) != len(known) or not given:
            return None
        if node.kind == "activation":
            return _activated(given[0], node.operation)
        if node.kind in _SAME or node.operation.startswith("upsample_") or node.operation == "pad":
            return given[0]
        if node.kind == "add" and all(value.sizes[0] == node.output.sizes[0] for value in node.inputs):
            variance = torch.stack([each.deviation.square() for each in given]).sum(0)
            return _Spread(torch.stack([each.mean for each in given]).sum(0), variance.sqrt())
        axes = (1, 1 - len(node.output.shape))
        joins = node.kind == "cat" and node.operation != "stack" and node.attributes["dim"] in axes
        return _side_by_side(given) if joins else None

    def _multiplied(self, node: Node) -> _Spread | None:
        """By numbers of each channel, by what lies between zero and one, or by other activations."""
        if node.attributes.get("divides"):
            return None
        channels = node.output.sizes[0]
        mean = power = torch.ones(channels, dtype=torch.float64)
        for factor in node.args[:2]:
            if isinstance(factor, Value):
                known = self._known.get(factor)
                if known is None and _is_gate(factor):
                    continue
            else:
                known = _of_constant(factor, len(node.output.shape), channels)
            if known is None or len(known.mean) != channels:
                return None
            mean, power = mean * known.mean, power * (known.mean.square() + known.deviation.square())
        return _Spread(mean, (power - mean.square()).clamp(min=0).sqrt())

    def _convolved(self, node: Node) -> _Spread | None:
        norm = node.attributes.get("norm")
        if norm is not None and norm.operation != OPERATION:
            return _normed(norm)
        if node.attributes.get("transposed") or not isinstance(node.attributes["weight"], Constant):
            return None
        weight, bias = merged_parameters(node)
        groups = node.attributes.get("groups", 1)
        known = self._given(node) or _alike(weight.shape[1] * groups)
        outputs = weight.shape[0] // groups
        mean, variance = (
            t.view(groups, -1).repeat_interleave(outputs, 0) for t in (known.mean, known.deviation.square())
        )
        taps = weight.detach().flatten(2)
        whole, squares = taps.sum(2).double(), taps.square().sum(2).double()
        power = torch.maximum(whole.square(), squares)  # Neighbours may be as good as equal, or independent.
        shift = 0.0 if bias is None else bias.detach().double()
        return _Spread((whole * mean).sum(1) + shift, (power * variance).sum(1).sqrt())


def sizes_given(b: ForwardBuilder, node: Node) -> Tensor | None:
    """:meth:`ChannelSizes.of_input` of a node of the builder's graph, all of whose sizes are found once."""
    sizes: ChannelSizes = b.constant(("channel sizes", b.graph), lambda: ChannelSizes(b.graph))
    return sizes.of_input(node)


def _has_channels(value: Value) -> bool:
    is_real = value.dtype is not None and value.dtype.is_floating_point
    return is_real and value.has_batch_first and len(value.sizes) >= 2


def _is_gate(value: Value) -> bool:
    node = value.producer
    while node is not None and node.kind == "move" and node.inputs:
        node = node.inputs[0].producer
    return node is not None and node.operation in _GATES


def _alike(channels: int) -> _Spread:
    return _Spread(torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64))


def _of_constant(factor: object, dims: int, channels: int) -> _Spread | None:
    """A number, or a tensor that has one for each channel."""
    if isinstance(factor, Constant):
        numbers = factor.tensor().detach()
        numbers = numbers.reshape((1,) * (dims - numbers.dim()) + tuple(numbers.shape)).double()
        if numbers.numel() != numbers.shape[1]:
            return None
        mean = numbers.flatten().expand(channels) if numbers.numel() == 1 else numbers.flatten()
    elif isinstance(factor, (int, float)):
        mean = torch.full((channels,), float(factor), dtype=torch.float64)
    else:
        return None
    return _Spread(mean, torch.zeros_like(mean))


def _normed(norm: Node) -> _Spread | None:
    """A norm's output has the mean and deviation that its parameters say."""
    given, known = _alike(norm.output.sizes[0]), norm.attributes
    shift, scale = known.get("bias"), known.get("weight")
    if not all(t is None or isinstance(t, Constant) for t in (shift, scale)):
        return None
    mean = given.mean if shift is None else shift.tensor().double()
    return _Spread(mean, given.deviation if scale is None else scale.tensor().double().abs())


def _activated(given: _Spread, operation: str) -> _Spread | None:
    if operation in _LEAKY:
        return given
    if operation not in _RECTIFIERS:
        return None
    mean, deviation = given.mean, given.deviation
    above = (mean / deviation).nan_to_num(0.0, posinf=40.0, neginf=-40.0).clamp(-40, 40)
    share = 0.5 * torch.erfc(-above / math.sqrt(2))
    density = (-0.5 * above.square()).exp() / math.sqrt(2 * math.pi)
    first = mean * share + deviation * density
    second = (mean.square() + deviation.square()) * share + mean * deviation * density
    return _Spread(first, (second - first.square()).clamp(min=0).sqrt())


def _side_by_side(given: Sequence[_Spread]) -> _Spread:
    return _Spread(torch.cat([each.mean for each in given]), torch.cat([each.deviation for each in given]))
