"""Lifted forms of sums into places: messages that nodes of a graph add up, or of which they take the largest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.aggregation import added, counted, largest
from fastlrp.capture.graph import Constant, Value
from fastlrp.capture.lift_moves import Form, aligned
from fastlrp.capture.lifter import Lifter, UnliftableError, aten, derived, sizes_of


def added_up(lifter: Lifter) -> Value:
    """``scatter_add``, ``index_add``, ``scatter_reduce`` and ``index_put`` with constant places along one axis."""
    bound = lifter.arguments()
    name, reduce = lifter.node.operation, bound.get("reduce", "sum")
    if name == "index_put" and not bound.get("accumulate"):
        return lifter.mapped()
    base, source = bound["self"], bound.get("src", bound.get("source", bound.get("values")))
    indices = bound.get("indices") or [bound.get("index")]
    named = [i for i, item in enumerate(indices) if item is not None]
    if len(named) != 1:
        return lifter.mapped()
    index, axis = indices[named[0]], bound.get("dim", named[0])
    if not isinstance(source, Value):
        return lifter.mapped()
    axis = axis % max(len(lifter.shape), 1)
    rows = _rows(index, axis, source)
    if rows is None:
        return _entry_by_entry(lifter, base, axis, index, source, reduce)
    if sizes_of(source)[:axis] + sizes_of(source)[axis + 1 :] != lifter.shape[:axis] + lifter.shape[axis + 1 :]:
        return lifter.mapped()
    count = lifter.shape[axis]
    where = (axis + 1, rows, count)
    if reduce in ("amax", "amin"):
        return _largest(lifter, base, source, where, reduce == "amin", bool(bound.get("include_self")))
    if reduce not in ("sum", "mean", "add") or (reduce == "mean" and bound.get("include_self", True)):
        raise UnliftableError(f"reduces by {reduce!r}: use sum, amax or amin, or mean with include_self=False")
    if bound.get("alpha", 1) != 1:
        source = lifter.emit("mul", aten.mul.Tensor, (source, bound["alpha"]), source.sizes)
    y = lifter.emit("aggregate", added, (source, *where), lifter.shape)
    if reduce == "mean":
        dtype = y.dtype or torch.float32
        tail = [1] * (len(lifter.shape) - axis - 1)
        counts = derived(rows, lambda index: counted(index, count, dtype).view(-1, *tail))
        return lifter.emit("div", aten.div.Tensor, (y, counts), lifter.shape)
    if isinstance(base, Constant) and not bool(base.tensor().any()):
        return y
    return lifter.emit("add", aten.add.Tensor, (aligned(lifter, base, len(lifter.shape)), y), lifter.shape)


def _rows(index: Any, axis: int, source: Value) -> Constant | None:
    """Places along the axis alone, ``(E,)``; None if they differ along other axes or are no constants."""
    if not isinstance(index, Constant):
        return None
    places = index.tensor()
    if places.dim() == 1 and len(source.sizes) != 1:
        return index if places.shape[0] == source.sizes[axis] else None
    if tuple(places.shape) != source.sizes:
        return None

    def first(t: Tensor) -> Tensor:
        return t.movedim(axis, 0).reshape(t.shape[axis], -1)[:, 0]

    if places.numel() == 0 or bool((places.movedim(axis, -1) != first(places)).any()):
        return None
    return derived(index, first)


def _entry_by_entry(lifter: Lifter, base: Any, axis: int, index: Any, source: Value, reduce: str) -> Value:
    """Each entry has a place of its own, or the places are those of the sample."""
    if lifter.node.operation not in ("scatter_add", "scatter_reduce") or reduce != "sum":
        return lifter.mapped()
    args = (lifter.rows(base), axis + 1, lifter.rows(index), source)
    return lifter.emit("scatter_add", aten.scatter_add.default, args, lifter.shape)


def _largest(
    lifter: Lifter, base: Any, source: Value, where: tuple[int, Constant, int], smallest: bool, with_base: bool
) -> Value:
    y = lifter.emit("aggregate_max", largest, (source, *where, smallest), lifter.shape)
    if not with_base:
        return y
    if len(where[1].tensor().unique()) != where[2]:
        raise UnliftableError("takes the largest message where a node has none: use include_self=False")
    call, name = (aten.minimum.default, "minimum") if smallest else (aten.maximum.default, "maximum")
    return lifter.emit(name, call, (y, aligned(lifter, base, len(lifter.shape))), lifter.shape)


MESSAGES: tuple[tuple[str, Form], ...] = (("scatter_add index_add scatter_reduce index_put", added_up),)
"""Operations and their lifted forms."""
