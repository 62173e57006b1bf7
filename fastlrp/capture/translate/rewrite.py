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


Steps = list[tuple[Any, ...]]
"""Operation, its name, arguments and keyword arguments of each step; a fifth entry is the shape of its result, where
that is not the shape of the whole, a sixth its dtype. A function in the place of an ATen operation names that one as
``whole``."""


def _full(shape: Any, *operands: Any) -> bool:
    """Whether an operation on these operands has the given shape (or no activation among them)."""
    values = [v for v in operands if isinstance(v, Value)]
    return not values or any(v.shape == shape for v in values)


def _product_added(operation: Any, name: str) -> Callable[[dict[str, Any], Any], Steps | None]:
    """``addcmul`` and ``addcdiv``: the product or quotient, then the sum."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        product = (a["tensor1"], a["tensor2"])
        own = () if _full(shape, *product) else (broadcast(*map(shape_of, product)),)
        return [
            (operation, name, product, {}, *own),
            (aten.add.Tensor, "add", (a["self"], Step(0)), {"alpha": a["value"]}),
        ]

    return steps


def _lerp(a: dict[str, Any], shape: Any) -> Steps | None:
    """``(1 - w) start + w end``."""
    weight = a["weight"]
    if isinstance(weight, Value) and weight.shape != shape:
        return None
    if not (_full(shape, a["self"]) and _full(shape, a["end"])):
        return None
    if isinstance(weight, (Constant, Value)):
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


def _between_tensors(a: dict[str, Any], shape: Any) -> Steps | None:
    """``clamp`` between tensors: the larger of it and the lower bound, the smaller of that and the upper one."""
    bounds = [(a.get("min"), aten.maximum.default, "maximum"), (a.get("max"), aten.minimum.default, "minimum")]
    given = [(bound, operation, name) for bound, operation, name in bounds if bound is not None]
    x = a["self"]
    if not any(isinstance(bound, Value) for bound, *_ in given) or not isinstance(x, Value) or x.shape != shape:
        return None
    steps: Steps = []
    for bound, operation, name in given:
        steps.append((operation, name, (Step(len(steps) - 1) if steps else x, bound), {}))
    return steps


def _matrix_vector(a: dict[str, Any], shape: Any) -> Steps | None:
    """``mv``: a product with a matrix of one column, which is then dropped."""
    if not isinstance(a["vec"], Constant):
        return None
    return [
        (aten.unsqueeze.default, "unsqueeze", (a["vec"], 1), {}),
        (aten.mm.default, "mm", (a["self"], Step(0)), {}, (*shape, 1)),
        (aten.squeeze.dim, "squeeze", (Step(1), 1), {}),
    ]


def _joined(least: int, dim: int) -> Callable[[dict[str, Any], Any], Steps | None]:
    """``hstack`` and the like, of tensors that have the axis."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        parts = a["tensors"]
        axes = [len(p.shape) if isinstance(p, Value) else p.tensor().dim() for p in parts]
        return [(aten.cat.default, "cat", (parts, dim), {})] if min(axes) >= least else None

    return steps


def _glu(a: dict[str, Any], shape: Any) -> Steps | None:
    """One half times the sigmoid of the other."""
    x = a["self"]
    axis = a["dim"] % len(x.shape)
    half = shape[axis]
    if not isinstance(half, int):
        return None
    return [
        (aten.narrow.default, "narrow", (x, axis, 0, half), {}),
        (aten.narrow.default, "narrow", (x, axis, half, half), {}),
        (aten.sigmoid.default, "sigmoid", (Step(1),), {}),
        (aten.mul.Tensor, "mul", (Step(0), Step(2)), {}),
    ]


def _sum_of_a_product(operation: Any, name: str, first: str, second: str) -> Callable[[dict[str, Any], Any], Any]:
    """``baddbmm`` and ``addmm``: the product of two matrices times alpha, and beta times what is added."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        alpha, beta, added = a.get("alpha", 1), a.get("beta", 1), a["self"]
        fits = not isinstance(added, Value) or added.shape == shape
        as_it_is = name == "mm" and alpha == beta == 1 and not isinstance(added, Value)
        if not fits or (as_it_is and isinstance(a[second], Constant)) or not _full_product(a[first], a[second]):
            return None
        made: Steps = [(operation, name, (a[first], a[second]), {})]
        if beta == 0:
            return [*made, (aten.mul.Tensor, "mul", (Step(0), alpha), {})]
        if beta != 1:
            made.append((aten.mul.Tensor, "mul", (added, beta), {}))
            added = Step(1)
        return [*made, (aten.add.Tensor, "add", (added, Step(0)), {"alpha": alpha})]

    return steps


def _full_product(first: Any, second: Any) -> bool:
    """Whether one of the factors is an activation."""
    return isinstance(first, Value) or isinstance(second, Value)


def _bilinear(a: dict[str, Any], shape: Any) -> Steps | None:
    """The product of three, then the bias."""
    if a.get("bias") is None:
        return None
    return [
        (aten.bilinear.default, "bilinear", (a["input1"], a["input2"], a["weight"], None), {}),
        (aten.add.Tensor, "add", (Step(0), a["bias"]), {}),
    ]


def shape_of(operand: Any) -> tuple[Any, ...]:
    return tuple(operand.shape) if isinstance(operand, Value) else tuple(operand.tensor().shape)


def broadcast(*shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    rank = max(map(len, shapes))
    aligned = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*aligned, strict=True))


def _cosine_similarity(a: dict[str, Any], shape: Any) -> Steps | None:
    """Each operand over its norm, their product, its sum: norms are divisors, which take nothing."""
    operands = [a["x1"], a["x2"]]
    shapes = [shape_of(x) for x in operands]
    full = broadcast(*shapes)
    dim = a["dim"] % len(full)
    # A constant may lack axes in front.
    places = [dim - len(full) + len(own) for own in shapes]
    short = [isinstance(x, Value) and len(own) < len(full) for x, own in zip(operands, shapes, strict=True)]
    if any(short) or any(at < 0 or own[at] == 1 for at, own in zip(places, shapes, strict=True)):
        return None
    steps: Steps = []
    for x, own, at in zip(operands, shapes, places, strict=True):
        reduced = tuple(1 if i == at else n for i, n in enumerate(own))
        start = len(steps)
        steps += [
            (aten.linalg_vector_norm.default, "linalg_vector_norm", (x, 2, [at], True), {}, reduced),
            (aten.clamp_min.default, "clamp_min", (Step(start), a["eps"]), {}, reduced),
            (aten.div.Tensor, "div", (x, Step(start + 1)), {}, own),
        ]
    steps.append((aten.mul.Tensor, "mul", (Step(2), Step(5)), {}, full))
    steps.append((aten.sum.dim_IntList, "sum", (Step(6), [dim]), {}))
    return steps


def _one_of(operation: Any, name: str, *keys: str, **renamed: str) -> Callable[[dict[str, Any], Any], Steps | None]:
    """An operation with one result in the place of one with several: positional arguments, and keywords by name."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        kwargs = {new: a[old] for new, old in renamed.items() if old in a}
        return [(operation, name, tuple(a[key] for key in keys), kwargs)]

    return steps


def _spread_of(operation: Any, name: str) -> Callable[[dict[str, Any], Any], Steps | None]:
    """Variance or deviation in the place of both it and the mean; ``unbiased`` is a correction by 1, or by none."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        correction = int(a["unbiased"]) if "unbiased" in a else a.get("correction")
        kwargs = {"correction": correction, "keepdim": a.get("keepdim", False)}
        return [(operation, name, (a["self"], a.get("dim")), kwargs)]

    return steps


def _floor_divided(a: dict[str, Any], shape: Any) -> Steps | None:
    """``x // y`` of floats: a division with rounding, the form of which PyTorch has the derivative, 0."""
    x, y = a["self"], a["other"]
    if not (isinstance(x, Value) and x.is_float):
        return None
    operation = aten.div.Tensor_mode if isinstance(y, (Value, Constant)) else aten.div.Scalar_mode
    return [(operation, "div", (x, y), {"rounding_mode": "floor"})]


def _broadcast_part(position: int) -> Callable[[dict[str, Any], Any], Steps | None]:
    """One result of ``broadcast_tensors``: the tensor itself, or expanded. Losses make them of what they compare."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        x, whole = a["tensors"][position], [v for v in a["tensors"] if isinstance(v, Value) and v.shape == shape]
        if x in whole:
            return [(aten.alias.default, "alias", (x,), {})]
        if whole:
            return [(aten.expand_as.default, "expand_as", (x, whole[0]), {})]
        if not isinstance(x, Value):
            return None
        missing = len(shape) - len(x.shape)
        if not all(isinstance(n, int) or (at >= missing and x.shape[at - missing] == n) for at, n in enumerate(shape)):
            return None
        return [(aten.expand.default, "expand", (x, [n if isinstance(n, int) else -1 for n in shape]), {})]

    return steps


_POOL = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")


REWRITES: dict[str, Callable[[dict[str, Any], Any], Steps | None]] = {
    "addcmul": _product_added(aten.mul.Tensor, "mul"),
    "addcdiv": _product_added(aten.div.Tensor, "div"),
    "lerp": _lerp,
    "clamp": _between_tensors,
    "clamp_min": _between_tensors,
    "clamp_max": _between_tensors,
    "floor_divide": _floor_divided,
    "mv": _matrix_vector,
    "glu": _glu,
    "baddbmm": _sum_of_a_product(aten.bmm.default, "bmm", "batch1", "batch2"),
    "addmm": _sum_of_a_product(aten.mm.default, "mm", "mat1", "mat2"),
    "bilinear": _bilinear,
    "cosine_similarity": _cosine_similarity,
    "max_pool1d_with_indices.0": _one_of(aten.max_pool1d.default, "max_pool1d", *_POOL),
    "max_pool2d_with_indices.0": _one_of(aten.max_pool2d.default, "max_pool2d", *_POOL),
    "max_pool3d_with_indices.0": _one_of(aten.max_pool3d.default, "max_pool3d", *_POOL),
    "var_mean.0": _spread_of(aten.var.correction, "var"),
    "std_mean.0": _spread_of(aten.std.correction, "std"),
    "var_mean.1": _one_of(aten.mean.dim, "mean", "self", "dim", keepdim="keepdim"),
    "std_mean.1": _one_of(aten.mean.dim, "mean", "self", "dim", keepdim="keepdim"),
    "aminmax.0": _one_of(aten.amin.default, "amin", "self", "dim", "keepdim"),
    "aminmax.1": _one_of(aten.amax.default, "amax", "self", "dim", "keepdim"),
    **{f"broadcast_tensors.{position}": _broadcast_part(position) for position in range(4)},
    "hstack": _joined(2, 1),
    "column_stack": _joined(2, 1),
    "vstack": _joined(2, 0),
    "row_stack": _joined(2, 0),
    "dstack": _joined(3, 2),
}
"""From an operation's arguments by name and its result's shape to steps; None where the form is not one of these.

``name.0`` is the first of several results of an operation."""
