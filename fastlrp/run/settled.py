"""Ways down that are the same whatever the numbers are: what a call has to find out is then found out once.

A small network's products take a few microseconds each, and so do questions about a schedule, its targets and its
budget. Where all targets of an input's relevance go down at once through dense layers, their steps are remembered by
the plan, and as a plain loop where no register may hold some positions alone. Where registers may be of bfloat16, lines
of their own bring them to float32 before a step that wants that. (:mod:`fastlrp.run.replay` is for GPUs,
and repeats recorded launches on memory that stays where it is. Here steps are remembered, and every call takes them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.plan.lines import Line, backward_line
from fastlrp.plan.plan import Plan
from fastlrp.plan.products.reduced import widened
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.step_names import note_down, profiling
from fastlrp.plan.steps import BackwardStep, Emission, Steps
from fastlrp.run import runner
from fastlrp.run.parted import Parted
from fastlrp.targets.one_hot import AtPositions, OneHot


@dataclass(frozen=True, eq=False)
class Settled:
    """The steps of one way down to the relevance of one value, for a number of targets and samples.

    Attributes:
        schedule: of the value. emission: its last step. steps: the fused ones. slots: that these read.
        straight: the same steps as a plain loop takes them; None if some register may hold some positions alone, which
            other steps have to be told of.
        moves_one_hot: whether a step gives one-hot targets on as such, with axes that they had not before.
        work: floating-point operations of all targets and samples.
    """

    value: Value
    schedule: Schedule
    emission: Emission
    steps: Steps
    slots: tuple[int, ...]
    straight: tuple[Line, ...] | None
    moves_one_hot: bool
    work: int

    def fits(self, state: Sequence[Any]) -> bool:
        """Whether all slots are filled, each with all samples."""
        for slot in self.slots:  # A plain loop: a generator would cost a small network dearly.
            if state[slot] is None:
                return False
        return Parted not in map(type, state)

    def descend(self, plan: Plan, state: list[Any], initial: Tensor | OneHot) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Register and factors whose product is the relevance of the value."""
        emission = self.emission
        at_positions = type(initial) is OneHot and (self.moves_one_hot or len(initial.sizes) > 1)
        if self.straight is None or at_positions or profiling():
            return self._step_by_step(plan, state, initial)
        cells = runner.registers_with(plan, initial) + state
        at = ""
        try:
            for name, run, read, out, frees in self.straight:
                at = name
                if type(out) is int:
                    cells[out] = run(*read(cells))
                    if type(cells[out]) is AtPositions:
                        return self._step_by_step(plan, state, initial)
                else:
                    for place, part in zip(out, run(*read(cells)), strict=True):
                        cells[place] = part
                for place in frees:
                    cells[place] = None
        except Exception as error:
            note_down(error, at)
            raise
        register = cells[emission.register]
        if type(register) is OneHot:
            register = register.dense()
        if plan.mixes_dtypes:
            register = widened(register)
        return register, tuple([state[slot] for slot in emission.slots])

    def _step_by_step(
        self, plan: Plan, state: list[Any], initial: Tensor | OneHot
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        found: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        runner.propagate(plan, state, initial, self.steps, lambda v, first, *given: found.append(given), 0)
        return found[0]


def settle(plan: Plan, schedule: Schedule, count: int, batch: int, size: int) -> Settled | None:
    """The way down of ``count`` targets, if it does not depend on the numbers of a forward pass.

    ``size``: for how many targets layers are chosen, see :meth:`fastlrp.run.answers.Answers.specialize`.
    """
    steps = runner.dense_steps(plan, schedule.steps, size, batch)
    if steps is None:
        return None
    emission, path = steps[-1][0], [step for step, _ in steps[:-1]]
    if type(emission) is not Emission or any(type(step) is Emission for step in path):
        return None
    bytes_of_one = batch * plan.dtype.itemsize * count
    if count > 1 and any(step.numel * bytes_of_one > plan.block_bytes for step in path):
        return None
    slots = tuple(dict.fromkeys(slot for step, _ in steps for slot in step.slots))
    straight = None
    if not any(step.embeds is not None and step.embeds.is_few for step in path):
        straight = tuple(line for step, frees in steps[:-1] for line in _lines(plan, step, frees))
    moves_one_hot = any(step.keeps_one_hot and plan.program.top in step.ins for step in path)
    work = plan.work * batch * count
    return Settled(emission.value, schedule, emission, steps, slots, straight, moves_one_hot, work)


def _lines(plan: Plan, step: BackwardStep, frees: tuple[int, ...]) -> list[Line]:
    """A step as lines: what it reads is brought to float32 before, if it takes no bfloat16."""
    widening = dict.fromkeys(step.ins) if plan.mixes_dtypes and not step.takes_bf16 else ()
    before = [Line(step.name, widened, itemgetter(slice(at, at + 1)), at, ()) for at in widening]
    return [*before, backward_line(step, frees, plan.program.registers)]
