"""Executes backward steps on a block of targets, in smaller blocks where maps get large."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.compact import Compact
from fastlrp.plan.products.reduced import widened
from fastlrp.plan.step_names import note_down, profiling, record_function
from fastlrp.plan.steps import BackwardStep, Emission, Sink, Steps
from fastlrp.run.blocks import NEARLY, even, fitting, next_sparse
from fastlrp.run.parted import Parted, Rows, of_rows
from fastlrp.run.reach import Reach
from fastlrp.targets.one_hot import AtPositions, OneHot


@dataclass(eq=False)
class Descent:
    """One way down: a state, where results go, and how large a register may get.

    Attributes:
        state: slots ``(B, …)``. batch: B. itemsize: bytes per entry. block_bytes: largest register. mixes_dtypes:
            whether registers may be of bfloat16, which not all steps take.
        rows: the parts of the batch that slots of ``state`` are in, if they are: from the first step on that reads such
            a slot, or where maps are large, one part goes down after the other.
    """

    state: list[Any]
    sink: Sink
    batch: int
    itemsize: int
    block_bytes: int
    mixes_dtypes: bool = False
    rows: Sequence[Rows] = ()

    def descend(self, steps: Steps, start: int, registers: list[Any], first: int, count: int) -> None:
        """Execute ``steps[start:]`` for targets ``first`` to ``first + count - 1``, whose registers are given."""
        if profiling():
            steps = [(step if type(step) is Emission else _profiled(step), frees) for step, frees in steps]
        reach = next(filter(None, map(Reach.of, registers)), None)
        parts = [_Part(start, registers, first, count, self.state, self.batch, reach)]
        while parts:
            # The smaller blocks of a part come before what is left of the others: one block goes down to the end.
            parts += reversed(self._advance(steps, parts.pop()))

    def _advance(self, steps: Steps, part: _Part, end: int | None = None) -> list[_Part]:
        """Execute the steps of one part to the end, or to a map too large for it: then in which parts to go on."""
        state, registers, position = part.state, part.registers, part.position
        may_part = part.rows is None and len(self.rows) > 0
        try:
            for position in range(part.position, len(steps) if end is None else end):
                step, frees = steps[position]
                if may_part and any(type(state[slot]) is Parted for slot in step.slots):
                    return self._in_rows(replace(part, position=position))
                if type(step) is Emission:
                    self._emit(step, part)
                else:
                    few = self._few_positions(step, registers, part.reach) if step.by_position else None
                    hot = step.keeps_one_hot and type(registers[step.ins[0]]) is OneHot
                    numel = step.numel if few is None else -(-step.numel * len(few.positions) // few.whole)
                    nbytes = numel * part.batch * self.itemsize * part.count
                    if nbytes > self.block_bytes and (part.count > 1 or may_part) and not hot:
                        smaller = self._smaller(steps, replace(part, position=position), numel, nbytes, may_part)
                        if smaller:
                            return smaller
                    self._execute(step, registers, few, state)
                for register in frees:
                    registers[register] = None
        except Exception as error:
            note_down(error, steps[position][0].name)
            raise
        return []

    def _emit(self, emission: Emission, part: _Part) -> None:
        """Hand a register to the sink, in runs of targets whose numbers follow each other."""
        value = part.registers[emission.register]
        value = value.dense() if type(value) in (OneHot, AtPositions) else value
        value = widened(value) if self.mixes_dtypes else value
        factors = tuple(part.state[slot] for slot in emission.slots)
        for target, place, length in part.runs():
            some = value if length == part.count else value.narrow(1, place, length)
            if part.rows is None:
                self.sink(emission.value, target, some, factors)
            else:
                self.sink(emission.value, target, some, factors, rows=part.rows)

    def _smaller(self, steps: Steps, part: _Part, numel: int, nbytes: int, may_part: bool) -> list[_Part]:
        """In which parts to go on before a step whose result of ``nbytes`` is too large; none: with the same part.

        ``numel``: entries of that result for one sample and target. ``may_part``: whether the batch may be divided.
        """
        if may_part:
            return self._in_rows(part)
        fits = fitting(steps[part.position][0], part.batch, self.itemsize, self.block_bytes, numel)
        if fits >= part.count:
            return []
        meeting = None if self.rows else _meeting(steps, part)
        if meeting is None:
            return _split(part, fits)
        return [] if nbytes <= NEARLY * self.block_bytes else [self._met(steps, part, fits, meeting)]

    def _execute(self, step: BackwardStep, registers: list[Any], few: AtPositions | None, state: list[Any]) -> None:
        """Fill the registers that one step writes; ``few``: the positions to which it is restricted."""
        ins, slots = step.ins, step.slots
        if few is None:
            for register in ins:
                if type(registers[register]) is AtPositions:
                    registers[register] = registers[register].dense()
        if self.mixes_dtypes and not step.takes_bf16:
            registers_in_float32(step, registers)
        if few is not None:
            registers[step.out] = self._run_at_positions(step, registers, few, state)
        elif len(step.outs) > 1:
            results = step.run(*[registers[r] for r in ins], *[state[slot] for slot in slots])
            for out, result in zip(step.outs, results, strict=True):
                registers[out] = result
        elif len(ins) == 1:
            registers[step.out] = step.run(registers[ins[0]], *[state[slot] for slot in slots])
        else:
            registers[step.out] = step.run(*[registers[r] for r in ins], *[state[slot] for slot in slots])

    def _met(self, steps: Steps, part: _Part, fits: int, meeting: int) -> _Part:
        """A part before the step at ``meeting``, where its smaller blocks have come together again."""
        registers, offset = list(part.registers), 0
        changed: dict[int, Any] = {}
        for block in _split(part, fits):
            given = list(block.registers)
            rest = self._advance(steps, block, meeting)
            for r, after in enumerate(rest[0].registers if rest else block.registers):
                if after is not given[r]:
                    changed[r] = None if after is None else _put(changed.get(r), after, offset, part.count)
                block.registers[r] = None  # One block's rows are given back before the next one makes its own.
            del rest, after, given
            offset += block.count
        for r, register in changed.items():
            registers[r] = register
        return replace(part, position=meeting, registers=registers)

    def _in_rows(self, part: _Part) -> list[_Part]:
        """The same targets for some samples after the other."""
        return [
            replace(
                part, state=of_rows(part.state, rows, part.batch), batch=rows.length, rows=rows,
                registers=[None if r is None else r.narrow(0, rows.start, rows.length) for r in part.registers],
            )
            for rows in self.rows
        ]  # fmt: skip

    def _run_at_positions(
        self, step: BackwardStep, registers: list[Any], few: AtPositions, state: list[Any]
    ) -> AtPositions:
        rows = [registers[r].rows for r in step.ins]
        return replace(few, rows=step.run(*rows, *[few.of(state[slot]) for slot in step.slots]))

    def _few_positions(self, step: BackwardStep, registers: list[Any], reach: Reach | None) -> AtPositions | None:
        """The positions that all operands of a step have alone, if it can do with them."""
        if len(step.outs) != 1:
            return None
        few = [r for r in step.ins if type(registers[r]) is AtPositions]
        if len(few) == len(step.ins):
            first: AtPositions = registers[few[0]]
            if all(registers[r].positions is first.positions for r in few):
                return first
        if reach is None or not reach.is_short:
            return None
        for r in few:
            if registers[r].positions is not reach.prefix:  # Those of the targets themselves.
                registers[r] = registers[r].dense()
        cut = reach.cut([registers[r] for r in step.ins])
        if cut is None:
            return None
        for r, register in zip(step.ins, cut, strict=True):
            registers[r] = register
        return cut[0]


def registers_in_float32(step: BackwardStep, registers: list[Any]) -> None:
    """What a step reads, for one that takes no bfloat16."""
    for register in step.ins:
        registers[register] = widened(registers[register])


@dataclass(eq=False)
class _Part:
    """Targets ``first`` to ``first + count - 1`` before the step at ``position``, and what their registers hold.

    ``state``, ``batch``: the slots, and of how many samples. ``order``: the numbers of the targets, where they are not
    in order; None where they are. ``rows``: of which part of the batch; None: of all of it.
    """

    position: int
    registers: list[Any]
    first: int
    count: int
    state: list[Any]
    batch: int
    reach: Reach | None = None
    order: list[int] | None = None
    rows: Rows | None = None

    def runs(self) -> list[tuple[int, int, int]]:
        """Of the targets that follow each other: the number of the first, its place here, and how many they are."""
        if self.order is None:
            return [(self.first, 0, self.count)]
        starts = [i for i, n in enumerate(self.order) if i == 0 or n != self.order[i - 1] + 1]
        return [(self.order[i], i, end - i) for i, end in itertools.pairwise([*starts, len(self.order)])]


def _meeting(steps: Steps, part: _Part) -> int | None:
    """Where the smaller blocks of a part that is to be split come together again; None where they go to the end."""
    meeting = next_sparse(steps, part.position)
    if meeting is None or part.reach is not None or any(isinstance(r, AtPositions) for r in part.registers):
        return None
    between = [step for step, _ in steps[part.position : meeting] if type(step) is not Emission]
    hot = any(step.keeps_one_hot and isinstance(part.registers[step.ins[0]], OneHot) for step in between)
    return None if hot else meeting


def _put(whole: Any, block: Any, offset: int, count: int) -> Any:
    """A register of ``count`` targets, made for its first block, with those from ``offset`` on filled in."""
    if isinstance(block, Compact):
        if whole is None:
            whole = replace(block, values=block.values.new_empty(len(block.values), count), count=count)
        whole.values[:, offset : offset + block.count] = block.values[:, : block.count]
        return whole
    if whole is None:  # Channels innermost.
        batch, _, channels, *size = block.shape
        whole = block.new_empty(batch, count, *size, channels).movedim(-1, 2)
    whole[:, offset : offset + block.shape[1]] = block
    return whole


def _split(part: _Part, fits: int) -> list[_Part]:
    """The part in smaller blocks of targets, in order; by their positions, where relevance ends at these."""
    part = _by_position(part)
    size = even(part.count, fits)
    found = []
    for offset in range(0, part.count, size):
        length = min(size, part.count - offset)
        registers = [None if r is None else r.narrow(1, offset, length) for r in part.registers]
        reach = None if part.reach is None else part.reach.narrow(offset, length)
        order = None if part.order is None else part.order[offset : offset + length]
        first = part.first + offset
        found.append(replace(part, registers=registers, first=first, count=length, reach=reach, order=order))
    return found


def _by_position(part: _Part) -> _Part:
    order = None if part.reach is None else part.reach.order()
    movable = all(r is None or isinstance(r, (Tensor, OneHot, AtPositions)) for r in part.registers)
    if part.reach is None or order is None or not movable:
        return part
    numbers = part.order or range(part.first, part.first + part.count)
    registers = [None if r is None else _taken(r, order) for r in part.registers]
    return replace(part, registers=registers, reach=part.reach.taken(order), order=[numbers[i] for i in order])


def _taken(register: Any, order: list[int]) -> Any:
    """A register's targets in another order."""
    if isinstance(register, Tensor):
        return register.index_select(1, torch.tensor(order, device=register.device))
    return register.taken(order)


def _profiled(step: BackwardStep) -> BackwardStep:
    def in_profile(*operands: Any) -> Any:
        with record_function(f"down: {step.name}"):
            return step.run(*operands)

    return replace(step, run=in_profile)
