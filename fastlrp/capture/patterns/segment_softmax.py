"""Finds attention coefficients of graph networks: a softmax over the edges that arrive at each node, spelled out.

``exp(s - max) / sum(exp(s - max))`` with maxima and sums over each node's edges, copied back to the edges, as message
passing writes it. It becomes one node of the kind ``segment_softmax``, and what it multiplies an attention's values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.aggregation import segment_softmax
from fastlrp.capture.graph import Constant, Graph, Node, Value

_CARRIES = {"move", "identity", "detached", "custom_backward"}


@dataclass(frozen=True)
class _Segments:
    """Which entries along an axis of ``(B, …)`` belong together."""

    axis: int
    index: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Segments) and self.axis == other.axis and torch.equal(self.index, other.index)


def find_segment_softmax(graph: Graph) -> None:
    """Give each such quotient the kind ``segment_softmax``; products with its result note it as ``"routing"``."""
    found = False
    for node in graph.nodes:
        if node.kind == "mul" and node.attributes.get("divides"):
            found = _replace(node) or found
    if not found:
        return
    graph.drop_dead()
    for node in graph.nodes:
        if node.kind == "mul" and not node.attributes.get("divides"):
            weights = [v for v in node.sources if _is_made_by(v, ("segment_softmax",))]
            if weights:
                node.attributes["routing"] = weights[0]


def _replace(node: Node) -> bool:
    exponentials, divisor = node.args[:2]
    taken = _taken(divisor)
    if taken is None or not isinstance(exponentials, Value) or exponentials.shape != node.output.shape:
        return False
    total, segments, tiny = *taken, 0.0
    if _is(total, "add") and isinstance(total.producer.args[1], (int, float)):  # type: ignore[union-attr]
        total, tiny = total.producer.args[0], float(total.producer.args[1])  # type: ignore[union-attr]
    added = _put_together(total, "aggregate")
    if added is None or added[0] is not exponentials or added[1] != segments or not _is(exponentials, "exp"):
        return False
    assert exponentials.producer is not None and total.producer is not None  # noqa: PT018
    scores = _without_largest(exponentials.producer.args[0], segments)
    axis, index, count = total.producer.args[1:4]
    node.kind, node.operation, node.call = "segment_softmax", "segment_softmax", segment_softmax
    node.args, node.kwargs, node.inputs = (scores, axis, index, count, tiny), {}, (scores,)
    node.attributes = {"unread": ()}
    return True


def _without_largest(value: Value, segments: _Segments) -> Value:
    """``s`` of ``s - m`` where ``m`` is the same for all of a segment: its largest score."""
    if not _is(value, "sub") or value.producer is None or value.producer.kwargs.get("alpha", 1) != 1:
        return value
    scores, top = value.producer.args[:2]
    if not isinstance(scores, Value) or not isinstance(top, Value) or scores.shape != value.shape:
        return value
    taken = _taken(top)
    largest = None if taken is None else _put_together(taken[0], "aggregate_max")
    if taken is not None and largest is not None and largest[0] is scores and taken[1] == largest[1] == segments:
        return scores
    return scores if top.numel == 1 and _is_made_by(top, ("max", "amax")) else value


def _is(value: Any, operation: str) -> bool:
    return isinstance(value, Value) and value.producer is not None and value.producer.operation == operation


def _put_together(value: Any, operation: str) -> tuple[Value, _Segments] | None:
    """What an aggregation reads, and by which places."""
    if not _is(value, operation):
        return None
    x, axis, index = value.producer.args[:3]
    return x, _Segments(axis, index.tensor())


def _taken(value: Any) -> tuple[Value, _Segments] | None:
    """What ``x.index_select(axis, index)`` or ``x[index]`` reads, and by which places."""
    if not isinstance(value, Value) or value.producer is None:
        return None
    args = value.producer.args
    if value.producer.operation == "index_select" and isinstance(args[2], Constant):
        return args[0], _Segments(args[1] % len(value.shape), args[2].tensor())
    if value.producer.operation == "index":
        named = [(i, index) for i, index in enumerate(args[1]) if index is not None]
        if len(named) == 1 and isinstance(named[0][1], Constant) and named[0][1].tensor().dim() == 1:
            return args[0], _Segments(named[0][0], named[0][1].tensor())
    return None


def _is_made_by(value: Value, operations: tuple[str, ...]) -> bool:
    """Whether it is the result of one of these, or a copy of that."""
    producer = value.producer
    while producer is not None and producer.kind in _CARRIES and producer.carried is not None:
        producer = producer.carried.producer
    return producer is not None and producer.operation in operations
