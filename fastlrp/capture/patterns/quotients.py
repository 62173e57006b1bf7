"""Quotients in one form, ``x / d`` for ``x * (1 / d)``, ``x * d.reciprocal()`` and ``x * d ** -1``; sums as divisors.

What divides entries by their own sum makes them weights, 1 in total. Between the sum and the quotient there may be what
keeps the divisor from being zero: a small constant that is added, a smallest value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Graph, Node, Value

_SHAPES = {"unsqueeze", "view", "reshape"}
"""Moves that put back the axis of a sum: entries keep their order."""

_COPIED_OUT = {"expand", "expand_as", "repeat"}


def find_quotients(graph: Graph) -> None:
    """Let each product with a reciprocal be the quotient that it is; its numbers stay those of the product."""
    for node in graph.nodes:
        if node.operation != "mul" or node.kind != "mul" or len(node.args) != 2 or len(node.sources) != 2:
            continue
        for x, factor in (node.args, node.args[::-1]):
            divisor = _divisor(factor)
            if divisor is None or x.shape != node.output.shape or x.dtype != node.output.dtype:
                continue
            node.operation, node.args, node.inputs = "div", (x, divisor), tuple(dict.fromkeys((x, divisor)))
            node.call = by_reciprocal
            node.attributes |= {"operands": node.args, "divides": True, "inverts": False}
            break


def by_reciprocal(x: Tensor, divisor: Tensor) -> Tensor:
    """As the model computes it: a product, whose last bit may be another than that of a quotient."""
    return x * divisor.reciprocal()


def _divisor(factor: Any) -> Value | None:
    """``d`` of ``1 / d``."""
    factor = _before_copies(factor)
    node = factor.producer
    while node is not None and node.operation == "mul" and node.args[1] == 1 and isinstance(node.args[0], Value):
        factor, node = node.args[0], node.args[0].producer
    if node is None or not isinstance(node.args[0], Value):
        return None
    inverts = node.operation == "reciprocal" or (node.operation == "pow" and node.args[1] == -1)
    return node.args[0] if inverts and node.args[0].is_differentiable else None


def _before_copies(value: Value) -> Value:
    """The value that is copied along axes of size 1, as an operand would be by itself."""
    while (node := value.producer) is not None and node.operation in _COPIED_OUT and node.carried is not None:
        before = node.carried
        pairs = zip(before.shape[::-1], value.shape[::-1], strict=False)
        if not all(have in (1, want) for have, want in pairs):
            return value
        value = before
    return value


def are_same(a: Any, b: Any, depth: int = 3) -> bool:
    """Whether two values are one, or what a model computes twice by the same few operations of the same."""
    if a is b:
        return True
    if not isinstance(a, Value) or not isinstance(b, Value):
        return isinstance(a, (int, float, str)) and type(a) is type(b) and a == b
    one, other = a.producer, b.producer
    if not depth or one is None or other is None or one.call is not other.call or one.kwargs or other.kwargs:
        return False
    pairs = zip(one.args, other.args, strict=False)
    return len(one.args) == len(other.args) and all(are_same(x, y, depth - 1) for x, y in pairs)


@dataclass(frozen=True)
class Total:
    """The sum of all entries along an axis, which stays as an axis of size 1.

    Attributes:
        axis: the axis. make: the sum itself with its axis kept, and what is done to it so that it is never zero.
        is_plain: whether nothing else lies between: no conversion, no ``detach``.
    """

    axis: int
    make: Callable[[Tensor], Tensor]
    guards: tuple[Callable[[Tensor], Tensor], ...]
    is_plain: bool


def total_of(
    divisor: Any, x: Value, same: Callable[[Value, Value], bool], sums: Collection[str] = ("sum", "linalg_vector_norm")
) -> Total | None:
    """What a divisor is of ``x``: its sum along one axis, or that and a constant; None if it is something else.

    Args:
        same: whether the value that is summed up is ``x``. sums: operations that are a sum, or its logarithm.
    """
    if not isinstance(divisor, Value):
        return None
    divisor = _before_copies(divisor)
    kept, guards, is_plain = divisor.shape, list[Callable[[Tensor], Tensor]](), True
    while (node := divisor.producer) is not None and node.operation not in sums:
        if node.carried is None:
            return None
        guard = _guard(node)
        if guard is not None:
            guards.insert(0, guard)
        elif node.operation not in _SHAPES:
            is_plain = False
            if node.kind not in ("identity", "detached", "custom_backward") and node.operation not in _CONVERSIONS:
                return None
        divisor = node.carried
    if node is None or not isinstance(node.args[0], Value) or not same(node.args[0], x):
        return None
    axis = _axis(node, x)
    if axis is None or kept != tuple(1 if i == axis else n for i, n in enumerate(x.shape)):
        return None
    call, rest = node.call, node.args[1:2] if node.operation in _NORMS else ()

    def make(x: Tensor) -> Tensor:
        result: Tensor = call(x, *rest, [axis], True)
        for guard in guards:
            result = guard(result)
        return result

    return Total(axis, make, tuple(guards), is_plain and divisor.dtype == x.dtype)


_NORMS = {"linalg_vector_norm"}
_CONVERSIONS = {"to", "_to_copy", "type_as"}
_GUARDS = {"add", "clamp", "clamp_min", "maximum"}


def _axis(node: Node, x: Value) -> int | None:
    """The one axis of a sum, or of a norm of order 1 of what is never negative."""
    rest = list(node.args[1:])
    if node.operation in _NORMS and (not rest or rest.pop(0) != 1 or not _is_a_share(x)):
        return None
    axes = rest[0] if rest else None
    axes = [axes] if isinstance(axes, int) else axes
    if not isinstance(axes, (list, tuple)) or len(axes) != 1 or not isinstance(axes[0], int):
        return None
    return axes[0] % len(x.shape)


def _is_a_share(x: Value) -> bool:
    """Whether it is made of exponentials, or of a softmax or sigmoid, with nothing but zeros put among them."""
    while (node := x.producer) is not None and node.operation not in ("exp", "softmax", "sigmoid"):
        fills = node.operation == "masked_fill" and node.args[2] == 0
        if not (fills or node.kind in ("identity", "detached") or node.operation in _KEEP) or node.carried is None:
            return False
        x = node.carried
    return node is not None


_KEEP = {*_SHAPES, *_CONVERSIONS, "topk", "gather", "permute", "transpose", "tril", "triu", "expand", "select", "slice"}


def _guard(node: Node) -> Callable[[Tensor], Tensor] | None:
    """What it does to the one value that it reads, if that keeps a sum from being zero."""
    call, args, kwargs, value = node.call, node.args, node.kwargs, node.carried
    if node.operation not in _GUARDS or len(node.inputs) != 1 or kwargs.get("max") is not None or len(args) > 2:
        return None
    numbers = [_number(arg) for arg in (*args, *kwargs.values()) if arg is not value]
    if not numbers or any(number is None or number < 0 for number in numbers):
        return None

    def guard(total: Tensor) -> Tensor:
        given = [total if arg is value else arg.tensor() if isinstance(arg, Constant) else arg for arg in args]
        result: Tensor = call(*given, **kwargs)
        return result

    return guard


def _number(arg: Any) -> float | None:
    if isinstance(arg, Constant):
        number = torch.as_tensor(arg.tensor())
        return float(number) if number.numel() == 1 else None
    return float(arg) if isinstance(arg, (int, float)) else None
