"""Slots whose samples lie in several tensors: what forward steps leave that took a batch in parts.

:mod:`fastlrp.plan.passes.batch_parts` says where they do. The way down then goes through the same parts, so that such a
slot is never put together; who looks at a forward pass in any other way reads :func:`joined` slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Parted:
    """A slot ``(B, …)``, of which each part holds some samples; ``lengths``: how many.

    A part is False where a slot is asked for signs and these samples have no entry below zero (the builder's
    ``sign_slot``).
    """

    parts: tuple[Any, ...]
    lengths: tuple[int, ...]

    def whole(self) -> Any:
        """All samples in one tensor; False if all parts are."""
        given = next((part for part in self.parts if isinstance(part, Tensor)), None)
        if given is None:
            return self.parts[0]
        pairs = zip(self.parts, self.lengths, strict=True)
        return torch.cat([given.new_ones(n, *given.shape[1:]) if part is False else part for part, n in pairs])


@dataclass(frozen=True)
class Rows:
    """Samples ``start`` to ``start + length - 1`` of a batch, which are part ``number`` of it; ``last`` of all."""

    number: int
    start: int
    length: int
    last: bool


def rows_of_parts(state: Sequence[Any]) -> list[Rows]:
    """The parts that slots are in; none where all of them are whole."""
    first = next((item for item in state if type(item) is Parted), None)
    if first is None:
        return []
    found, start = [], 0
    for number, length in enumerate(first.lengths):
        found.append(Rows(number, start, length, number + 1 == len(first.lengths)))
        start += length
    return found


def of_rows(state: Sequence[Any], rows: Rows, batch: int) -> list[Any]:
    """The slots of some samples: parts as they are, views of what is whole."""
    return [_some(item, rows, batch) for item in state]


def _some(item: Any, rows: Rows, batch: int) -> Any:
    if type(item) is Parted:
        return item.parts[rows.number]
    has_batch = isinstance(item, Tensor) and item.dim() > 0 and len(item) == batch
    return item.narrow(0, rows.start, rows.length) if has_batch else item


def together(
    parts: Sequence[Sequence[Any]], lengths: tuple[int, ...], whole: list[Any], wanted: frozenset[int]
) -> None:
    """Fill the slots of ``whole`` that are empty with those of all parts, and put the ``wanted`` ones together."""
    slots = list(zip(*parts, strict=True))
    known = {tuple(map(id, items)): whole[slot] for slot, items in enumerate(slots) if whole[slot] is not None}
    for slot, items in enumerate(slots):
        if whole[slot] is None and items[0] is not None:
            key = tuple(map(id, items))  # Several slots may hold one tensor.
            found = known[key] if key in known else Parted(items, lengths)
            known[key] = whole[slot] = found.whole() if type(found) is Parted and slot in wanted else found


def join(state: list[Any]) -> list[Any]:
    """Put all slots of a state together, one after the other, in its place; returns it."""
    known: dict[tuple[int, ...], Any] = {}
    for slot, item in enumerate(state):
        if type(item) is Parted:
            key = tuple(map(id, item.parts))
            state[slot] = known[key] if key in known else known.setdefault(key, item.whole())
    return state


def joined(state: list[Any]) -> list[Any]:
    """A state whose slots are whole; the same one where they are."""
    return join(list(state)) if any(type(item) is Parted for item in state) else state


def tensors(state: Sequence[Any]) -> Iterator[Tensor]:
    """All that the slots hold."""
    for item in state:
        if type(item) is Parted:
            yield from (part for part in item.parts if isinstance(part, Tensor))
        elif isinstance(item, Tensor):
            yield item
