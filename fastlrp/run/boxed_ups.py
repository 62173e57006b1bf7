"""The way up through one step for groups in boxes: convolutions, pools, sums and products with a slot.

A step computes the box of its result from a window of its operand, zero where the operand's own box ends: the same sums
as on whole maps, without the terms that are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.forms import Affine, AvgPool, MaxPool, Sum
from fastlrp.run.boxes import Box, Boxed, axes_of, maps_of_zeros

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
    count, n = rows.shape[1], len(box.sizes)
    result = Boxed(rows.new_empty(*rows.shape[:3], *to[0].lengths), to[0], arriving.first)
    place = result.cut(state[form.index]).flatten(3)  # (B, G, C, P): positions in the whole map.
    where, inside = torch.zeros_like(place), torch.ones_like(place, dtype=torch.bool)
    rest, stride = place, 1
    for axis in reversed(range(n)):
        start = box.starts[arriving.first : arriving.first + count, axis].to(place.device).view(1, -1, 1, 1)
        own = rest % box.sizes[axis] - start
        rest = torch.div(rest, box.sizes[axis], rounding_mode="floor")
        inside &= (own >= 0) & (own < box.lengths[axis])
        where += own * stride
        stride *= box.lengths[axis]
    taken = rows.flatten(3).gather(3, where.masked_fill_(~inside, 0)).masked_fill_(~inside, 0)
    found = Boxed(taken.unflatten(3, to[0].lengths), to[0], arriving.first)
    return [found if form.scale is None else found.times_(state[form.scale])]


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
