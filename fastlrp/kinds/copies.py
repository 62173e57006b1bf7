"""Copies that follow a pattern of axes, found by the numbers of their entries.

An axis of the result steps through the source by a fixed number of entries, or can be cut into such axes, its
*digits*: ``x[:, ::2]``, ``pixel_shuffle``, ``expand``, ``repeat_interleave``, ``upsample_nearest``. The inverse is a
permutation of axes, after a sum over the digits that do not step. Any other copy is a list of places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fastlrp.kinds.places import Taken
from fastlrp.plan.passes.moving import row_length

Copy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Copied:
    """What brings ``(B, K, *result)`` back to ``(B, K, *source)``, the copy itself, and whether each entry of the
    source was copied at most once."""

    back: Copy
    copy: Copy
    once: bool


def by_taking(source: Tensor, sizes: Sequence[int]) -> Taken | None:
    """The range or the place of one axis that was taken of ``(*sizes)``, if that is all that the operation did.

    ``source``: of each entry of the result the number of its source, -1 where there is none.
    """
    if source.numel() == 0 or not sizes or not 0 <= len(sizes) - source.dim() <= 1:
        return None
    numbers, drops = torch.arange(math.prod(sizes)).view(*sizes), len(sizes) > source.dim()
    first = int(source.flatten()[0])
    if first < 0:
        return None
    for dim in range(len(sizes)):
        rest = [*sizes[:dim], *([] if drops else [source.shape[dim]]), *sizes[dim + 1 :]]
        if rest != list(source.shape):
            continue
        inner = math.prod(sizes[dim + 1 :])
        start, length = first // inner % sizes[dim], 1 if drops else source.shape[dim]
        step = 1 if length == 1 else (int(source.select(dim, 1).flatten()[0]) - first) // inner
        found = Taken(dim, start, length, drops, step)
        inside = step > 0 and found.window(sizes).end <= sizes[dim]
        if inside and torch.equal(found.take(numbers.view(1, 1, *sizes))[0, 0], source):
            return found
    return None


def by_digits(source: Tensor, sizes: Sequence[int]) -> Copied | None:
    """The copy as steps along axes; None if it is none. Where entries come from nowhere they surround the others."""
    found = _box(source)
    if found is None:
        return None
    box, inner = found
    offset, digits = int(inner.flatten()[0]), []
    total = torch.zeros_like(inner)
    for axis in range(inner.dim()):
        line = inner[tuple(slice(None) if i == axis else 0 for i in range(inner.dim()))] - offset
        of_axis = _digits(line)
        if of_axis is None:
            return None
        digits += of_axis
        total = total + line.view([-1 if i == axis else 1 for i in range(inner.dim())])
    if not torch.equal(total + offset, inner) or not _stay_apart(digits):
        return None
    return _steps(digits, offset, tuple(sizes), tuple(inner.shape), box, tuple(source.shape))


def _box(source: Tensor) -> tuple[list[slice], Tensor] | None:
    """The ranges of the axes outside of which no entry has a source, and the sources inside, where all have one."""
    kept = source >= 0
    places = kept.nonzero()
    if not len(places):
        return None
    box = [slice(int(low), int(high) + 1) for low, high in zip(places.amin(0), places.amax(0), strict=True)]
    inner = source[tuple(box)]
    return (box, inner) if bool((inner >= 0).all()) else None


def _digits(line: Tensor) -> list[tuple[int, int]] | None:
    """Sizes and steps that make up ``line``, which begins with 0, the outermost first."""
    if len(line) == 1:
        return []
    step = int(line[1])
    breaks = (line.diff() != step).nonzero()
    run = int(breaks[0]) + 1 if len(breaks) else len(line)
    if len(line) % run or step < 0:
        return None
    starts = line[::run]
    outer = _digits(starts)
    fits = torch.equal((starts.unsqueeze(1) + step * torch.arange(run)).flatten(), line)
    return None if outer is None or not fits else [*outer, (run, step)]


def _stay_apart(digits: Sequence[tuple[int, int]]) -> bool:
    """Whether the digits that step reach each entry at most once."""
    reach = 0
    for size, step in sorted(((n, s) for n, s in digits if s), key=lambda digit: digit[1]):
        if step <= reach:
            return False
        reach += (size - 1) * step
    return True


def _steps(
    digits: Sequence[tuple[int, int]], offset: int, sizes: tuple[int, ...], inner: tuple[int, ...], box: list[slice],
    made: tuple[int, ...],
) -> Copied:  # fmt: skip
    """The copy by its digits; ``inner``: sizes of what has a source, ``made``: of the result."""
    inside = (slice(None), slice(None), *box)
    each = [n for n, _ in digits]
    repeated = [i + 2 for i, (_, step) in enumerate(digits) if not step]
    kept, steps = [n for n, step in digits if step], [step for _, step in digits if step]
    numel, cuts = math.prod(sizes), inner != made
    order = sorted(range(len(kept)), key=lambda i: -steps[i])
    falling, back_again = [kept[i] for i in order], [order.index(i) for i in range(len(order))]
    fills = math.prod(kept) == numel

    def back(f: Tensor) -> Tensor:
        first = f.shape[:2]
        f = (f[inside] if cuts else f).reshape(*first, *each)
        f = f.sum(repeated) if repeated else f
        if fills:
            return f.permute(0, 1, *(i + 2 for i in order)).reshape(*first, *sizes)
        result = f.new_zeros(*first, numel)
        result.as_strided((*first, *kept), (first[1] * numel, numel, *steps), offset).copy_(f)
        return result.view(*first, *sizes)

    def copy(t: Tensor) -> Tensor:
        first = t.shape[:2]
        if fills:
            found = t.reshape(*first, *falling).permute(0, 1, *(i + 2 for i in back_again))
        else:
            t = t.contiguous()
            found = t.as_strided((*first, *kept), (first[1] * numel, numel, *steps), t.storage_offset() + offset)
        for axis in repeated:
            found = found.unsqueeze(axis)
        found = found.expand(*first, *each).reshape(*first, *inner)
        if not cuts:
            return found
        whole = t.new_zeros(*first, *made)
        whole[inside] = found
        return whole

    return Copied(back, copy, once=not repeated)


def by_places(source: Tensor, sizes: Sequence[int]) -> Copied:
    """Any other copy, row by row as far as entries stay together."""
    numel, made, flat = math.prod(sizes), tuple(source.shape), source.flatten()
    whole_copy = bool((flat >= 0).all())
    once = (flat if whole_copy else flat[flat >= 0]).bincount(minlength=1).amax().item() <= 1
    row = row_length(flat) if whole_copy and len(flat) else 1
    row = row if numel % row == 0 else 1
    rows = flat[::row] // row if row > 1 else flat
    index = rows if whole_copy else rows[rows >= 0]
    kept = None if whole_copy else (rows >= 0).nonzero().squeeze(1)
    reordered = whole_copy and once and len(flat) == numel

    @cache  # Moved to a device once: a copy from the host would wait for it.
    def on(device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
        origin = index.argsort().to(device) if reordered else None
        return index.to(device), None if kept is None else kept.to(device), origin

    def back(f: Tensor) -> Tensor:
        where, some, origin = on(f.device)
        values = f.reshape(*f.shape[:2], len(rows), row)
        if origin is not None:
            return values.index_select(2, origin).view(*f.shape[:2], *sizes)
        values = values if some is None else values.index_select(2, some)
        result = f.new_zeros(*f.shape[:2], numel // row, row)
        return result.index_add_(2, where, values).view(*f.shape[:2], *sizes)

    def copy(t: Tensor) -> Tensor:
        where, some, _ = on(t.device)
        values = t.reshape(*t.shape[:2], numel // row, row).index_select(2, where)
        if some is not None:
            values = t.new_zeros(*t.shape[:2], len(flat), 1).index_copy_(2, some, values)
        return values.reshape(*t.shape[:2], *made)

    return Copied(back, copy, once)
