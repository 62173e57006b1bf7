"""Graph passes that bring a captured model into the form that the rules are defined for. The model is not touched."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Graph, Node, Value, Written
from fastlrp.capture.patterns.attention_weights import find_attention_weights
from fastlrp.capture.patterns.composed_activations import compose_activations
from fastlrp.capture.patterns.moved import moved
from fastlrp.capture.patterns.quotients import find_quotients
from fastlrp.capture.patterns.scale_and_shift import find_scale_and_shift
from fastlrp.capture.patterns.segment_softmax import find_segment_softmax
from fastlrp.capture.patterns.selection import find_selection
from fastlrp.capture.patterns.written_linear import find_written_linear
from fastlrp.capture.patterns.written_norm import find_written_norms
from fastlrp.capture.patterns.written_softmax import find_written_softmax


def canonize(graph: Graph) -> Graph:
    """Apply all of these passes to the graph, in order."""
    split_same_padding(graph)
    find_written_linear(graph)
    compose_activations(graph)
    find_quotients(graph)
    find_written_norms(graph)
    find_written_softmax(graph)
    find_attention_weights(graph)
    find_segment_softmax(graph)
    find_selection(graph)
    find_scale_and_shift(graph, _readers(graph))
    fold_batch_norm(graph)
    graph.drop_dead()
    return graph


def split_same_padding(graph: Graph) -> None:
    """``padding="same"`` with an even kernel is one zero more on the right than on the left.

    It becomes a pad by the difference and a convolution with the padding of the left side, which is how PyTorch
    computes it too.
    """
    for node in list(graph.nodes):
        extra = node.attributes.pop("extra_padding", None)
        if extra is None:
            continue
        x = node.inputs[0]
        sizes = (*x.shape[:2], *(n + e for n, e in zip(x.sizes[1:], extra, strict=True)))
        padded = graph.new_value(f"{x.name}_padded", sizes, x.dtype)
        amounts = [amount for e in reversed(extra) for amount in (0, e)]
        pad = torch.ops.aten.constant_pad_nd.default
        padded.producer = Node(
            "move", "constant_pad_nd", pad, (x, amounts), {}, (x,), padded, node.path, node.module_type
        )
        graph.nodes.insert(graph.nodes.index(node), padded.producer)
        a = node.attributes
        a["own_padding"] = amounts  # No inputs of the layer: rules that read no values must not count them.
        node.inputs = (padded,)
        node.args = (padded, a["weight"], a["bias"], a["stride"], a["padding"], a["dilation"], False, [0] * len(extra),
                     a["groups"])  # fmt: skip
        node.kwargs, node.call = {}, torch.ops.aten.convolution.default


def fold_batch_norm(graph: Graph) -> None:
    """Merge each batch norm into the affine layer before it, or else into the one after it.

    The forward pass still computes convolution, then batch norm, as the model does (but for large convolutions on a
    CPU, :mod:`fastlrp.plan.products.packed`); the weights that the rules see are merged: ``W' = s W``,
    ``b' = s (b - mean) + beta``, ``s = gamma / sqrt(var + eps)``. Into the layer after it: ``W' = W s``,
    ``b' = b + W (beta - s mean)``, if that layer does not pad. A batch norm with neither neighbour stays a layer of its
    own.
    """
    consumers = _readers(graph)
    outputs = set(graph.outputs)
    for node in list(graph.nodes):
        if node.kind != "batch_norm":
            continue
        before, moves = _layer_before(node, consumers, outputs)
        if before is not None and _keeps_channels(before, moves, node.attributes.get("axis", 1)):
            is_alone = not moves and len(graph.consumers()[before.output]) == 1
            _merge(graph, before, node, after=True, stays=not is_alone)
            consumers = _readers(graph)
            continue
        readers = consumers.get(node.output, [])
        if (
            len(readers) == 1
            and readers[0].kind in ("conv", "linear")
            and node.output not in outputs
            and "norm_before" not in readers[0].attributes
            and _takes_norm_before(readers[0])
        ):
            _merge(graph, readers[0], node, after=False)
            consumers = _readers(graph)


def _readers(graph: Graph) -> dict[Value, list[Node]]:
    """Who reads entries of each value, and not its sizes alone (``y.reshape_as(x)`` of x)."""
    found = graph.consumers().items()
    return {v: [node for node in nodes if v not in node.attributes.get("unread", ())] for v, nodes in found}


def _layer_before(
    norm: Node, consumers: dict[Value, list[Node]], outputs: set[Value]
) -> tuple[Node | None, list[Node]]:
    """The layer whose output the batch norm alone reads, and the moves in between, in order."""
    value, moves = norm.inputs[0], list[Node]()
    while value.producer is not None and len(consumers.get(value, [])) == 1 and value not in outputs:
        node = value.producer
        if node.kind in ("conv", "linear"):
            return (None if "norm" in node.attributes else node), moves
        if node.kind != "move" or node.carried is None:
            break
        moves.insert(0, node)
        value = node.carried
    return None, []


def _keeps_channels(layer: Node, moves: list[Node], norm_axis: int) -> bool:
    """Whether axis 1 behind the moves, that of a batch norm, is the layer's channels, and no entry is lost or new."""
    axis = _channels_axis(layer)
    if not moves:
        return axis == norm_axis
    y = layer.output
    if not y.has_batch_first or axis == 0:
        return False
    places: Tensor | None = torch.arange(y.numel).view(1, *y.sizes)
    for node in moves:
        places = None if places is None else moved(node, places)
    if places is None or places.numel() != y.numel or places.dim() < 2 or places.shape[1] != y.sizes[axis - 1]:
        return False
    channels = places // math.prod(y.sizes[axis:]) % y.sizes[axis - 1]
    own = torch.arange(places.shape[1]).view(1, -1, *[1] * (places.dim() - 2))
    return bool((channels == own).all()) and len(places.unique()) == y.numel


def _channels_axis(node: Node) -> int:
    """The axis on which an affine layer has its output channels; batch norm works on axis 1."""
    return 1 if node.kind == "conv" else len(node.output.shape) - 1


def _takes_norm_before(node: Node) -> bool:
    if node.kind == "linear":
        return len(node.inputs[0].shape) == 2
    return not any(node.attributes["padding"]) and not node.attributes["transposed"]


def _merge(graph: Graph, affine: Node, norm: Node, after: bool, stays: bool = False) -> None:
    norm_input, norm_output = norm.inputs[0], norm.output
    key = "norm" if after else "norm_before"
    affine.attributes[key] = norm
    part = (affine.operation, affine.kind)
    graph.written.append(Written(norm.operation, norm.path, norm.module_type, (part,)))
    if stays:
        # The layer's own value is what the norm makes of it, which then takes the moves; others read its sizes.
        affine.call = _Chain(affine.call, norm, into=0, axis=_channels_axis(affine))
        graph.nodes.remove(norm)
        graph.replace(norm_output, norm_input)
    elif after:
        # One node: y = norm(affine(x)). Both module paths mean its output.
        affine_output = affine.output
        affine.output = norm_output
        norm_output.producer = affine
        affine.call = _Chain(affine.call, norm, into=0)
        graph.modules = {p: norm_output if v is affine_output else v for p, v in graph.modules.items()}
        # It stands where the norm stood, since what reads it comes later.
        graph.nodes.remove(affine)
        graph.nodes[graph.nodes.index(norm)] = affine
    else:
        affine.call = _Chain(affine.call, norm, into=1)
        graph.nodes.remove(norm)
        graph.replace(norm_output, norm_input)


class _Chain:
    """Forward of an affine layer with its batch norm, in the model's own order and arithmetic."""

    def __init__(self, call: Any, norm: Node, into: int, axis: int = 1) -> None:
        self.call, self.norm, self.into, self.axis = call, norm, into, axis
        self.rest = norm.args[1:]

    def _norm(self, x: Tensor) -> Tensor:
        rest = [a.tensor() if isinstance(a, Constant) else a for a in self.rest]
        result: Tensor = self.norm.call(x.movedim(self.axis, 1), *rest, **self.norm.kwargs)
        return result.movedim(1, self.axis)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.into == 1:
            result: Tensor = self.call(self._norm(x), *args, **kwargs)
            return result
        return self._norm(self.call(x, *args, **kwargs))


def plain_call(node: Node) -> Any:
    """The function of an affine layer itself, without the batch norms that are folded into it."""
    call = node.call
    while isinstance(call, _Chain):
        call = call.call
    return call


def norm_scale_shift(norm: Node) -> tuple[Tensor, Tensor]:
    """``(s, t)`` of a batch norm in evaluation: ``y = s x + t`` per channel."""
    a = norm.attributes
    mean, var = a["running_mean"].tensor(), a["running_var"].tensor()
    scale = (var + a["eps"]).rsqrt()
    if a["weight"] is not None:
        scale = scale * a["weight"].tensor()
    shift = -mean * scale
    if a["bias"] is not None:
        shift = shift + a["bias"].tensor()
    return scale, shift


def merged_parameters(node: Node) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an affine layer with its batch norms merged in.

    Returns:
        ``(Co, Ci/g, *k)`` (transposed: ``(Ci, Co/g, *k)``, linear: ``(O, I)``) and ``(Co,)`` or None.
    """
    a = node.attributes
    weight: Tensor = a["weight"].tensor()
    bias: Tensor | None = None if a["bias"] is None else a["bias"].tensor()
    groups = a.get("groups", 1)
    if "norm_before" in a:
        scale, shift = norm_scale_shift(a["norm_before"])
        per_group = weight.shape[1]
        # Input channel of each weight entry: group of its row, then its column.
        rows = weight.shape[0] // groups
        of_row = scale.view(groups, per_group).repeat_interleave(rows, 0)
        shift_row = shift.view(groups, per_group).repeat_interleave(rows, 0)
        tail = (1,) * (weight.dim() - 2)
        moved = (weight * shift_row.view(*shift_row.shape, *tail)).flatten(1).sum(1)
        bias = moved if bias is None else bias + moved
        weight = weight * of_row.view(*of_row.shape, *tail)
    if "norm" in a:
        scale, shift = norm_scale_shift(a["norm"])
        bias = shift if bias is None else bias * scale + shift
        tail = (1,) * (weight.dim() - 2)
        if a.get("transposed"):
            by_group = scale.view(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
            weight = weight * by_group.view(*by_group.shape, *tail)
        else:
            weight = weight * scale.view(-1, 1, *tail)
    # A matrix may be the model's own, transposed: products read it in either order, and a copy would be as large.
    return weight if node.kind == "linear" else weight.contiguous(), bias
