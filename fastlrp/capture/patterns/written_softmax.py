"""Finds a softmax that a model spells out by exponentials, and makes it the one node that it is.

``exp(x) / exp(x).sum(axis, keepdim=True)``, whatever was taken off ``x`` before, ``exp(x - logsumexp(x))`` and
``exp(log_softmax(x))``, along one axis. What weighs values in this form is attention like any other. Operation by
operation exponentials would pass relevance on and the sum that divides them take none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Graph, Node, Value

_SHAPES = {"unsqueeze", "view", "reshape"}
"""Moves that put back the axis of a sum: entries keep their order."""


def find_written_softmax(graph: Graph) -> None:
    """Give each such quotient or exponential the operation ``softmax``."""
    for node in graph.nodes:
        divides = node.operation == "div"
        found = _of_quotient(node) if divides else _of_logarithm(node)
        if found is None:
            continue
        x, axis = found
        if x.dtype != node.output.dtype or x.shape != node.output.shape:
            continue
        node.kind, node.operation = "activation", "softmax"
        node.call = spelt_out if divides else torch.ops.aten.softmax.int
        node.args, node.kwargs, node.inputs = (x, axis), {}, (x,)
        node.attributes = {"low": None, "parameters": {"dim": axis, "dtype": None}}


def spelt_out(x: Tensor, axis: int) -> Tensor:
    """As the model computes it: where exponentials overflow it has NaN, and an explanation must not hide that."""
    exponentials = x.exp()
    return exponentials / exponentials.sum(axis, keepdim=True)


def _of_quotient(node: Node) -> tuple[Value, int] | None:
    """``x`` and the axis of ``exp(x) / sum(exp(x))``."""
    if not node.attributes.get("divides") or node.kwargs or not isinstance(node.args[0], Value):
        return None
    exponential, total = node.args[:2]
    if not _is(exponential, "exp"):
        return None
    axis = _axis_of(total, "sum", exponential)
    return None if axis is None else (exponential.producer.args[0], axis)


def _of_logarithm(node: Node) -> tuple[Value, int] | None:
    """``x`` and the axis of ``exp(x - logsumexp(x))`` or ``exp(log_softmax(x))``."""
    logarithm = node.args[0] if node.operation == "exp" else None
    if not isinstance(logarithm, Value) or logarithm.producer is None:
        return None
    if _is(logarithm, "log_softmax"):
        x, axis = logarithm.producer.args[:2]
        return x, int(axis) % len(x.shape)
    if not _is(logarithm, "sub") or logarithm.producer.kwargs.get("alpha", 1) != 1:
        return None
    x, total = logarithm.producer.args[:2]
    if not isinstance(x, Value):
        return None
    axis = _axis_of(total, "logsumexp", x)
    return None if axis is None else (x, axis)


def _axis_of(total: Any, operation: str, x: Value) -> int | None:
    """The axis along which all of ``x`` is summed up, if it still has a place of size 1 in ``total``.

    Not through ``detach``: there the derivative is another one.
    """
    while isinstance(total, Value) and total.producer is not None and total.producer.operation in _SHAPES:
        if len(total.shape) != len(x.shape):
            return None
        kept, total = total.shape, total.producer.args[0]
        axis = _summed(total, operation, x)
        return axis if axis is not None and kept == _without(x, axis) else None
    axis = _summed(total, operation, x)
    return axis if axis is not None and total.shape == _without(x, axis) else None


def _summed(total: Any, operation: str, x: Value) -> int | None:
    if not _is(total, operation) or not _are_same(total.producer.args[0], x) or total.dtype != x.dtype:
        return None
    axes = total.producer.args[1] if len(total.producer.args) > 1 else None
    axes = [axes] if isinstance(axes, int) else axes
    if not isinstance(axes, (list, tuple)) or len(axes) != 1 or not isinstance(axes[0], int):
        return None
    return axes[0] % len(x.shape)


def _are_same(a: Value, b: Value) -> bool:
    """One value, or the exponentials of one that a model computes twice."""
    return a is b or (_is(a, "exp") and _is(b, "exp") and a.producer.args[0] is b.producer.args[0])  # type: ignore[union-attr]


def _without(x: Value, axis: int) -> tuple[Any, ...]:
    return tuple(1 if i == axis else n for i, n in enumerate(x.shape))


def _is(value: Any, operation: str) -> bool:
    return isinstance(value, Value) and value.producer is not None and value.producer.operation == operation
