"""Executes a plan: forward passes that fill its slots, and blocks of targets that move down its registers.

A plan is data that many calls and threads share; nothing here changes it. What belongs to one call is its argument: the
``state``, which holds the slots of one forward pass, and the sink that takes results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.capture.signs import nonnegative
from fastlrp.plan.forms import Affine
from fastlrp.plan.kept import Keep
from fastlrp.plan.lines import Line
from fastlrp.plan.neck import Neck
from fastlrp.plan.passes import check as program_check
from fastlrp.plan.passes.fusion import fuse_unpooling
from fastlrp.plan.passes.joining import economize
from fastlrp.plan.paths.rates import rates_of
from fastlrp.plan.plan import Plan
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.step_names import note_forward, profiling, record_function
from fastlrp.plan.steps import Emission, Sink, Steps
from fastlrp.run import blocks
from fastlrp.run.asked_rows import only_rows
from fastlrp.run.basis import find_neck
from fastlrp.run.descent import Descent
from fastlrp.run.parted import Rows, join, of_rows, rows_of_parts, together
from fastlrp.run.sparse import specialize as alive
from fastlrp.run.sparse.needs import Needs
from fastlrp.run.sparse.specialize import Outlook, Specialized
from fastlrp.run.sparse.wants import Choose
from fastlrp.run.sparse.wholes import cheapest
from fastlrp.targets.one_hot import OneHot


def forward(
    plan: Plan, inputs: Sequence[Tensor], keep: Keep = "coefficients", at: Any = None, any_batch: bool = True
) -> list[Any]:
    """One forward pass. Returns the slots, of which those are filled that ``keep`` names.

    ``at``: positions of the output that are asked for and no others; None if that is not known.
    ``any_batch``: whether the graph takes batches of any size. Where maps are large the batch then goes in parts, and
    slots may be :class:`~fastlrp.run.parted.Parted`.
    """
    state: list[Any] = [None] * plan.program.slots
    for slot, tensor in zip(plan.program.inputs, inputs, strict=True):
        state[slot] = tensor
    schedule = plan.forward_schedule(keep)
    parts = plan.batch_parts(schedule, len(inputs[0])) if any_batch else None
    if at is not None:
        schedule = only_rows(plan, schedule, at)
    if parts is None:
        run_forward(schedule.lines, state)
    else:
        _in_parts(plan, schedule, parts.end, parts.runs(len(inputs[0])), state)
        for slot in parts.counts:
            state[slot] = len(inputs[0])
        run_forward(schedule.lines[parts.end :], state)
    return state


def _in_parts(plan: Plan, schedule: Schedule, end: int, runs: Sequence[tuple[int, int]], state: list[Any]) -> None:
    """Execute the steps up to ``end`` for some samples after the other; what the rest reads is put together."""
    found, lengths = [], tuple(length for _, length in runs)
    for number, (start, length) in enumerate(runs):
        some = of_rows(state, Rows(number, start, length, last=number + 1 == len(runs)), sum(lengths))
        run_forward(schedule.lines[:end], some)
        found.append(some)
    read = frozenset(slot for step, _ in schedule.steps[end:] for slot in step.ins)
    together(found, lengths, state, read | {plan.graph.output.index})


def complete(plan: Plan, state: list[Any], wanted: frozenset[int]) -> list[Any]:
    """``state`` with these slots filled, from those that are."""
    for slot in wanted:  # A plain loop: a generator would cost a small network dearly.
        if state[slot] is None:
            break
    else:
        return state
    have = frozenset(slot for slot, item in enumerate(state) if item is not None)
    full = list(join(state))
    run_forward(plan.completion(wanted, have).lines, full)
    return full


def take_over(plan: Plan, other: Plan, state: list[Any]) -> list[Any]:
    """The slots of this plan, filled with what the other plan of the same model has in ``state``.

    Nothing but inputs and outputs where that has fewer digits than this plan reads.
    """
    ours, theirs = plan.program, other.program
    taken: list[Any] = [None] * ours.slots
    if not theirs.serves(ours):
        for slot in (*ours.inputs, *(value.index for value in plan.graph.outputs)):
            taken[slot] = state[slot]
        return taken
    common = min(ours.own_slots, theirs.own_slots)
    taken[:common] = state[:common]
    for key, slot in ours.keyed.items():
        if key in theirs.keyed:
            taken[slot] = state[theirs.keyed[key]]
    return taken


def specialize(
    plan: Plan, steps: Steps, state: list[Any], count: int, batch: int, below: Steps | None = None
) -> Specialized:
    """The same steps for the neurons alive in ``state``, sparse where that pays for ``count`` targets.

    ``below``: steps that would follow, where ``steps`` end at an edge; the entries that they need are computed there.
    """
    dense = dense_steps(plan, steps, count, batch)
    if dense is not None:
        return Specialized(dense, [], 0)
    rates = rates_of(plan.device, plan.mixes_dtypes)
    if rates is None and not plan.chooser.asks_for_sparse:  # Patterns would wait for a GPU, and none be used.
        return Specialized(_fused_once(plan, steps), [], 0)
    needs = Needs(state, steps, below)

    def outlook(choose: Choose) -> Outlook:
        return alive.outlook(steps, needs, choose)

    best = cheapest(plan.chooser, count, plan.dtype.itemsize, rates, outlook)
    found = alive.written(steps, state, best)
    if program_check.ENABLED:
        program_check.check_backward(plan.program, found.steps, program_check.given_registers(steps), state)
    given = {step for step, _ in steps}
    nothing_sparse = all(step in given for step, _ in found.steps)
    fused = _fused_once(plan, found.steps) if nothing_sparse else _fused(plan, found.steps, state)
    return Specialized(fused, found.paths, found.nbytes)


def dense_steps(plan: Plan, steps: Steps, count: int, batch: int) -> Steps | None:
    """The steps as they go down for ``count`` targets whatever the numbers are; None if some may be sparse."""
    may, work = plan.chooser.may_be_sparse(count), 0  # Asked first: it costs a small network's call less than the sum.
    if may:
        work = sum(s.work for s, _ in steps if type(s) is not Emission and isinstance(s.form, Affine))
    if work and plan.chooser.may_be_sparse(count, work * count * batch):
        return None
    return _fused_once(plan, steps)


def _fused(plan: Plan, steps: Steps, state: list[Any] | None = None) -> Steps:
    fused = economize(fuse_unpooling(steps), plan.moves)
    if program_check.ENABLED:
        program_check.check_backward(plan.program, fused, program_check.given_registers(steps), state)
    return fused


def _fused_once(plan: Plan, steps: Steps) -> Steps:
    """Of steps none of which is made for one state."""
    return plan.fusions.get(tuple(step for step, _ in steps), lambda: _fused(plan, steps))


def descent(plan: Plan, state: list[Any], sink: Sink, batch: int) -> Descent:
    """What moves targets down from ``state``."""
    return Descent(state, sink, batch, plan.dtype.itemsize, plan.block_bytes, plan.mixes_dtypes, rows_of_parts(state))


def propagate(plan: Plan, state: list[Any], initial: Tensor | OneHot, steps: Steps, sink: Sink, first: int) -> None:
    """Move a block of targets down; what the steps emit goes to ``sink``."""
    registers = registers_with(plan, initial)
    descent(plan, state, sink, initial.shape[0]).descend(steps, 0, registers, first, initial.shape[1])


def registers_with(plan: Plan, initial: Tensor | OneHot) -> list[Any]:
    """All registers, empty but for the initial relevance."""
    registers: list[Any] = [None] * plan.program.registers
    registers[plan.program.top] = initial
    return registers


def peak_bytes(plan: Plan, steps: Steps, batch: int, count: int, terms: int | None = None) -> int:
    """Bytes that ``count`` targets need at once while they move down, results not included.

    ``terms``: entries of each target where they start one-hot.
    """
    top = plan.program.top
    sizes = {top: plan.graph.output.numel}
    # The values and, in eight bytes each, their places.
    hot = {} if terms is None else {top: terms * (1 + -(-8 // plan.dtype.itemsize))}
    return blocks.peak_bytes(steps, sizes, batch, count, plan.dtype.itemsize, plan.block_bytes, hot)


def neck(plan: Plan, schedule: Schedule, values: Sequence[Value], count: int) -> Neck | None:
    """Where a basis is cheaper than ``count`` targets, if the rules are linear and there is such a place."""
    if not plan.linear or count < 2:
        return None

    def find() -> Neck | None:
        numel = sum(v.numel for v in values)
        return find_neck(schedule.steps, plan.flows, count, numel, lambda: nonnegative(plan.graph))

    return plan.necks.get((schedule, count), find)


def run_forward(lines: Sequence[Line], state: list[Any]) -> None:
    """Execute forward steps, each with the slots that are not needed after it, on ``state``."""
    if profiling():
        lines = [line._replace(run=_profiled(line)) for line in lines]
    at = ""
    try:
        for name, run, read, out, frees in lines:
            at = name
            if type(out) is int:
                state[out] = run(*read(state))
            else:
                for slot, item in zip(out, run(*read(state)), strict=True):
                    state[slot] = item
            for slot in frees:
                state[slot] = None
    except Exception as error:
        note_forward(error, at)
        raise


def _profiled(line: Line) -> Callable[..., Any]:
    def in_profile(*tensors: Any) -> Any:
        with record_function(f"forward: {line.name}"):
            return line.run(*tensors)

    return in_profile
