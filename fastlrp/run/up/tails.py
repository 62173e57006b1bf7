"""Causal order on the way up: a group begins at its own first position, and what lies before it is not computed.

A token of a causal model reaches no position before its own. The cotangents of a block of groups are therefore zero
before the first position of them all; here they are cut there once, and every step that treats positions one by one,
the moves between them and causal attention go on with the rest. Nothing is assumed of the model: a cotangent is cut
where it is zero, and becomes whole again in front of a step that may mix positions in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten._zeros import leading_zeros
from fastlrp.plan.steps import BackwardStep
from fastlrp.plan.total import Total, multiply
from fastlrp.plan.window import Window

LEAST_SAVED = 1 / 32
"""Share of the positions that has to lie before a block of groups, so that it is cut."""

Up = Callable[[Tensor, Sequence[Any]], Tensor]
"""``(rows, slots) -> rows``."""


@dataclass(frozen=True, eq=False)
class Tail:
    """A cotangent ``(B, G, …)`` whose entries before a position are zero, and not there.

    Attributes:
        rows: the others. axis: of the positions, batch and groups counted. first: position of the first row. whole: how
            many positions there are.
    """

    rows: Tensor
    axis: int
    first: int
    whole: int

    @property
    def shape(self) -> torch.Size:
        """``(B, G, …)``, of what it stands for."""
        return torch.Size((*self.rows.shape[: self.axis], self.whole, *self.rows.shape[self.axis + 1 :]))

    def dense(self) -> Tensor:
        """All positions, with zeros at those before the first that is held."""
        result = self.rows.new_empty(self.shape)
        result.narrow(self.axis, 0, self.first).zero_()
        result.narrow(self.axis, self.first, self.whole - self.first).copy_(self.rows)
        return result

    def of(self, slot: Any) -> Any:
        """These positions of a slot ``(B, …)`` that has them along the same axis; anything else as it is."""
        at = self.axis - 1
        fits = isinstance(slot, Tensor) and slot.dim() > at and slot.shape[at] == self.whole
        return slot.narrow(at, self.first, self.whole - self.first) if fits else slot

    def plus(self, other: Tail) -> Tail | None:
        """The sum; None unless they are cut alike."""
        alike = (self.axis, self.first, self.whole) == (other.axis, other.first, other.whole)
        return replace(self, rows=self.rows + other.rows) if alike else None


@dataclass(eq=False)
class Tails:
    """What cuts cotangents; one for each way up. It remembers how moves treat positions."""

    _moves: dict[tuple[BackwardStep, tuple[int, ...], int], tuple[int, Up] | None] = field(default_factory=dict)

    def through(
        self, step: BackwardStep, arriving: Sequence[Any], state: Sequence[Any] | Mapping[int, Any]
    ) -> tuple[Tail, ...] | None:
        """One step up for the positions from the first on; None where that is not possible or nothing is saved."""
        if step.up is None:
            return None
        slots = [state[slot] for slot in step.slots]
        cut = [self._cut(step, t) for t in arriving]
        first = next((t for t in cut if t is not None), None)
        if first is None or any(
            t is not None and (other is None or (other.first, other.whole) != (first.first, first.whole))
            for t, other in zip(arriving, cut, strict=True)
        ):
            return None
        if step.up_from is not None:
            return _attention(step, cut, first, slots)
        if len(cut) != 1:
            return None
        if isinstance(getattr(step.up, "__self__", None), Total) or step.up is multiply:
            if any(isinstance(slot, Tensor) and slot.dim() != first.rows.dim() - 1 for slot in slots):
                return None
            found = step.up(first.rows, *map(first.of, slots))
            return tuple(replace(first, rows=t) for t in (found if isinstance(found, tuple) else (found,)))
        if step.by_position and first.axis == 2:
            return (replace(first, rows=step.up(first.rows, *map(first.of, slots))),)
        if slots or len(step.ins) != 1:
            return None
        key = step, tuple(first.shape[2:]), first.axis - 2
        if key not in self._moves:
            self._moves[key] = moved(step.up, key[1], key[2])
        move = self._moves[key]
        return None if move is None else (replace(first, rows=move[1](first.rows, ()), axis=move[0] + 2),)

    def _cut(self, step: BackwardStep, t: Any) -> Tail | None:
        if isinstance(t, Tail):
            return t
        # Looking costs little where the first position has something, and is worth it in front of a product.
        if not isinstance(t, Tensor) or not step.by_position or t.dim() < 4 or step.work <= step.numel:
            return None
        first = leading_zeros(t, 2)
        if first < max(1, LEAST_SAVED * t.shape[2]) or first == t.shape[2]:
            return None
        return Tail(t.narrow(2, first, t.shape[2] - first), 2, first, t.shape[2])


def _attention(
    step: BackwardStep, cut: Sequence[Tail | None], first: Tail, slots: Sequence[Any]
) -> tuple[Tail, ...] | None:
    assert step.up_from is not None
    if any(t is not None and t.axis != t.rows.dim() - 2 for t in cut):
        return None
    rows = [None if t is None else t.rows for t in cut]
    found = step.up_from(first.first, *rows, *slots)
    return None if found is None else (replace(first, rows=found, axis=found.dim() - 2),)


def moved(up: Callable[[Tensor], Tensor], sizes: tuple[int, ...], axis: int) -> tuple[int, Up] | None:
    """Where a move has the positions, and the same move of fewer of them; None if it is not seen to keep them together.

    It is seen from the strides of what the move makes of a tensor without memory.
    """
    window = getattr(up, "window", None)
    if isinstance(window, Window):  # It is put into zeros along another axis.
        return None if window.axis == axis + 2 or window.drops else (axis, lambda rows, slots: _embedded(rows, window))
    whole = sizes[axis]
    found = _place(up, sizes, axis)
    if found is None:
        return None
    at, out = found
    longer = (*sizes[:axis], whole + 1, *sizes[axis + 1 :])
    other = _place(up, longer, axis)
    if other is not None and other[0] == at and (*out[:at], whole + 1, *out[at + 1 :]) == other[1]:
        return at, lambda rows, slots: up(rows)
    before, after = out[:at], out[at + 1 :]
    order = torch.Size(sizes[:axis]).numel() == torch.Size(before).numel()
    if not order or torch.Size(sizes).numel() != torch.Size(out).numel() or not _keeps_order(up, sizes):
        return None
    return at, lambda rows, slots: rows.reshape(*rows.shape[:2], *before, rows.shape[axis + 2], *after)


def _embedded(rows: Tensor, window: Window) -> Tensor:
    shape = list(rows.shape)
    shape[window.axis] = window.whole
    result = rows.new_zeros(shape)
    window.room(result).copy_(rows)
    return result


def _made(up: Callable[[Tensor], Tensor], sizes: tuple[int, ...]) -> Tensor | None:
    """What a move makes of a contiguous tensor; None if it copies or does not take it."""
    given = torch.empty(1, 1, *sizes, device="meta")
    try:
        made = up(given)
    except Exception:  # A move of one size only.
        return None
    if not isinstance(made, Tensor) or made.device.type != "meta":
        return None
    is_view = made.untyped_storage()._cdata == given.untyped_storage()._cdata
    return made if is_view and made.dim() > 2 and made.shape[:2] == (1, 1) else None


def _keeps_order(up: Callable[[Tensor], Tensor], sizes: tuple[int, ...]) -> bool:
    made = _made(up, sizes)
    return made is not None and made.is_contiguous() and made.storage_offset() == 0


def _place(up: Callable[[Tensor], Tensor], sizes: tuple[int, ...], axis: int) -> tuple[int, tuple[int, ...]] | None:
    """The axis of the result that has the positions, all of them in order and no other axis any; and its sizes."""
    made = _made(up, sizes)
    if made is None:
        return None
    whole, unit = sizes[axis], torch.Size(sizes[axis + 1 :]).numel()
    out, strides = tuple(made.shape[2:]), made.stride()[2:]
    places = [i for i, (n, s) in enumerate(zip(out, strides, strict=True)) if n == whole and s == unit and n > 1]
    if len(places) != 1 or made.storage_offset() // unit % whole:
        return None
    inner = made.storage_offset() % unit
    for i, (n, s) in enumerate(zip(out, strides, strict=True)):
        if i == places[0] or n == 1:
            continue
        if s % (unit * whole):
            inner += (n - 1) * s
    return (places[0], out) if inner < unit else None
