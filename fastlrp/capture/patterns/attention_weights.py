"""Finds the softmax results that weigh others, as in attention, and composed activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.capture.patterns.moved import moved
from fastlrp.capture.patterns.quotients import are_same, total_of
from fastlrp.capture.patterns.written_softmax import SpeltOut, spelt_out

_CARRIES = {"move", "write", "identity", "detached", "custom_backward"}
"""Kinds through which weights stay weights: dropout, conversions, views, what is masked out of them."""


def find_attention_weights(graph: Graph) -> None:
    """Give every softmax that a product of two activations reads the kind ``attention_weights``.

    What lies between, dropout, conversions to another dtype and moves, changes nothing, and neither do linear maps that
    mix heads or mix in other weights (talking heads, a mixture with fixed weights), and divisions (Sinkhorn's).
    The product notes which of its factors the weights are, as ``node.attributes["weights"]``.

    The same for a router's softmax, of which the largest are chosen and multiply what the chosen experts computed: the
    element-wise product notes ``node.attributes["routing"]``. Chosen weights that are divided by their sum are a
    softmax of the chosen ones.
    """
    behind: dict[Value, _Softmaxes] = {}
    for node in graph.nodes:
        if node.kind == "mul":
            _find_routing(node)
        found = _softmaxes(node, behind)
        if found:
            behind[node.output] = found
        if node.kind != "product":
            continue
        for operand in node.sources:
            for softmax in behind.get(operand, ()):
                softmax.kind = "attention_weights"
                _read_scores_themselves(softmax)
                node.attributes["weights"] = operand
            for quotient in _masked_quotients(operand, behind):
                quotient.kind = "attention_weights"


def _read_scores_themselves(softmax: Node) -> None:
    """``softmax(x - x.max(-1, keepdim=True))`` is that of ``x``, which PyTorch computes in the same way."""
    difference = softmax.args[0].producer if isinstance(softmax.args[0], Value) else None
    if difference is None or difference.operation != "sub" or difference.kwargs.get("alpha", 1) != 1:
        return
    x, largest = difference.args[:2]
    if not isinstance(x, Value) or not isinstance(largest, Value) or largest.producer is None:
        return
    axis = int(softmax.attributes["parameters"]["dim"]) % len(x.shape)
    kept = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
    maximum = _attached(largest).producer
    if maximum is None or maximum.operation not in ("max", "amax") or largest.shape != kept:
        return
    if any(_attached(v) is _attached(x) for v in maximum.sources):
        softmax.args, softmax.inputs = (x, *softmax.args[1:]), (x, *softmax.inputs[1:])
        if isinstance(softmax.call, SpeltOut) and not softmax.call.is_exact:
            # What stands beside the sum is compared with exponentials that are at most 1.
            softmax.call = replace(
                softmax.call, largest=_detached_largest if _attached(largest) is not largest else _largest
            )
        elif softmax.call is spelt_out or isinstance(softmax.call, SpeltOut):
            softmax.call = torch.ops.aten.softmax.int


def _attached(value: Value) -> Value:
    """The value behind ``detach``."""
    while value.producer is not None and value.producer.kind == "detached":
        value = value.producer.args[0]
    return value


def _largest(x: Tensor, axis: int) -> Tensor:
    return x.amax(axis, keepdim=True)


def _detached_largest(x: Tensor, axis: int) -> Tensor:
    return x.detach().amax(axis, keepdim=True)


_Coordinates = Callable[[], Tensor | None]
"""Where each entry of a value stands on the axis of the softmax that it comes from, for one sample, ``(1, *sizes)``;
None if that cannot be said."""
_Softmaxes = dict[Node, _Coordinates]
"""The softmaxes whose results a value is made of by moves and linear maps alone, and where their entries stand."""


def _softmaxes(node: Node, behind: dict[Value, _Softmaxes]) -> _Softmaxes:
    """The softmaxes of the node's output; ``behind``: those of the values that it reads."""
    if node.operation == "softmax" and node.kind in ("activation", "attention_weights"):
        return {node: lambda: _own_coordinates(node)}
    if node.kind in _CARRIES:
        carried = {} if node.carried is None else behind.get(node.carried, {})
        return {softmax: _moved(node, at) for softmax, at in carried.items()}
    if node.kind in _CHANNELS:
        mixed = {softmax: _without_channels(node, at) for softmax, at in behind.get(node.inputs[0], {}).items()}
        return {softmax: at for softmax, at in mixed.items() if at() is not None}
    return {softmax: at for x in _summands(node) for softmax, at in behind.get(x, {}).items()}


_CHANNELS = {"linear": -1, "conv": 1, "batch_norm": 1}
"""The axis over which a layer sums up or scales, by kind: of attention weights that of the heads."""


def _summands(node: Node) -> list[Value]:
    """What an operation adds up, entry by entry, multiplies with a constant, or divides: divisors are held."""
    y = node.output
    if node.kind == "add":
        found = list(node.sources)
    elif node.attributes.get("divides"):
        found = [v for v in node.sources if v is node.args[0]]
    elif (node.kind == "mul" and len(node.sources) == 1) or keeps_shares(node):
        found = list(node.sources)
    else:
        found = []
    return [v for v in found if v.shape == y.shape]


def _own_coordinates(softmax: Node) -> Tensor | None:
    y = softmax.output
    axis = int(softmax.attributes["parameters"]["dim"]) % len(y.shape)
    if not y.has_batch_first or axis == 0:
        return None
    shape = [1] * len(y.shape)
    shape[axis] = y.sizes[axis - 1]
    return torch.arange(shape[axis]).view(shape).expand(1, *y.sizes)


def _moved(node: Node, at: _Coordinates) -> _Coordinates:
    if node.kind != "move":
        return at

    def after() -> Tensor | None:
        before = at()
        return None if before is None else moved(node, before)

    return after


def _without_channels(node: Node, at: _Coordinates) -> _Coordinates:
    """None where the axis of the softmax is the one over which the layer sums up."""
    axis = _CHANNELS[node.kind]

    def after() -> Tensor | None:
        before, y = at(), node.output
        if before is None or not y.has_batch_first:
            return None
        first = before.narrow(axis, 0, 1)
        size = list(before.shape)
        size[axis] = (1, *y.sizes)[axis]
        return first.expand(size) if tuple(size[1:]) == y.sizes and bool((before == first).all()) else None

    return after


def _find_routing(node: Node) -> None:
    """Note the factor of a product that comes from a softmax and a choice of the largest, in either order."""
    if node.attributes.get("divides"):
        return
    for operand in node.sources:
        producer, chosen, passed = operand.producer, False, list[Node]()
        while producer is not None and producer.sources:
            chosen = chosen or producer.operation in _CHOICES
            if producer.operation in ("topk", "max", "softmax") or _is_normalised(producer):
                passed.append(producer)
            elif producer.kind not in _CARRIES and not _is_scaled(producer) and not keeps_shares(producer):
                break
            producer = producer.sources[0].producer
            if any(n.operation == "softmax" for n in passed) and chosen:
                break
        weights = [n for n in passed if n.operation == "softmax" and n.kind in ("activation", "attention_weights")]
        if not chosen or not weights:
            continue
        for found in (*weights, *(n for n in passed if _is_normalised(n))):
            found.kind = "attention_weights"
        node.attributes["routing"] = operand


_CHOICES = ("topk", "max", "gather")
"""What takes a router's largest weights: their values, or by their places."""


def _is_scaled(node: Node) -> bool:
    """A product with a constant."""
    return node.kind == "mul" and len(node.sources) == 1 and not node.attributes.get("divides")


def _is_normalised(node: Node) -> bool:
    """``x / x.sum(-1, keepdim=True)``, also with a constant added to the sum, or a smallest value of it."""
    if not node.attributes.get("divides") or not all(isinstance(v, Value) for v in node.args[:2]):
        return False
    x, divisor = node.args[:2]
    total = total_of(divisor, x, are_same)
    return total is not None and total.axis == len(x.shape) - 1


def keeps_shares(node: Node) -> bool:
    """Whether numbers from 0 to 1 come out as they are: ``nan_to_num``, ``clamp`` to bounds that they keep."""
    if node.kind != "activation" or len(node.sources) != 1 or node.operation not in ("nan_to_num", "clamp"):
        return False
    low, high = (*node.args[1:3], None, None)[:2]
    low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
    if node.operation == "nan_to_num":
        return True
    numbers = all(bound is None or isinstance(bound, (int, float)) for bound in (low, high))
    return numbers and (low is None or low <= 0) and (high is None or high >= 1)


def _runs_along_last_axis(at: Tensor) -> bool:
    """Whether these places are those along the last axis, but where something was masked out."""
    along = torch.arange(at.shape[-1])
    return bool(((at == along) | (at == 0)).all()) and int(at.max()) == len(along) - 1


def _masked_quotients(weights: Value, behind: dict[Value, _Softmaxes]) -> list[Node]:
    """Quotients by the sum that make a softmax with entries masked out that of the others, on the way to a product.

    Only along the axis of that softmax: over another one the sum is a divisor as any, which takes nothing.
    """
    found, node = list[Node](), weights.producer
    while node is not None and node.operation != "softmax" and len(node.sources) > 0:
        if node.attributes.get("divides"):
            x = node.args[0]
            of_one = _is_normalised(node) and len(behind.get(x, {})) == 1
            at = next(iter(behind[x].values()))() if of_one else None
            if at is None or not _runs_along_last_axis(at):
                return found
            found.append(node)
            node = x.producer
        elif node.kind in _CARRIES or (node.kind == "mul" and len(node.sources) == 1) or keeps_shares(node):
            node = None if node.carried is None else node.carried.producer
        else:
            return found
    return found
