"""Where a group of input entries reaches on its way up: a box of each map, which grows layer by layer.

A patch of the input touches only the positions of a map whose receptive field it is in. All groups have a box of the
same lengths in a map, each at its own place; outside of it the group's cotangent is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.groups import Resolved
from fastlrp.plan.forms import Affine, AvgPool, MaxPool, Sum
from fastlrp.plan.steps import BackwardStep
from fastlrp.plan.total import multiply

LARGEST_SHARE = 0.5
"""Of a map: a box above that is no longer worth its edges, and the whole map is computed."""


@dataclass(frozen=True, eq=False)
class Box:
    """The places of all groups in one map ``(C, *S)``.

    Attributes:
        starts: ``(G, n)``, where each group's box begins along each axis. lengths: of every box. sizes: ``S``.
    """

    starts: Tensor
    lengths: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the map that a box takes."""
        return math.prod(self.lengths) / max(1, math.prod(self.sizes))

    def slices(self, first: int, count: int) -> list[tuple[Any, ...]]:
        """Of the groups from ``first`` on, as an index of the map's axes, the last ones of a tensor."""
        return [
            (..., *(slice(a, a + n) for a, n in zip(begin, self.lengths, strict=True)))
            for begin in self.starts[first : first + count].tolist()
        ]

    def united(self, other: Box | None) -> Box | None:
        """A box that holds both; None, the whole map, if one of them is that."""
        if other is None:
            return None
        low = torch.minimum(self.starts, other.starts)
        ends = [b.starts + torch.tensor(b.lengths) for b in (self, other)]
        return fitted(low, torch.maximum(*ends) - 1, self.sizes)


Boxes = Mapping[int, Box]
"""By register; those that are not in it hold whole maps."""


@dataclass(frozen=True, eq=False)
class Boxed:
    """A cotangent ``(B, G, C, *S)`` of some groups in their boxes.

    Attributes:
        rows: ``(B, G, C, *lengths)``. box: of all groups. first: number of the first of these groups.
    """

    rows: Tensor
    box: Box
    first: int

    @property
    def slices(self) -> list[tuple[Any, ...]]:
        """Where each group's box is."""
        return self.box.slices(self.first, self.rows.shape[1])

    def dense(self) -> Tensor:
        """The whole maps, zero outside the boxes."""
        batch, count, channels = self.rows.shape[:3]
        found = maps_of_zeros(self.rows, batch, count, channels, self.box.sizes)
        for g, where in enumerate(self.slices):
            found[:, g][where] = self.rows[:, g]
        return found

    def times(self, factor: Tensor | None) -> Boxed:
        """Multiplied by a slot ``(B, C, *S)``."""
        if factor is None:
            return self
        rows = torch.empty_like(self.rows)
        for g, where in enumerate(self.slices):
            torch.mul(self.rows[:, g], factor[where], out=rows[:, g])
        return Boxed(rows, self.box, self.first)

    def times_(self, factor: Tensor) -> Boxed:
        """:meth:`times` in place."""
        for g, where in enumerate(self.slices):
            self.rows[:, g].mul_(factor[where])
        return self

    def cut(self, slot: Tensor) -> Tensor:
        """``(B, C, *S)`` to what each group's box holds of it, ``(B, G, C, *lengths)``."""
        return torch.stack([slot[where] for where in self.slices], 1)


def maps_of_zeros(like: Tensor, batch: int, count: int, channels: int, sizes: Sequence[int]) -> Tensor:
    """``(B, G, C, *S)``, channels-last where maps have two axes."""
    layout = torch.channels_last if len(sizes) == 2 else torch.contiguous_format
    shape = (batch * count, channels, *sizes)
    empty = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    return empty.zero_().unflatten(0, (batch, count))


def fitted(low: Tensor, high: Tensor, sizes: Sequence[int]) -> Box | None:
    """Boxes from ``low`` to ``high``, both ``(G, n)``, as long as the longest; None if that is too long."""
    if low.numel() == 0:
        return None
    limits = torch.tensor(list(sizes))
    lengths = torch.minimum((high - low).amax(0) + 1, limits).clamp(min=1)
    found = Box(torch.minimum(low, limits - lengths).clamp(min=0), tuple(lengths.tolist()), tuple(sizes))
    return found if found.share <= LARGEST_SHARE else None


def boxes_of_groups(resolved: Resolved, position: int, sizes: Sequence[int]) -> Box | None:
    """The smallest boxes of an input ``(C, *S)`` that hold its groups; None where that is most of it."""
    if len(sizes) < 2 or not resolved.count:
        return None
    found, count = resolved.maps[position], resolved.count
    if found.is_floating_point():
        groups, *places = found.ne(0).any(1).nonzero(as_tuple=True)  # (G, *S)
    else:
        # A number (1 or B, C, *S) may differ from channel to channel and from sample to sample.
        flat = found.expand(len(found), *sizes).reshape(-1, *sizes[1:])
        _, *places = flat.ge(0).nonzero(as_tuple=True)
        groups = flat[flat >= 0]
    low = torch.full((count, len(places)), 0, dtype=torch.int64)
    high = low.clone()
    for axis, place in enumerate(places):
        large = torch.full((count,), sizes[1 + axis], dtype=torch.int64)
        low[:, axis] = large.scatter_reduce(0, groups.cpu(), place.cpu(), "amin") % sizes[1 + axis]
        high[:, axis] = torch.zeros_like(large).scatter_reduce(0, groups.cpu(), place.cpu(), "amax")
    return fitted(low, torch.maximum(low, high), sizes[1:])


def form_of(step: BackwardStep) -> Any:
    """What a step does, as far as boxes can follow it."""
    if step.form is None and step.up is multiply and len(step.slots) == 1:
        return Sum((step.slots[0],))
    return step.form


def growth(step: BackwardStep) -> Callable[[Box], Box | None] | None:
    """How boxes below a step become boxes above it; None if that is not known."""
    form = form_of(step)
    if isinstance(form, Sum):
        return lambda box: box
    if isinstance(form, Affine):
        if form.geometry.transposed or len(form.leaving) < 2:
            return None
        g, outs = form.geometry, form.arriving[1:]
        return lambda box: _reached(box, outs, form.kernel, g.stride, g.padding, g.dilation)
    if isinstance(form, (MaxPool, AvgPool)):
        pool = form.geometry
        assert step.node is not None
        outs = step.node.output.sizes[1:]
        dilation = pool.dilation or [1] * len(outs)
        return lambda box: _reached(box, outs, pool.kernel_size, pool.stride, pool.padding, dilation)
    return None


def _reached(
    box: Box, outs: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Box | None:  # fmt: skip
    """Output o reads the inputs ``o s - p + j d``, j < k: those boxes of outputs that read something of a box."""
    k, s, p, d = (torch.tensor(list(numbers)) for numbers in (kernel, stride, padding, dilation))
    last, limits = box.starts + torch.tensor(box.lengths) - 1, torch.tensor(list(outs)) - 1
    low = -torch.div(-(box.starts + p - (k - 1) * d), s, rounding_mode="floor")
    high = torch.div(last + p, s, rounding_mode="floor")
    low, high = torch.minimum(low.clamp(min=0), limits), torch.minimum(high.clamp(min=0), limits)
    return fitted(low, torch.maximum(low, high), outs)


def planned(steps: Sequence[BackwardStep], starts: Mapping[int, Box]) -> Boxes:
    """The boxes of all registers, from those of the inputs' registers. ``steps`` in the order of the way up."""
    boxes: dict[int, Box | None] = dict(starts)
    for step in steps:
        found = [boxes.get(out) for out in step.outs if out in boxes]
        if not found:
            continue
        grow = growth(step) if len(step.outs) == 1 and found[0] is not None else None
        above = None if grow is None else grow(found[0])  # type: ignore[arg-type]
        for register in step.ins:
            before = boxes.get(register)
            if register in boxes:
                boxes[register] = None if above is None or before is None else before.united(above)
            else:
                boxes[register] = above
    return {register: box for register, box in boxes.items() if box is not None}


def axes_of(
    window: Sequence[tuple[int, int]], box: Sequence[tuple[int, int]]
) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """Where a box and a window overlap, as indices of both; each is (start, length) of each axis."""
    of_box, of_window = [], []
    for (o, w), (a, h) in zip(window, box, strict=True):
        low, high = max(a, o), min(a + h, o + w)
        if high <= low:
            return None
        of_box.append(slice(low - a, high - a))
        of_window.append(slice(low - o, high - o))
    return (..., *of_box), (..., *of_window)
