"""The steps of a program that the asked-for values need, in order, each with what is freed after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastlrp.plan.lines import Line, forward_line
from fastlrp.plan.steps import BackwardStep, ForwardStep, Steps


@dataclass(eq=False)
class Schedule:
    """Steps in order, each with what may be forgotten after it."""

    steps: Steps
    keep: frozenset[int]

    @cached_property
    def slots(self) -> frozenset[int]:
        """Slots that its backward steps and emissions read."""
        return frozenset(slot for step, _ in self.steps for slot in step.slots)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Its forward steps as a plain loop takes them."""
        return tuple(forward_line(step, frees) for step, frees in self.steps)


def schedule_forward(steps: Sequence[ForwardStep], keep: frozenset[int], inputs: Sequence[int]) -> Schedule:
    """Order forward steps so that each cache is made as soon as it can, and free slots after their last use."""
    ready = dict.fromkeys(inputs, -1)
    keyed: list[tuple[tuple[int, int, int], ForwardStep]] = []
    clock = 0
    for position, step in enumerate(s for s in steps if not s.is_cache):
        clock = position
        ready.update(dict.fromkeys(step.outs, position))
        keyed.append(((position, 0, 0), step))
    for order, step in enumerate(s for s in steps if s.is_cache):
        at = max((ready[slot] for slot in step.ins), default=clock)
        ready.update(dict.fromkeys(step.outs, at))
        keyed.append(((at, 1, order), step))
    ordered = [step for _, step in sorted(keyed, key=lambda item: item[0])]
    return Schedule(_with_frees(ordered, lambda s: s.ins, lambda s: s.outs, keep), keep)


def schedule_backward(steps: Sequence[BackwardStep], keep: frozenset[int]) -> Schedule:
    """Drop steps that no kept register needs, and free registers after their last use, at once if nobody reads them."""
    needed = set(keep)
    kept: list[BackwardStep] = []
    for step in reversed(steps):
        if needed.intersection(step.outs):
            kept.append(step)
            needed.update(step.ins)
    return Schedule(_with_frees(kept[::-1], lambda s: s.ins, lambda s: s.outs, keep), keep)


def _with_frees(
    steps: Sequence[Any],
    ins: Callable[[Any], tuple[int, ...]],
    outs: Callable[[Any], tuple[int, ...]],
    keep: frozenset[int],
) -> list[tuple[Any, tuple[int, ...]]]:
    last: dict[int, int] = {}
    for position, step in enumerate(steps):
        for slot in (*ins(step), *outs(step)):
            last[slot] = position
    frees: dict[int, list[int]] = {}
    for slot, position in last.items():
        if slot not in keep:
            frees.setdefault(position, []).append(slot)
    return [(step, tuple(frees.get(position, ()))) for position, step in enumerate(steps)]
