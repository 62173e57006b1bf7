"""The way up in stages: few groups at once where maps are large, more where they are small, within a budget of memory.

A layer near the input has large maps, of which a block of registers holds few groups; a dense layer near the output has
a large weight, which should be read for many groups at once. Blocks of groups that come out of one stage are put side
by side until the next one has as many as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from fastlrp.plan.plan import Plan
from fastlrp.plan.steps import LANES, BackwardStep
from fastlrp.run.sparse.upward import SparseUp
from fastlrp.run.up.ascent import Ascent, Cotangent, Route, Take, on_whole_map
from fastlrp.run.up.boxes import Boxed, Boxes
from fastlrp.run.up.causal import at_once

Start = Callable[[int, int], dict[int, Cotangent]]
"""``start(first, count)``: the cotangents of these groups at the inputs' registers."""

_GROWS = 2
"""A stage ends where the next step takes so many times as many groups."""


class TooSmallError(ValueError):
    """``max_memory`` does not hold one group on its way up."""


@dataclass(frozen=True)
class Stage:
    """Steps that take the same number of groups at once.

    Attributes:
        positions: of the steps in the route. size: groups. entries: per sample and group, at most at once.
    """

    positions: range
    size: int
    entries: int


@dataclass(frozen=True)
class Footprint:
    """Entries of one step per sample and group: of all that is held at once, and of the largest register."""

    held: int
    largest: int


def footprints(plan: Plan, path: Route, boxes: Boxes, alive: Mapping[BackwardStep, SparseUp]) -> list[Footprint]:
    """Of each step of a route."""
    program = plan.program
    numels = {program.top: plan.graph.output.numel}
    numels.update((out, n) for step in program.backward for out, n in zip(step.outs, step.numels, strict=True))
    numels = {r: max(1, round(n * boxes[r].share)) if r in boxes else n for r, n in numels.items()}
    for step, sparse in alive.items():
        numels[step.ins[0]] = max(1, round(numels[step.ins[0]] * sparse.above.density))
    live = {plan.flows[value].register for value in path.starts}
    found = []
    for step in path.steps:
        live.update(step.ins)
        largest = max(numels[r] for r in (*step.ins, *step.outs))
        found.append(Footprint(sum(numels[r] for r in live) + 3 * largest, largest))
        live.difference_update(step.outs)
    return found or [
        Footprint(4 * max((numels[r] for r in live), default=1), max((numels[r] for r in live), default=1))
    ]


def stages(ascent: Ascent, batch: int, count: int, max_memory: int | None, held: int, each: int) -> list[Stage]:
    """How ``count`` groups go up: for all neurons, not for those alive alone, where their weights do not fit.

    Args:
        held: bytes of results that are there all the time. each: bytes that one group of the last stage needs beside.

    Raises:
        TooSmallError: if not even one group fits into ``max_memory``.
    """
    try:
        return _stages(ascent, batch, count, max_memory, held, each)
    except TooSmallError:
        if not ascent.alive:
            raise
    return _stages(ascent, batch, count, max_memory, held - ascent.without_alive(), each)


def _stages(ascent: Ascent, batch: int, count: int, max_memory: int | None, held: int, each: int) -> list[Stage]:
    plan, path = ascent.plan, ascent.route
    unit = max(1, batch) * plan.dtype.itemsize
    found = footprints(plan, path, ascent.boxes, ascent.alive)
    fits = [max(1, min(count, plan.block_bytes // max(1, f.largest * unit))) for f in found]
    # Rows of alive neurons hold whole vectors of groups.
    fits = [
        min(count, -(-fit // LANES) * LANES) if step in ascent.alive else fit
        for step, fit in zip_longest(path.steps, fits)
    ]
    cuts = _cuts([min(fit, few) for fit, few in zip(fits, at_once(path, count), strict=True)] if path.steps else fits)
    made = []
    for (start, size), end in zip(cuts, [*(start for start, _ in cuts[1:]), len(found)], strict=True):
        made.append(Stage(range(start, min(end, len(path.steps))), size, max(f.held for f in found[start:end])))
    if max_memory is None:
        return made
    left = max_memory - held
    within = _within(made, left, unit, each)
    if within is None:
        entries = max(f.held for f in found)
        size = min(count, left // max(1, entries * unit + each))
        if size < 1:
            raise TooSmallError(
                f"max_memory={max_memory} bytes is too small for the way up: one group of a batch of {batch} needs "
                f"{entries * unit + each} bytes beside the result's {held}. Raise max_memory, explain fewer samples or "
                "targets at once, or use direction='down'"
            )
        within = [Stage(range(len(path.steps)), size, entries)]
    return within


def _cuts(fits: Sequence[int]) -> list[tuple[int, int]]:
    """Where stages begin and their sizes, from how many groups each step takes: sizes that grow along the way."""
    sizes, least = [], fits[-1]
    for fit in reversed(fits):
        least = min(least, fit)
        sizes.append(least)
    cuts: list[tuple[int, int]] = []
    for position, size in enumerate(reversed(sizes)):
        if not cuts:
            cuts.append((position, size))
        elif size >= _GROWS * cuts[-1][1]:
            cuts.append((position, size // cuts[-1][1] * cuts[-1][1]))
    return cuts


def _within(made: Sequence[Stage], left: int, unit: int, each: int) -> list[Stage] | None:
    """The stages with smaller sizes, so that all of them together hold ``left`` bytes at most; None if that is none."""
    sizes = [stage.size for stage in made]
    while True:
        need = sum(n * s.entries * unit for n, s in zip(sizes, made, strict=True)) + sizes[-1] * each
        if need <= left:
            break
        if max(sizes) == 1:
            return None
        shrunk = [max(1, min(n - 1, int(n * left / need))) for n in sizes]
        sizes = [max(shrunk[: i + 1]) for i in range(len(shrunk))]
    return [Stage(s.positions, n, s.entries) for s, n in zip(made, sizes, strict=True)]


def blocks(ascent: Ascent, made: Sequence[Stage], count: int, start: Start, take: Take) -> Iterator[tuple[int, int]]:
    """Move all groups up; gives (first, number) of each block that has come to the end of the last stage."""
    for first, length, _ in _passed(ascent, made, count, start, take):
        yield first, length


Block = tuple[int, int, dict[int, Cotangent]]


def _passed(ascent: Ascent, made: Sequence[Stage], count: int, start: Start, take: Take) -> Iterator[Block]:
    *before, stage = made
    if before:
        source = _side_by_side(_passed(ascent, before, count, start, take), stage.size)
    else:
        source = _started(ascent, stage.size, count, start, take)
    for first, length, cotangents in source:
        ascent.ascend(stage.positions, cotangents, first, take)
        yield first, length, cotangents


def _started(ascent: Ascent, size: int, count: int, start: Start, take: Take) -> Iterator[Block]:
    direct = ascent.route.ends - ascent.last.keys()
    for first in range(0, count, size):
        length = min(size, count - first)
        cotangents = start(first, length)
        for register in direct & cotangents.keys():
            take(register, first, cotangents[register])
        yield first, length, cotangents


def _side_by_side(source: Iterator[Block], size: int) -> Iterator[Block]:
    pending: list[Block] = []
    for block in source:
        pending.append(block)
        if sum(length for _, length, _ in pending) >= size:
            yield _joined(pending)
    if pending:
        yield _joined(pending)


def _joined(pending: list[Block]) -> Block:
    """One block of several; takes the tensors out of them, which are not needed any more."""
    first, length = pending[0][0], sum(n for _, n, _ in pending)
    found: dict[int, Cotangent] = {}
    for register in list(pending[0][2]):
        parts = [cotangents.pop(register) for *_, cotangents in pending]
        boxed = [part for part in parts if isinstance(part, Boxed)]
        if boxed:
            found[register] = Boxed(_cat([part.rows for part in boxed]), boxed[0].box, first)
        else:
            found[register] = _cat([on_whole_map(part) for part in parts])
    pending.clear()
    return first, length, found


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """Along the groups, channels-last where the parts are."""
    if len(parts) == 1:
        return parts[0]
    shape = parts[0].shape
    if len(shape) == 5 and shape[0] == 1:
        return torch.cat([part[0] for part in parts], 0).unsqueeze(0)
    return torch.cat(list(parts), 1)
