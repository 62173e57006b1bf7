"""Operations that stand for others which have a rule: each is spelled out while the model is translated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastlrp.capture.graph import Constant, Value

aten = torch.ops.aten


@dataclass(frozen=True)
class Step:
    """The result of an earlier step, by its position."""

    position: int


Steps = list[tuple[Any, str, tuple[Any, ...], dict[str, Any]]]


def _full(shape: Any, *operands: Any) -> bool:
    """Whether an operation on these operands has the given shape (or no activation among them)."""
    values = [v for v in operands if isinstance(v, Value)]
    return not values or any(v.shape == shape for v in values)


def _product_added(operation: Any, name: str) -> Callable[[dict[str, Any], Any], Steps | None]:
    """``addcmul`` and ``addcdiv``: the product or quotient, then the sum."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        if not _full(shape, a["tensor1"], a["tensor2"]):
            return None
        return [
            (operation, name, (a["tensor1"], a["tensor2"]), {}),
            (aten.add.Tensor, "add", (a["self"], Step(0)), {"alpha": a["value"]}),
        ]

    return steps


def _batched_product_added(a: dict[str, Any], shape: Any) -> Steps | None:
    """``baddbmm``: ``alpha batch1 @ batch2 + beta self``, as attention with a bias on its scores."""
    if not _full(shape, a["self"]):
        return None
    steps: Steps = [(aten.bmm.default, "bmm", (a["batch1"], a["batch2"]), {})]
    alpha, beta, summand = a.get("alpha", 1), a.get("beta", 1), a["self"]
    if alpha != 1:
        steps.append((aten.mul.Tensor, "mul", (Step(0), alpha), {}))
    product = Step(len(steps) - 1)
    if beta == 0:
        return steps
    return [*steps, (aten.add.Tensor, "add", (product, summand), {"alpha": beta})]


def _lerp(a: dict[str, Any], shape: Any) -> Steps | None:
    """``(1 - w) start + w end``, the weight a number or a constant."""
    weight = a["weight"]
    if isinstance(weight, Value) or not (_full(shape, a["self"]) and _full(shape, a["end"])):
        return None
    if isinstance(weight, Constant):
        rest: Any = Step(0)
        first: Steps = [(aten.rsub.Scalar, "rsub", (weight, 1), {})]
    else:
        rest, first = 1 - weight, []
    multiply = aten.mul.Tensor
    return [
        *first,
        (multiply, "mul", (a["self"], rest), {}),
        (multiply, "mul", (a["end"], weight), {}),
        (aten.add.Tensor, "add", (Step(len(first)), Step(len(first) + 1)), {}),
    ]


def _joined(least: int, dim: int) -> Callable[[dict[str, Any], Any], Steps | None]:
    """``hstack`` and the like, of tensors that have the axis."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        parts = a["tensors"]
        axes = [len(p.shape) if isinstance(p, Value) else p.tensor().dim() for p in parts]
        return [(aten.cat.default, "cat", (parts, dim), {})] if min(axes) >= least else None

    return steps


REWRITES: dict[str, Callable[[dict[str, Any], Any], Steps | None]] = {
    "addcmul": _product_added(aten.mul.Tensor, "mul"),
    "addcdiv": _product_added(aten.div.Tensor, "div"),
    "lerp": _lerp,
    "baddbmm": _batched_product_added,
    "hstack": _joined(2, 1),
    "column_stack": _joined(2, 1),
    "vstack": _joined(2, 0),
    "row_stack": _joined(2, 0),
    "dstack": _joined(3, 2),
}
"""From an operation's arguments by name and its result's shape to steps; None where the form is not one of these."""
