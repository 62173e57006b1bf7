"""Weight and bias of a norm that a model writes out: which constants behind it they are, and in what layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Node, Value

_RESHAPES = {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "_unsafe_view"}


@dataclass(frozen=True)
class Affine:
    """What is done to a norm's result by constants.

    Attributes:
        x: what is normalised, in the layout of weight and bias. steps: their operations. before: what these read.
        moves: operations between the norm and these. shape: not None if ``x`` has another shape than the norm's rows.
        conversion: the last of these, if these compute in another dtype than the norm.
        weight, bias: as the built-in norm has them. groups: of a group norm; None for a layer norm.
    """

    x: Value
    steps: tuple[Node, ...]
    before: Value
    moves: tuple[Node, ...]
    shape: tuple[Any, ...] | None
    conversion: Node | None
    weight: Constant | None
    bias: Constant | None
    groups: int | None


Layout = Callable[[Tensor], "Tensor | None"]
"""A constant as weight or bias of the built-in norm; None if it is none there."""


def is_product_with_constant(node: Node) -> bool:
    """Whether a value is multiplied by one constant tensor."""
    constants = [arg for arg in node.args if isinstance(arg, Constant)]
    return node.operation == "mul" and node.kind == "mul" and len(constants) == 1 and len(node.inputs) == 1


def affine_of(
    x: Value, last: Node, axes: tuple[int, ...], within: Constant | None,
    readers: Mapping[Value, list[Node]], asked: set[Value],
) -> Affine | None:  # fmt: skip
    """A factor and a summand right behind a norm of ``x``, in the same module, as far as a built-in norm has such.

    None if a factor within is none of a built-in norm.

    Args:
        last: the norm's last operation. within: a factor that stands before that.
    """
    rank, y = len(x.shape), last.output
    ways: list[tuple[Value, tuple[Node, ...], int | None, Layout]] = [(x, (), None, _over_axes(x, axes))]
    if axes == tuple(range(2, rank)) or (axes == tuple(range(1, rank)) and rank > 2):
        ways.append((x, (), x.sizes[0] if axes[0] == 2 else 1, _over_channels(x)))
    whole, back = _before_grouping(x, axes), readers.get(y, [])
    if whole is not None and within is None and len(back) == 1 and y not in asked and _is_back(back[0], y, whole):
        ways.append((whole, (back[0],), x.sizes[0], _over_channels(whole)))
    found = [_chain(*way, last, within, readers, asked) for way in ways]
    fitting = [affine for affine in found if affine is not None]
    return max(fitting, key=lambda affine: len(affine.steps), default=None)


def _chain(
    x: Value, moves: tuple[Node, ...], groups: int | None, layout: Layout, last: Node, within: Constant | None,
    readers: Mapping[Value, list[Node]], asked: set[Value],
) -> Affine | None:  # fmt: skip
    value = before = moves[-1].output if moves else last.output
    steps, found, conversion = list[Node](), dict[str, Constant](), None
    if within is not None:
        if layout(_tensor(within)) is None:
            return None
        found["weight"] = _laid_out(within, lambda t: t, layout, x)
    while value not in asked and len(following := readers.get(value, [])) == 1 and "bias" not in found:
        node = following[0]
        if conversion is None and not steps and _is_conversion(node, value):
            conversion, value = node, node.output
            continue
        read = _read(node, value)
        if read is None or node.path != last.path or node.output.shape != value.shape:
            break
        name, constant, change = read
        if name in found or layout(_tensor(constant)) is None or node.output.dtype != value.dtype:
            break
        found[name] = _laid_out(constant, change, layout, x)
        steps.append(node)
        value = node.output
    if moves and not steps:
        return None
    shape = None if not moves else x.shape
    conversion = conversion if steps else None
    if conversion is not None:
        moves, before = (*moves, conversion), conversion.output
    return Affine(x, tuple(steps), before, moves, shape, conversion, found.get("weight"), found.get("bias"), groups)


def _read(node: Node, value: Value) -> tuple[str, Constant, Callable[[Tensor], Tensor]] | None:
    """``weight`` or ``bias``, the constant, and what it is in the product or sum."""
    constants = [arg for arg in node.args if isinstance(arg, Constant)]
    if len(node.inputs) != 1 or len(constants) != 1 or len(node.args) != 2 or node.kind not in ("add", "mul"):
        return None
    first, alpha = node.args[0] is value, float(node.kwargs.get("alpha", 1))
    if node.operation == "mul" or (node.operation == "div" and first and not node.kwargs):
        divides = node.operation == "div"
        return "weight", constants[0], (lambda t: t.reciprocal()) if divides else (lambda t: t)
    if node.operation not in ("add", "sub") or not first:
        return ("bias", constants[0], lambda t: t) if node.operation == "add" and alpha == 1 else None
    sign = alpha if node.operation == "add" else -alpha
    return "bias", constants[0], lambda t: t if sign == 1 else t * sign


def _is_conversion(node: Node, value: Value) -> bool:
    """To another dtype, as where norms of half precision are computed in float32 and weighed in the model's."""
    same = node.output.shape == value.shape and node.output.is_float and node.inputs == (value,)
    return same and node.kind == "move" and node.operation in ("to", "_to_copy", "type_as")


def _laid_out(constant: Constant, change: Callable[[Tensor], Tensor], layout: Layout, x: Value) -> Constant:
    def made() -> Tensor:
        found = layout(change(_tensor(constant)))
        assert found is not None
        return found.to(x.dtype)

    return Constant(constant.name, made, constant.fault)


def _tensor(constant: Constant) -> Tensor:
    return torch.as_tensor(constant.tensor())


def _over_axes(x: Value, axes: tuple[int, ...]) -> Layout:
    """A layer norm's: of the sizes of its axes."""
    sizes = [x.sizes[axis - 1] for axis in axes]

    def layout(t: Tensor) -> Tensor | None:
        shape = _aligned(t, x)
        if shape is None or any(n != 1 and i not in axes for i, n in enumerate(shape)):
            return None
        return t.reshape([shape[axis] for axis in axes]).expand(sizes)

    return layout


def _over_channels(x: Value) -> Layout:
    """A group norm's: one number for each channel."""

    def layout(t: Tensor) -> Tensor | None:
        shape = _aligned(t, x)
        if shape is None or any(n != 1 and i != 1 for i, n in enumerate(shape)):
            return None
        return t.reshape(-1).expand(x.sizes[0])

    return layout


def _aligned(t: Tensor, x: Value) -> list[int] | None:
    """Sizes of all axes of ``x``; None if it does not broadcast to them."""
    rank = len(x.shape)
    shape = [1] * (rank - t.dim()) + list(t.shape)
    fits = len(shape) == rank and all(n in (1, have) for n, have in zip(shape[1:], x.sizes, strict=True))
    return shape if fits and shape[0] == 1 else None


def _before_grouping(x: Value, axes: tuple[int, ...]) -> Value | None:
    """``(B, C, …)`` of which ``x`` has the channels in groups, ``(B, G, …)``; None if it is none of these."""
    node = x.producer
    if node is None or node.kind != "move" or node.operation not in _RESHAPES or axes != tuple(range(2, len(x.shape))):
        return None
    whole = node.carried
    fits = whole is not None and whole.has_batch_first and len(whole.sizes) > 1 and whole.numel == x.numel
    return whole if fits and whole is not None and whole.sizes[0] % x.sizes[0] == 0 else None


def _is_back(node: Node, y: Value, whole: Value) -> bool:
    reshapes = node.kind == "move" and node.operation in _RESHAPES and node.carried is y
    return reshapes and node.output.shape == whole.shape and node.output.dtype == y.dtype
