"""Lifted forms of sums into places: messages that nodes of a graph add up, or of which they take the largest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.aggregation import added, counted, largest
from fastlrp.capture.graph import Constant, Value, derived
from fastlrp.capture.lift.lifter import Lifter, UnliftableError, aten, sizes_of
from fastlrp.capture.lift.moves import Form, aligned


def added_up(lifter: Lifter) -> Value:
    """``scatter_add``, ``index_add``, ``scatter_reduce`` and ``index_put`` with constant places along one axis."""
    bound = lifter.arguments()
    name, reduce = lifter.node.operation, bound.get("reduce", "sum")
    if not bound or (name == "index_put" and not bound.get("accumulate")):
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
    if reduce in ("amax", "amin"):
        return _largest(lifter, base, source, axis, rows, reduce, bool(bound.get("include_self")))
    if reduce not in ("sum", "mean", "add") or (reduce == "mean" and bound.get("include_self", True)):
        raise UnliftableError(f"reduces by {reduce!r}: use sum, amax or amin, or mean with include_self=False")
    if bound.get("alpha", 1) != 1:
        source = lifter.emit("mul", aten.mul.Tensor, (source, bound["alpha"]), source.sizes)
    y = _aggregated(lifter, source, axis, rows, reduce)
    if reduce == "mean":
        return y
    if isinstance(base, Constant) and not bool(base.tensor().any()):
        return y
    return lifter.emit("add", aten.add.Tensor, (aligned(lifter, base, len(lifter.shape)), y), lifter.shape)


def _aggregated(lifter: Lifter, x: Value, axis: int, index: Constant, reduce: str) -> Value:
    """Of each sample, by places along one of its axes."""
    count, shape = lifter.shape[axis], lifter.shape
    if reduce in ("amax", "amin"):
        return lifter.emit("aggregate_max", largest, (x, axis + 1, index, count, reduce == "amin"), shape)
    y = lifter.emit("aggregate", added, (x, axis + 1, index, count), shape)
    if reduce != "mean":
        return y
    dtype, tail = y.dtype or torch.float32, [1] * (len(shape) - axis - 1)
    counts = derived(index, lambda places: counted(places, count, dtype).view(-1, *tail))
    return lifter.emit("div", aten.div.Tensor, (y, counts), shape)


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

    if places.shape[axis] == 0:
        return derived(index, lambda t: t.new_zeros(0))  # No message at all.
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
    lifter: Lifter, base: Any, source: Value, axis: int, rows: Constant, reduce: str, with_base: bool
) -> Value:
    y = _aggregated(lifter, source, axis, rows, reduce)
    if not with_base:
        return y
    if len(rows.tensor().unique()) != lifter.shape[axis]:
        raise UnliftableError("takes the largest message where a node has none: use include_self=False")
    call, name = (aten.minimum.default, "minimum") if reduce == "amin" else (aten.maximum.default, "maximum")
    return lifter.emit(name, call, (y, aligned(lifter, base, len(lifter.shape))), lifter.shape)


def segments(lifter: Lifter) -> Value:
    """``segment_reduce`` with constant lengths: entries that follow one another."""
    bound = lifter.arguments()
    x, lengths, axis = bound.get("data"), bound.get("lengths"), bound.get("axis", 0)
    if not isinstance(x, Value) or not isinstance(lengths, Constant) or lengths.tensor().dim() != 1:
        return lifter.mapped()
    index = derived(lengths, lambda n: torch.repeat_interleave(torch.arange(len(n), device=n.device), n))
    reduce = {"sum": "sum", "mean": "mean", "max": "amax", "min": "amin"}.get(bound["reduce"])
    if reduce is None or index.tensor().shape[0] != x.sizes[axis] or bound.get("initial"):
        return lifter.mapped()
    return _aggregated(lifter, x, axis, index, reduce)


def sparse_product(lifter: Lifter, matrix: Constant, x: Value) -> Value:
    """A constant sparse matrix times ``(N, F)``: messages along its entries, added up by rows."""

    def entries(part: str) -> Constant:
        def of_matrix(t: Tensor) -> Tensor:
            t = t.to_sparse_coo().coalesce()
            return t.values().unsqueeze(1) if part == "values" else t.indices()[0 if part == "rows" else 1]

        return derived(matrix, of_matrix)

    columns, rows, values = (entries(part) for part in ("columns", "rows", "values"))
    sizes = (columns.tensor().shape[0], *lifter.shape[1:])
    messages = lifter.emit("index_select", aten.index_select.default, (x, 1, columns), sizes)
    weighted = lifter.emit("mul", aten.mul.Tensor, (messages, values), sizes)
    return _aggregated(lifter, weighted, 0, rows, "sum")


def written_rows(lifter: Lifter) -> Value:
    """``index_copy`` and ``index_fill`` along one axis by constant places: the same of each sample."""
    bound = lifter.arguments()
    index, source = bound.get("index"), bound.get("source", bound.get("value"))
    if not isinstance(index, Constant):
        return lifter.mapped()
    base = lifter.rows(bound["self"])
    source = lifter.rows(source) if isinstance(source, Constant) and lifter.node.operation == "index_copy" else source
    args = (base, bound["dim"] % len(lifter.shape) + 1, index, source)
    return lifter.emit(lifter.node.operation, lifter.node.call, args, lifter.shape)


MESSAGES: tuple[tuple[str, Form], ...] = (
    ("scatter_add index_add scatter_reduce index_put", added_up),
    ("segment_reduce", segments),
    ("index_copy index_fill", written_rows),
)
"""Operations and their lifted forms."""
