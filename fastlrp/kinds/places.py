"""Where entries come from through an operation that only copies them: places in flattened sizes, one by one.

The inverse of such an operation brings whole tensors back. Where only a few entries carry relevance, as at the output,
it is enough to say for each of them where it came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Node, Value
from fastlrp.plan.window import Window
from fastlrp.targets.one_hot import AtPositions, OneHot

Places = Callable[[Tensor], Tensor]
"""From places in the result to places in the source, -1 for what came from nowhere; tensors of integers."""


def same(index: Tensor) -> Tensor:
    """Of a reshape or a conversion: entries keep their places."""
    return index


def permuted(sizes: Sequence[int], order: Sequence[int]) -> Places:
    """Of a permutation. ``sizes``: of the source. ``order``: axis i of the result is axis ``order[i]`` of it."""
    source_strides = _strides(sizes)
    made = [sizes[axis] for axis in order]
    terms = [(stride, size, source_strides[a]) for stride, size, a in zip(_strides(made), made, order, strict=True)]

    def back(index: Tensor) -> Tensor:
        place = torch.zeros_like(index)
        for stride, size, source in terms:
            place += index // stride % size * source
        return place

    return back


def window(sizes: Sequence[int], cut: Taken) -> Places:
    """Of a range of one axis. ``sizes``: of the source."""
    inner, each = math.prod(sizes[cut.dim + 1 :]), cut.length * math.prod(sizes[cut.dim + 1 :])

    def back(index: Tensor) -> Tensor:
        outer, rest = index // each, index % each
        place = rest // inner * cut.step + cut.start
        return (outer * sizes[cut.dim] + place) * inner + rest % inner

    return back


@dataclass(frozen=True)
class Taken:
    """A range of one axis behind the batch: of ``dim`` (0 for the first of a sample) ``length`` entries from ``start``
    on, each ``step``-th. ``drops``: whether the axis is gone then, as after ``x[:, 3]``."""

    dim: int
    start: int
    length: int
    drops: bool
    step: int = 1

    def window(self, sizes: Sequence[int]) -> Window:
        """Where it is in ``(B, K, *sizes)``."""
        return Window(self.dim + 2, self.start, self.length, sizes[self.dim], self.drops, self.step)

    def inverse(self, sizes: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """What puts ``(B, K, *result)`` into zeros ``(B, K, *sizes)``."""

        window = self.window(sizes)

        def embed(flow: Tensor) -> Tensor:
            result = flow.new_zeros(*flow.shape[:2], *sizes)
            window.room(result).copy_(flow)
            return result

        embed.window = window  # type: ignore[attr-defined]
        return embed

    def take(self, t: Tensor) -> Tensor:
        """``(B, K, *result)`` of ``(B, K, *sizes)``."""
        return self.window(t.shape[2:]).room(t)


def taken(node: Node, x: Value, y: Value) -> Taken | None:
    """What a ``select`` or a ``slice`` takes of ``x``, if its arguments are plain numbers.

    A slice of everything takes all of the first axis.
    """
    if node.operation not in ("select", "slice") or not x.sizes:
        return None
    a = node.attributes
    dim = a.get("dim", 0)
    names = ("index",) if node.operation == "select" else ("start", "end", "step")
    numbers = [a.get(name) for name in names]
    if type(dim) is not int or any(n is not None and type(n) is not int for n in numbers):
        return None
    dim %= len(x.shape)
    if node.operation == "slice":
        start, end, step = numbers
        if dim == 0:
            whole = not start and x.sizes == y.sizes and step in (None, 1)
            return Taken(0, 0, x.sizes[0], False) if whole else None
        every = range(*slice(start, end, step).indices(x.sizes[dim - 1]))
        found = Taken(dim - 1, every.start, len(every), False, every.step)
    else:
        if dim == 0 or numbers[0] is None:
            return None
        found = Taken(dim - 1, numbers[0] % x.sizes[dim - 1], 1, True)
    sizes = list(x.sizes)
    sizes[found.dim : found.dim + 1] = [] if found.drops else [found.length]
    return found if tuple(sizes) == y.sizes and found.length > 0 else None


def at_positions(inverse: Callable[[Tensor], Tensor], window: Window) -> Callable[[Tensor], Any]:
    """``inverse``, or where it fills few positions, those alone: most of a class token's network above attention."""
    if not window.is_few:
        return inverse
    positions = torch.arange(window.start, window.end, window.step)

    def few(flow: Tensor) -> AtPositions:
        return AtPositions(flow.unsqueeze(2) if window.drops else flow, positions, window.whole)

    return few


def on_each_device(places: Tensor) -> Callable[[torch.device], Tensor]:
    """The places on a device, brought there once: a copy from the host would wait for it."""
    return cache(lambda device: places.to(device))


def listed(places: Tensor) -> Places:
    """Of any other copy: ``places`` has one for each entry of the result."""
    on = on_each_device(places)
    return lambda index: on(index.device)[index]


def keeping_one_hot(
    inverse: Callable[[Tensor], Any], places: Places, sizes: tuple[int, ...], dtype: torch.dtype | None
) -> Callable[..., Tensor | OneHot]:
    """The inverse copy, which also takes :class:`~fastlrp.targets.one_hot.OneHot` and then gives one again.

    Args:
        sizes, dtype: of the source.
    """

    def moved(flow: Tensor | OneHot) -> Tensor | OneHot:
        if isinstance(flow, OneHot):
            found = flow.moved(places, sizes)
            return found if dtype is None else found.to(dtype)
        return inverse(flow)

    return moved


def _strides(sizes: Sequence[int]) -> list[int]:
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
