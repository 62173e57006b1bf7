"""Entries taken along one axis by a constant list of places, as graph networks copy nodes to edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.kinds.places import Places, on_each_device

Copy = Callable[[Tensor], Tensor]


def rows_taken(node: Node, x: Value, y: Value) -> tuple[Copy, bool, Places, Copy] | None:
    """For ``x.index_select(axis, places)`` and ``x[:, places]``: what brings ``(B, K, *y)`` back to ``(B, K, *x)``,
    whether each entry was copied at most once, where single entries came from, and the copy itself.

    None for any other operation. Unlike the entries of the whole, which numbering them would need, places are few.
    """
    found = _axis_and_places(node)
    if found is None:
        return None
    axis, constant = found[0] % len(x.shape), found[1]
    places = constant.tensor().long() % x.shape[axis]  # type: ignore[operator]
    if axis == 0 or places.dim() != 1 or y.sizes[axis - 1] != len(places):
        return None
    size, once = x.sizes[axis - 1], places.unique().numel() == places.numel()
    inner = math.prod(x.sizes[axis:])
    on = on_each_device(places)

    def add_back(f: Tensor) -> Tensor:
        sizes = [*f.shape]
        sizes[axis + 1] = size
        return f.new_zeros(sizes).index_add_(axis + 1, on(f.device), f)

    def take(t: Tensor) -> Tensor:
        return t.index_select(axis + 1, on(t.device))

    def origin(index: Tensor) -> Tensor:
        """Of numbers of entries of ``y``."""
        outer, rest = index // (len(places) * inner), index % (len(places) * inner)
        rows = on(index.device)[rest // inner]
        return outer * (size * inner) + rows * inner + rest % inner

    return add_back, once, origin, take


def _axis_and_places(node: Node) -> tuple[int, Constant] | None:
    if node.operation == "index_select" and len(node.args) == 3 and isinstance(node.args[2], Constant):
        return node.args[1], node.args[2]
    if node.operation == "index" and len(node.inputs) == 1:
        named = [(i, index) for i, index in enumerate(node.args[1]) if index is not None]
        if len(named) == 1 and isinstance(named[0][1], Constant) and not named[0][1].tensor().is_floating_point():
            return None if named[0][1].tensor().dtype == torch.bool else named[0]
    return None
