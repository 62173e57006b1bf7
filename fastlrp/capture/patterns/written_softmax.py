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

from fastlrp.capture.graph import Graph, Node, Value, with_tensors
from fastlrp.capture.patterns.quotients import are_same, total_of


def find_written_softmax(graph: Graph) -> None:
    """Give each such quotient or exponential the operation ``softmax``."""
    for node in graph.nodes:
        found = _of_quotient(node) if node.operation == "div" else _of_logarithm(node)
        if found is None:
            continue
        x, axis, call, *others = found
        if x.dtype != node.output.dtype or x.shape != node.output.shape:
            continue
        node.kind, node.operation, node.call = "activation", "softmax", call
        node.args, node.kwargs, node.inputs = (x, axis, *others), {}, tuple(dict.fromkeys((x, *others)))
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
        is_exact: whether the divisor is the sum alone, and nothing is masked. largest: what is taken off the scores.
        masks: operations between the exponentials and both, whose other operands are given in order.
    """

    divide: Callable[[Tensor, Tensor], Tensor]
    total: Callable[[Tensor], Tensor]
    is_exact: bool
    largest: Callable[[Tensor, int], Tensor] | None = None
    masks: tuple[tuple[Any, ...], ...] = ()

    def __call__(self, x: Tensor, axis: int, *others: Tensor) -> Tensor:
        exponentials, rest = (x if self.largest is None else x - self.largest(x, axis)).exp(), iter(others)
        for call, args, kwargs, carried in self.masks:
            given = (exponentials if arg is carried else next(rest) if isinstance(arg, Value) else arg for arg in args)
            exponentials = call(*with_tensors(tuple(given)), **kwargs)
        return self.divide(exponentials, self.total(exponentials))


def _of_quotient(node: Node) -> tuple[Any, ...] | None:
    """``x``, the axis and the function of ``exp(x) / sum(exp(x))``, and what else this reads."""
    if not node.attributes.get("divides") or node.kwargs or not isinstance(node.args[0], Value):
        return None
    numerator, divisor = node.args[:2]
    exponential, masks = numerator, list[Node]()
    while (mask := exponential.producer) is not None and _is_mask(mask):
        masks.insert(0, mask)
        exponential = mask.carried
    total = total_of(divisor, numerator, are_same) if _is(exponential, "exp") else None
    if total is None or not total.is_plain:
        return None
    is_exact = not total.guards and not masks
    plain = is_exact and node.call is torch.ops.aten.div.Tensor
    steps = tuple((mask.call, mask.args, mask.kwargs, mask.carried) for mask in masks)
    call = spelt_out if plain else SpeltOut(node.call, total.make, is_exact, masks=steps)
    others = [arg for mask in masks for arg in mask.args if isinstance(arg, Value) and arg is not mask.carried]
    return exponential.producer.args[0], total.axis, call, *others


def _is_mask(node: Node) -> bool:
    """Whether it multiplies by what takes no relevance, or fills with 0, entry by entry."""
    x = node.carried
    if (
        x is None
        or x.shape != node.output.shape
        or x.dtype != node.output.dtype
        or all(arg is not x for arg in node.args)
    ):
        return False
    times = node.operation == "mul" and node.kind == "mul"
    return times or node.operation in ("tril", "triu") or (node.operation == "masked_fill" and node.args[2] == 0)


def _of_logarithm(node: Node) -> tuple[Any, ...] | None:
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
