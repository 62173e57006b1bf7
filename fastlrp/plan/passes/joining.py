"""Backward steps that need no memory of their own: parts of a whole that are put side by side, sums in place.

Where a value was split into parts (queries, keys and values of one product), each part's relevance would be written
into zeros of the whole's size, and these would be added up. One step puts the parts side by side instead; where an
operation has written them so already, nothing is copied. And a register that only one step reads may be written over by
that step, if no other one looks at the same memory.

:func:`economize` is all of it, in this order: :mod:`~fastlrp.plan.passes.placing` lets an operation write parts where
they go, :mod:`~fastlrp.plan.passes.moving` makes moves that follow one another one copy; here parts are put side by
side; :mod:`~fastlrp.plan.passes.summing` adds parts to sums where they do not fill a whole;
:mod:`~fastlrp.plan.passes.widening` lets products write what their reader wants; then steps write over registers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.passes.moving import Known, Ways, gather_moves
from fastlrp.plan.passes.placing import place_parts
from fastlrp.plan.passes.summing import sum_windows
from fastlrp.plan.passes.widening import widen
from fastlrp.plan.steps import BackwardStep, Emission, Steps


def economize(steps: Steps, known: Known | None = None) -> Steps:
    """The same relevance with fewer passes over memory. ``known``: what a plan knows of groups of its steps."""
    moved = gather_moves(place_parts(steps, known), known)
    if len(moved) < len(steps):
        steps = with_frees(moved, steps)
    joined = join_parts(steps)
    summed = sum_windows(joined)
    if len(summed) < len(joined):
        joined = with_frees(summed, joined)
    return write_over(widen(joined))


def join_parts(steps: Steps) -> Steps:
    """A sum of parts that are written into zeros side by side, and fill the whole, becomes one step."""
    readers = _readers(steps)
    makers = {step.out: step for step, _ in steps if type(step) is not Emission and step.embeds is not None}
    written: list[Any] = []
    gone: set[BackwardStep] = set()
    every: Ways | None = None
    for step, _ in steps:
        parts = None if type(step) is Emission else _parts(step, makers, readers)
        if parts is None:
            written.append(step)
            continue
        gone.update(parts)
        every = Ways.of(steps) if every is None else every
        written.append(_joined(step, parts, all(is_own(part.ins[0], every) for part in parts)))
    if not gone:
        return steps
    return with_frees([step for step in written if step not in gone], steps)


def _parts(step: Any, makers: dict[int, BackwardStep], readers: Counter[int]) -> list[BackwardStep] | None:
    """What makes the operands of a sum, in order along the axis; None if they do not fill it or have other readers."""
    if not step.adds or not all(register in makers and readers[register] == 1 for register in step.ins):
        return None
    parts = [makers[register] for register in step.ins]
    windows = [part.embeds for part in parts if part.embeds is not None]
    if len({(w.axis, w.whole, w.drops) for w in windows}) != 1 or any(w.step != 1 for w in windows):
        return None
    ordered = sorted(parts, key=lambda part: part.embeds.start if part.embeds else 0)
    reached = 0
    for part in ordered:
        assert part.embeds is not None
        if part.embeds.start != reached:
            return None
        reached += part.embeds.length
    return ordered if reached == windows[0].whole else None


def is_own(register: int, ways: Ways) -> bool:
    """Whether a register lies in memory that was made for it and that nobody else reads: it was moved at most."""
    while ways.readers[register] == 1 and register in ways.makers:
        step = ways.makers[register]
        if step.fresh or step.into is not None:
            return True
        if step.moves_from is None:
            return False
        (register,) = step.ins
    return False


def _joined(total: BackwardStep, parts: Sequence[BackwardStep], fresh: bool) -> BackwardStep:
    """The step that puts them together; where they lie so already, its result is their memory."""
    window = parts[0].embeds
    assert window is not None
    axis, drops = window.axis, window.drops

    def side_by_side(*registers: Tensor) -> Tensor:
        if drops:
            registers = tuple(register.unsqueeze(axis) for register in registers)
        found = already_side_by_side(registers, axis)
        return torch.cat(registers, axis) if found is None else found

    ins = tuple(part.ins[0] for part in parts)
    return BackwardStep(
        total.name,
        total.node,
        side_by_side,
        ins,
        (),
        total.outs,
        total.numels,
        total.work,
        fresh=fresh,
        takes_bf16=True,
    )


def already_side_by_side(parts: Sequence[Tensor], axis: int) -> Tensor | None:
    """The whole, if these are parts of one memory that follow one another along ``axis``."""
    first = parts[0]
    memory, strides, at = first.untyped_storage().data_ptr(), first.stride(), first.storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != memory or part.stride() != strides or part.storage_offset() != at:
            return None
        at += part.shape[axis] * strides[axis]
    sizes = list(first.shape)
    sizes[axis] = sum(part.shape[axis] for part in parts)
    return first.as_strided(sizes, strides)


def write_over(steps: Steps) -> Steps:
    """Steps that can write over an operand do so where nobody else reads it."""
    readers = _readers(steps)
    fresh = {out for step, _ in steps if type(step) is not Emission and step.fresh for out in step.outs}
    written: Steps = []
    for step, frees in steps:
        if type(step) is not Emission and step.overwrites:
            for position, register in enumerate(step.ins):
                if register in fresh and readers[register] == 1 and position in step.overwrites:
                    step = replace(step, run=step.overwrites[position], form=None)
                    break
        written.append((step, frees))
    return written


def _readers(steps: Steps) -> Counter[int]:
    return Counter(r for step, _ in steps for r in ([step.register] if type(step) is Emission else step.ins))


def with_frees(steps: Sequence[Any], like: Steps) -> Steps:
    """Steps in order, each with the registers that nobody needs after it, of those that are freed in ``like``."""
    freed = {register for _, frees in like for register in frees}
    last: dict[int, int] = {}
    for position, step in enumerate(steps):
        for register in (step.register,) if type(step) is Emission else (*step.ins, *step.outs):
            last[register] = position
    frees: dict[int, list[int]] = {}
    for register, position in last.items():
        if register in freed:
            frees.setdefault(position, []).append(register)
    return [(step, tuple(frees.get(position, ()))) for position, step in enumerate(steps)]
