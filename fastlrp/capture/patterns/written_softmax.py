"""Finds a softmax that a model spells out by exponentials, and makes it the one node that it is.

``exp(x) / exp(x).sum(axis, keepdim=True)``, whatever was taken off ``x`` before, ``exp(x - logsumexp(x))``,
``exp(x - log(sum(exp(x))))`` and ``exp(log_softmax(x))``, along one axis. What weighs values in this form is attention
like any other. Operation by operation exponentials would pass relevance on and the sum that divides them take none.

A constant beside the sum, or a smallest value of it, belongs to the operation: the derivative of
``y = exp(x) / (sum(exp(x)) + c)`` is ``y_i (d_ij - y_j)``, as a softmax has it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.capture.patterns.quotients import are_same, total_of


def find_written_softmax(graph: Graph) -> None:
    """Give each such quotient or exponential the operation ``softmax``."""
    for node in graph.nodes:
        found = _of_quotient(node) if node.operation == "div" else _of_logarithm(node)
        if found is None:
            continue
        x, axis, call = found
        if x.dtype != node.output.dtype or x.shape != node.output.shape:
            continue
        node.kind, node.operation, node.call = "activation", "softmax", call
        node.args, node.kwargs, node.inputs = (x, axis), {}, (x,)
        is_exact = not isinstance(call, SpeltOut) or call.is_exact
        node.attributes = {"low": None, "parameters": {"dim": axis, "dtype": None}, "is_exact": is_exact}


def spelt_out(x: Tensor, axis: int) -> Tensor:
    """As the model computes it: where exponentials overflow it has NaN, and an explanation must not hide that."""
    exponentials = x.exp()
    return exponentials / exponentials.sum(axis, keepdim=True)


@dataclass(frozen=True)
class SpeltOut:
    """The same with a product by the reciprocal in the place of the quotient, or something beside the sum.

    Attributes:
        divide: the quotient. total: the divisor, of the exponentials.
        is_exact: whether the divisor is the sum alone. largest: what is taken off the scores before.
    """

    divide: Callable[[Tensor, Tensor], Tensor]
    total: Callable[[Tensor], Tensor]
    is_exact: bool
    largest: Callable[[Tensor, int], Tensor] | None = None

    def __call__(self, x: Tensor, axis: int) -> Tensor:
        exponentials = (x if self.largest is None else x - self.largest(x, axis)).exp()
        return self.divide(exponentials, self.total(exponentials))


def _of_quotient(node: Node) -> tuple[Value, int, Any] | None:
    """``x``, the axis and the function of ``exp(x) / sum(exp(x))``."""
    if not node.attributes.get("divides") or node.kwargs or not isinstance(node.args[0], Value):
        return None
    exponential, divisor = node.args[:2]
    if not _is(exponential, "exp"):
        return None
    total = total_of(divisor, exponential, are_same)
    if total is None or not total.is_plain:
        return None
    is_exact = not total.guards
    plain = is_exact and node.call is torch.ops.aten.div.Tensor
    call = spelt_out if plain else SpeltOut(node.call, total.make, is_exact)
    return exponential.producer.args[0], total.axis, call


def _of_logarithm(node: Node) -> tuple[Value, int, Any] | None:
    """``x``, the axis and the function of ``exp(x - logsumexp(x))`` or ``exp(log_softmax(x))``."""
    logarithm = node.args[0] if node.operation == "exp" else None
    if not isinstance(logarithm, Value) or logarithm.producer is None:
        return None
    softmax = torch.ops.aten.softmax.int
    if _is(logarithm, "log_softmax"):
        x, axis = logarithm.producer.args[:2]
        return x, int(axis) % len(x.shape), softmax
    if not _is(logarithm, "sub") or logarithm.producer.kwargs.get("alpha", 1) != 1:
        return None
    x, total = logarithm.producer.args[:2]
    if not isinstance(x, Value):
        return None
    axis = _axis_of(total, x)
    return None if axis is None else (x, axis, softmax)


def _axis_of(total: Any, x: Value) -> int | None:
    """The axis along which ``total`` is the logarithm of the sum of the exponentials of all of ``x``.

    Not through ``detach``: there the derivative is another one.
    """
    if _is(total, "log"):
        found = total_of(total.producer.args[0], x, _is_exponential, ("sum",))
    else:
        found = total_of(total, x, operator.is_, ("logsumexp",))
    return found.axis if found is not None and found.is_plain and not found.guards else None


def _is_exponential(a: Value, x: Value) -> bool:
    return _is(a, "exp") and a.producer.args[0] is x  # type: ignore[union-attr]


def _is(value: Any, operation: str) -> bool:
    return isinstance(value, Value) and value.producer is not None and value.producer.operation == operation
