"""Products that are made in two ways, some rows of a batch in one and all others in the other.

A row is a sample, or a sample with one target. Which way it takes depends on this row alone, so that a sample by itself
has the same bits as in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """All rows of a batch, or some.

    Attributes:
        shape: of all rows, ``(B,)`` samples or ``(B, K)`` samples by targets. numbers: of these rows, counted through
            all of ``shape``; None for all.
    """

    shape: tuple[int, ...]
    numbers: list[int] | None = None

    @property
    def targets(self) -> int:
        """How many rows each sample has."""
        return self.shape[1] if len(self.shape) > 1 else 1

    def of_flow(self, flow: Tensor) -> Tensor:
        """The entries of these rows in ``(B, K, ...)``: that itself if they are all rows, else ``(N, 1, ...)``."""
        return flow if self.numbers is None else flow.flatten(0, 1)[self.numbers].unsqueeze(1)

    def of_samples(self, x: Tensor) -> Tensor:
        """What samples have, ``(B, ...)``, for these rows: that itself if they are all rows, else ``(N, ...)``."""
        return x if self.numbers is None else x[[row // self.targets for row in self.numbers]]


def by_rows(
    shape: tuple[int, ...],
    even: Sequence[bool],
    filtered: Callable[[Rows], tuple[Tensor, Sequence[bool] | None]],
    plain: Callable[[Rows], Tensor],
) -> Tensor:
    """``(*shape, ...)``: for each row what ``filtered`` makes of it, where a look before and one after allow it.

    Args:
        shape: of all rows. even: whether the look before allows each row.
        filtered: the product of these rows, and which of them the look after allows; None for all.
        plain: the product of the other rows.
    """
    every = Rows(shape)
    chosen = [row for row, is_even in enumerate(even) if is_even]
    if not chosen:
        return plain(every)
    is_whole = len(chosen) == len(even)
    found, told = filtered(every if is_whole else Rows(shape, chosen))
    told = [True] * len(chosen) if told is None else told
    if is_whole and all(told):
        return found
    kept = [row for row, is_told in zip(chosen, told, strict=True) if is_told]
    if not kept:
        return plain(every)
    axis = len(shape) - 1
    some = found.flatten(0, axis)
    if len(kept) < len(chosen):
        some = some[[at for at, is_told in enumerate(told) if is_told]]
    others = sorted(set(range(len(even))) - set(kept))
    rest = plain(Rows(shape, others)).flatten(0, axis)
    both = _joined(kept, some, others, rest)
    return both.view(*shape, *both.shape[1:])


def _joined(first: list[int], some: Tensor, second: list[int], others: Tensor) -> Tensor:
    """Some rows and all others as one tensor, channels-last."""
    result = some.new_empty((len(first) + len(second), *some.shape[1:])).to(memory_format=torch.channels_last)
    result[first], result[second] = some, others
    return result
