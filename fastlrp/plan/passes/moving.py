"""Moves that follow one another become one copy.

A window partition is a roll, a reshape, a permutation and one more reshape; patches are merged by eight slices and a
sum in zeros. Each of these steps would write the whole once more. What they do together is a permutation of rows, which
is one copy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.bounded import Bounded
from fastlrp.plan.steps import BackwardStep, Emission, Steps
from fastlrp.targets.one_hot import AtPositions

LARGEST = 1 << 22
"""Entries of the largest value whose moves are followed entry by entry, 32 MiB of numbers, once for each schedule."""

SHORTEST_ROW = 8
"""Entries that stay together, from which on a copy of rows is faster than the moves one by one."""

Known = Bounded[tuple[Any, ...], Any]
"""What groups of steps, which are equal to themselves alone, do together."""

MOST_KNOWN = 1024
"""Groups of steps that a plan remembers."""

_ROOMS = 64
"""Numbers of targets of which the rows' places are remembered."""


@dataclass(eq=False)
class Ways:
    """Who makes and who reads each register."""

    makers: dict[int, BackwardStep] = field(default_factory=dict)
    readers: Counter[int] = field(default_factory=Counter)

    @staticmethod
    def of(steps: Steps) -> Ways:
        """Makers and readers of the registers of these steps."""
        found = Ways()
        for step, _ in steps:
            if type(step) is Emission:
                found.readers[step.register] += 1
            else:
                found.readers.update(step.ins)
                found.makers.update(dict.fromkeys(step.outs, step))
        return found


def gather_moves(steps: Sequence[Any], known: Known | None = None) -> list[Any]:
    """Steps with each group of moves and sums that together bring every entry of one register to another place, and
    copy the whole more than once on the way, replaced by one step.

    ``known``: what was found out about groups of steps before.
    """
    known = Known(MOST_KNOWN) if known is None else known
    ways = Ways.of([(step, ()) for step in steps])
    gone: set[BackwardStep] = set()
    gathered: dict[BackwardStep, BackwardStep] = {}
    for last in reversed(steps):
        if type(last) is Emission or last in gone or not _only_moves(last):
            continue
        group, entries = _group(last, ways)
        if len(group) < 2 or len(entries) != 1:
            continue
        ordered = [step for step in steps if step in group]
        entry = entries.pop()
        step = known.get((entry, *ordered), partial(_gathered, ordered, entry))
        if step is not None:
            gathered[last] = step
            gone |= group
    return [gathered.get(step, step) for step in steps if step not in gone or step in gathered]


def _only_moves(step: BackwardStep) -> bool:
    return step.least == 1 and (step.moves_from is not None or (step.adds and not step.slots)) and len(step.outs) == 1


def _group(last: BackwardStep, ways: Ways) -> tuple[set[BackwardStep], set[int]]:
    """The moves and sums that lead to ``last`` alone, it included, and the registers that they begin with."""
    group, entries = {last}, set(last.ins)
    inside: Counter[int] = Counter(last.ins)
    grows = True
    while grows:
        grows = False
        for register in sorted(entries):
            maker = ways.makers.get(register)
            if maker is None or inside[register] != ways.readers[register] or not _only_moves(maker):
                continue
            group.add(maker)
            inside.update(maker.ins)
            entries.remove(register)
            entries.update(maker.ins)
            grows = True
    return group, entries


def _gathered(moves: list[BackwardStep], entry: int) -> BackwardStep | None:
    """One step for all of them; None if they do not copy each entry once, or hardly copy at all."""
    first = next((step for step in moves if step.ins == (entry,)), None)
    sizes, last = None if first is None else first.moves_from, moves[-1]
    numel = 0 if sizes is None else math.prod(sizes)
    if sizes is None or not 0 < numel <= LARGEST or last.numel != numel:
        return None
    numbers = torch.arange(numel, dtype=torch.float64).view(1, 1, *sizes)
    found, copies = _run(moves, entry, numbers)
    if copies < 2 or not found.is_contiguous():
        return None
    source = found.flatten().long()
    others = torch.rand(numel, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    again = _run(moves, entry, others.view(1, 1, *sizes))[0].flatten()
    once = source.min() >= 0 and source.max() < numel and bool((source.bincount(minlength=numel) == 1).all())
    if not once or not torch.equal(others[source], again):
        return None
    row = row_length(source)
    if row < SHORTEST_ROW:
        return None
    run = _Gather(source[::row] // row, row, tuple(found.shape[2:]), moves, entry)
    return BackwardStep(
        last.name, last.node, run, (entry,), (), last.outs, last.numels, last.work, fresh=True, takes_bf16=True,
        accepts_one_hot=all(step.accepts_one_hot for step in moves),
        keeps_one_hot=all(step.keeps_one_hot for step in moves),
    )  # fmt: skip


def _run(moves: Sequence[BackwardStep], entry: int, value: Any) -> tuple[Any, int]:
    """What arrives at the end, and how often the whole was copied."""
    registers, copies = {entry: value}, 0
    for step in moves:
        operands = [registers[r] for r in step.ins]
        result = step.run(*operands)
        if isinstance(result, AtPositions):
            result = result.dense()
        if isinstance(result, Tensor):
            memory = result.untyped_storage().data_ptr()
            copies += all(t.untyped_storage().data_ptr() != memory for t in operands)
        registers[step.out] = result
    return registers[moves[-1].out], copies


def row_length(source: Tensor) -> int:
    """How many entries stay together: the greatest common divisor of the lengths of runs."""
    breaks = (source.diff() != 1).nonzero().flatten() + 1
    whole = torch.cat([breaks, source.new_tensor([len(source)])])
    starts = torch.cat([source.new_zeros(1), breaks])
    return math.gcd(*(whole - starts).unique().tolist(), *source[starts].unique().tolist())


@dataclass(eq=False, repr=False)
class _Gather:
    """The copy of rows: of ``row`` entries each, ``source`` says where each row of the result comes from."""

    source: Tensor
    row: int
    sizes: tuple[int, ...]
    moves: Sequence[BackwardStep]
    entry: int
    _places: dict[tuple[torch.device, int], Tensor] = field(default_factory=dict)

    def __call__(self, flow: Any) -> Any:
        if not isinstance(flow, Tensor):  # One-hot relevance: the moves know where its entries go.
            return _run(self.moves, self.entry, flow)[0]
        rows = flow.reshape(-1, self.row)
        return rows.index_select(0, self._places_of(rows, flow)).view(*flow.shape[:2], *self.sizes)

    def _places_of(self, rows: Tensor, flow: Tensor) -> Tensor:
        key = (flow.device, len(rows))
        found = self._places.get(key)
        if found is None:
            starts = torch.arange(0, len(rows), len(self.source), device=flow.device)
            found = (starts.unsqueeze(1) + self.source.to(flow.device)).flatten()
            if len(self._places) >= _ROOMS:
                self._places.clear()
            self._places[key] = found
        return found
