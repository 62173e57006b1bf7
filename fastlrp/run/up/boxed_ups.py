"""The way up through one step for groups in boxes: convolutions, pools, sums and products with a slot.

A step computes the box of its result from a window of its operand, zero where the operand's own box ends: the same sums
as on whole maps, without the terms that are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fastlrp.plan.forms import Affine, AvgPool, MaxPool, Sum
from fastlrp.run.up.boxes import Box, Boxed, axes_of, maps_of_zeros

Up = Callable[[Any, Boxed, list["Box"], Sequence[Any]], list[Boxed]]
"""``(form, arriving, boxes of the results, state) -> results``."""


def _window(rows: Tensor, arriving: Boxed, origins: Tensor, lengths: Sequence[int]) -> Tensor:
    """``(B, G, C, *lengths)`` from ``origins (G, n)`` on, of rows in the boxes of ``arriving``."""
    batch, count, channels = rows.shape[:3]
    found = maps_of_zeros(rows, batch, count, channels, lengths)
    starts = arriving.box.starts[arriving.first : arriving.first + count].tolist()
    for g, (origin, start) in enumerate(zip(origins.tolist(), starts, strict=True)):
        window = list(zip(origin, lengths, strict=True))
        both = axes_of(window, list(zip(start, arriving.box.lengths, strict=True)))
        if both is not None:
            found[:, g][both[1]] = rows[:, g][both[0]]
    return found


def _windows_of(
    arriving: Boxed, to: Box, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """What the results in the boxes ``to`` read."""
    count = arriving.rows.shape[1]
    starts = to.starts[arriving.first : arriving.first + count]
    origins = starts * torch.tensor(list(stride)) - torch.tensor(list(padding))
    lengths = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(to.lengths, stride, kernel, dilation, strict=True)]
    return lambda rows: _window(rows, arriving, origins, lengths)


def _affine(form: Affine, arriving: Boxed, to: list[Box], state: Sequence[Any]) -> list[Boxed]:
    g = form.geometry
    windows = _windows_of(arriving, to[0], form.kernel, g.stride, g.padding, g.dilation)
    none = [0] * len(g.stride)

    def product(window: Tensor, weight: Tensor) -> Boxed:
        found = torch.convolution(
            window.flatten(0, 1), weight, None, g.stride, none, g.dilation, False, none, g.groups
        )  # fmt: skip
        return Boxed(found.unflatten(0, window.shape[:2]), to[0], arriving.first)

    if form.factors is not None:  # Of the box rule: one coefficient, and a factor for each product.
        parts = zip(form.weights, form.factors, strict=True)
        terms = [(weight, windows(arriving.times(state[slot]).rows), form.coefficients[0]) for weight, slot in parts]
    elif form.is_split(state):
        assert form.sign is not None
        sign = arriving.cut(state[form.sign])
        above, below = (windows(torch.where(side, arriving.rows, 0)) for side in (sign > 0, sign < 0))
        terms = []
        for weight, slot, splits in zip(form.weights, form.coefficients, form.splits, strict=True):
            if splits:
                terms += [(weight.clamp(min=0), above, slot), (weight.clamp(max=0), below, slot)]
            else:
                terms.append((weight, windows(arriving.rows), slot))
    else:
        window = windows(arriving.rows)
        each = zip(form.weights, form.coefficients, form.splits, strict=True)
        terms = [(weight.clamp(min=0) if splits else weight, window, slot) for weight, slot, splits in each]
    total: Boxed | None = None
    for weight, window, slot in terms:
        part = product(window, weight).times_(state[slot])
        total = part if total is None else Boxed(total.rows.add_(part.rows), to[0], arriving.first)
    assert total is not None
    return [total]


def _max_pool(form: MaxPool, arriving: Boxed, to: list[Box], state: Sequence[Any]) -> list[Boxed]:
    rows, box = arriving.rows, arriving.box
    count = rows.shape[1]
    result = Boxed(rows.new_empty(*rows.shape[:3], *to[0].lengths), to[0], arriving.first)
    flat, along = _winners(state[form.index], box)
    starts = box.starts[arriving.first : arriving.first + count].to(flat.device)
    where = result.cut(flat).flatten(3)  # (B, G, C, P): positions, counted as in the box.
    where -= (starts * torch.tensor(_steps(box.lengths), device=flat.device)).sum(1).view(1, -1, 1, 1)
    outside = torch.zeros_like(where, dtype=torch.bool)
    for axis, places in enumerate(along):
        own = result.cut(places).flatten(3)
        start = starts[:, axis].to(own.dtype).view(1, -1, 1, 1)
        outside |= own < start
        outside |= own >= start + box.lengths[axis]
    taken = rows.flatten(3).gather(3, where.masked_fill_(outside, 0)).masked_fill_(outside, 0)
    found = Boxed(taken.unflatten(3, to[0].lengths), to[0], arriving.first)
    return [found if form.scale is None else found.times_(state[form.scale])]


def _steps(lengths: Sequence[int]) -> list[int]:
    """Entries between neighbours along each axis of a contiguous map."""
    return [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]


_SEEN: Any = WeakIdKeyDictionary()
"""By the tensor of a pool's winners what :func:`_winners` made of it: dividing integers takes longer than the rest."""


def _winners(index: Tensor, box: Box) -> tuple[Tensor, list[Tensor]]:
    """Winners ``(B, C, *S')`` as positions of a map of the box's lengths, and their places along each axis."""
    key = box.sizes, box.lengths
    known = _SEEN.get(index)
    if known is None or known[0] != key:
        small = torch.int16 if max(box.sizes) < 1 << 15 else torch.int64
        along = [index // step % size for step, size in zip(_steps(box.sizes), box.sizes, strict=True)]
        flat = torch.zeros_like(index)
        for places, step in zip(along, _steps(box.lengths), strict=True):
            flat += places * step
        known = key, flat, [places.to(small) for places in along]
        _SEEN[index] = known
    return known[1], known[2]


def _avg_pool(form: AvgPool, arriving: Boxed, to: list[Box], state: Sequence[Any]) -> list[Boxed]:
    kernel, stride, padding = form.geometry.windows
    found = _windows_of(arriving, to[0], kernel, stride, padding, [1] * len(kernel))(arriving.rows)
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=3):
        found = found.unfold(axis, k, s).sum(-1)
    result, scale = Boxed(found, to[0], arriving.first), form.scales(state)
    return [result if scale is None else result.times_(scale)]


def _sum(form: Sum, arriving: Boxed, to: list[Box], state: Sequence[Any]) -> list[Boxed]:
    found = []
    for slot, box in zip(form.scales, to, strict=True):
        part = arriving.times(None if slot is None else state[slot])
        found.append(part if box is arriving.box else _moved(part, box))
    return found


def _moved(arriving: Boxed, to: Box) -> Boxed:
    """The same in larger boxes."""
    count = arriving.rows.shape[1]
    starts = to.starts[arriving.first : arriving.first + count]
    return Boxed(_window(arriving.rows, arriving, starts, to.lengths), to, arriving.first)


UPS: dict[type, Up] = {Affine: _affine, MaxPool: _max_pool, AvgPool: _avg_pool, Sum: _sum}
"""By the form of a step."""
