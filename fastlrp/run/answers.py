"""Relevance from the slots of one forward pass: steps for its alive neurons, blocks of targets, a basis, groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.errors import NotFiniteError
from fastlrp.plan.bounded import Bounded
from fastlrp.plan.neck import Neck
from fastlrp.plan.paths.choose import LEAST_TARGETS
from fastlrp.plan.paths.path import Path
from fastlrp.plan.plan import Plan
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.steps import BLOCK, LANES, Emission, Sink, Steps
from fastlrp.progress import Progress
from fastlrp.run import runner
from fastlrp.run.basis import Reduce
from fastlrp.run.basis import propagate as propagate_basis
from fastlrp.run.budget import Budget
from fastlrp.run.diagnose import not_finite
from fastlrp.run.finite import all_finite
from fastlrp.run.inputs import Inputs, Relevance
from fastlrp.run.names import input_values, layer_values
from fastlrp.run.parted import Rows, joined, of_rows, rows_of_parts
from fastlrp.run.settled import Settled, settle
from fastlrp.run.sink import Result, destination, refuse_shared_memory
from fastlrp.run.sparse.specialize import Specialized
from fastlrp.run.threads import Computing
from fastlrp.run.up.direction import Choice
from fastlrp.targets.one_hot import OneHot
from fastlrp.targets.targets import Targets

BASIS_BYTES = 64 << 20
"""Largest result of one block of basis vectors."""

KEPT_SPECIALIZED = 64
"""Ways down for the neurons alive in one forward pass that are remembered."""


@dataclass(frozen=True, eq=False)
class WayDown:
    """Steps for the neurons alive in ``state``, the slots of all samples, or of some: ``rows``."""

    state: list[Any]
    found: Specialized
    rows: Rows | None = None


class Answers:
    """How one forward pass under one plan answers; the slots of the pass are given to each call as ``state``.

    Args:
        keeps: whether ways down for the neurons alive in this pass are remembered from call to call.

    Attributes:
        paths, direction: of the latest call, see :class:`fastlrp.run.record.ForwardRecord`.
    """

    looks_for_nan = may_settle = True

    def __init__(self, plan: Plan, inputs: Inputs, batch: int, keeps: bool, max_memory: int | None) -> None:
        self.plan, self.inputs, self.batch, self.keeps, self.max_memory = plan, inputs, batch, keeps, max_memory
        self.paths: dict[str, Path] = {}
        self.direction: Choice | None = None
        self.specialized: Bounded[Any, Specialized] = Bounded(KEPT_SPECIALIZED)

    def under(self, plan: Plan) -> Answers:
        """The same pass under another plan; nothing has been asked yet."""
        return type(self)(plan, self.inputs, self.batch, self.keeps, self.max_memory)

    @property
    def budget(self) -> Budget:
        """What one block of targets may take."""
        return Budget(self.plan, self.batch, self.max_memory)

    def _budget_of(self, asked: Targets) -> Budget:
        return Budget(self.plan, self.batch, self.max_memory, asked.terms if self.plan.takes_one_hot else None)

    def values(self, layers: Any) -> dict[str, Value]:
        """Name -> value of everything that is asked for."""
        return {**layer_values(self.plan, layers), **input_values(self.plan, self.inputs)}

    def block_of_targets(
        self, state: list[Any], asked: Targets, layers: Any, reduce: str | None, taken: int = 0
    ) -> int:
        """How many targets fit into ``max_memory`` at a time, of which ``taken`` bytes are taken."""
        names, budget = self.values(layers), self._budget_of(asked)
        if budget.max_memory is not None:
            budget = replace(budget, max_memory=budget.max_memory - taken)
        budget.check(names, reduce)
        _, schedule, ways = self._steps(state, names, asked.count, reduce)
        return budget.block(asked.count, names, reduce, schedule, ways[0].found)[1]

    def paths_down(self, state: list[Any], names: dict[str, Value], count: int) -> dict[str, Path]:
        """How layers would go down for so many targets, by module."""
        return _of_all_parts(self._steps(state, names, count, None)[2])

    def refuse_not_finite(self, state: list[Any], result: Tensor, asked: Targets, start: int, count: int) -> None:
        """Name the layer where relevance became NaN or infinite.

        Raises:
            NotFiniteError: if it did.
        """
        if self.looks_for_nan and not all_finite(result):
            raise NotFiniteError(self._why_not_finite(state, asked, start, count))

    def relevance(
        self,
        state: list[Any],
        asked: Targets,
        start: int,
        count: int,
        layers: Any,
        reduce: str | None,
        out: Any,
        bar: Progress | None = None,
    ) -> Relevance:
        """Relevance for ``count`` of the targets from ``start`` on; see :meth:`ForwardRecord.relevance`."""
        if reduce not in (None, "channels"):
            raise ValueError(f"reduce must be None or 'channels', got {reduce!r}")
        if layers is None and out is None and self.max_memory is None and count == asked.count:
            settled = self._settled(count, reduce)
            if settled is not None and settled.fits(state):
                return self._all_at_once(settled, state, asked, reduce, bar)
        names = self.values(layers)
        results = {
            name: Result(name, value, self.batch, count, reduce, destination(out, name, names), len(names) == 1)
            for name, value in names.items()
        }
        refuse_shared_memory(results, [*self.inputs.tensors, asked.output, asked.given])
        self._fill(results, names, state, asked, range(start, start + count), reduce, bar)
        given = {name: result.finish() for name, result in results.items()}
        if layers is not None:
            inputs = {name: given.pop(name) for name in input_values(self.plan, self.inputs)}
            given["input"] = next(iter(inputs.values())) if len(inputs) == 1 else inputs
            return given
        return self.inputs.like(list(given.values()), [v in self.plan.flows for v in self.plan.graph.inputs])

    def _fill(
        self,
        results: dict[str, Result],
        names: dict[str, Value],
        state: list[Any],
        asked: Targets,
        chosen: range,
        reduce: str | None,
        bar: Progress | None,
    ) -> None:
        """Bring the chosen targets down, block by block, and write what arrives at the values into the results."""
        count, wanted = len(chosen), tuple(dict.fromkeys(names.values()))
        budget = self._budget_of(asked)
        budget.check(names, reduce)
        by_value: dict[Value, list[Result]] = {}
        for result in results.values():
            by_value.setdefault(result.value, []).append(result)

        def sink(
            value: Value, first: int, register: Tensor, factors: tuple[Tensor, ...], rows: Rows | None = None
        ) -> None:
            for result in by_value[value]:
                result.write(first, register, factors, rows)
            if bar is not None and value is wanted[-1] and (rows is None or rows.last):
                bar.reach(first + register.shape[1])

        with Computing(self.plan.work * self.batch * count, self.plan.device):
            state, schedule, ways = self._steps(state, names, asked.count, reduce)
            steps, block = budget.block(count, names, reduce, schedule, ways[0].found)
            for first in range(0, count, block):
                length = min(block, count - first)
                initial = asked.block(chosen.start + first, length, one_hot=self.plan.takes_one_hot)
                neck = runner.neck(self.plan, schedule, wanted, length) if self.max_memory is None else None
                if neck is not None:
                    self._by_basis(joined(state), initial, schedule, neck, sink, by_value)
                    continue
                for way in ways:
                    rows, own = way.rows, steps if steps is schedule.steps else way.found.steps
                    some = initial if rows is None else initial.narrow(0, rows.start, rows.length)
                    into = sink if rows is None else partial(sink, rows=rows)
                    runner.propagate(self.plan, way.state, some, own, into, first)
            if self.looks_for_nan and not all(result.is_finite() for result in results.values()):
                raise NotFiniteError(self._why_not_finite(state, asked, chosen.start, count))

    def _settled(self, count: int, reduce: str | None) -> Settled | None:
        """The way down to the one input, if it is the same for all numbers; see :mod:`fastlrp.run.settled`."""
        plan, values = self.plan, self.plan.explained_inputs()
        if len(values) != 1 or not self.may_settle:
            return None

        def make() -> Settled | None:
            schedule = plan.schedule(values, reduce == "channels")
            return settle(plan, schedule, count, self.batch, self._block_chosen_for(count))

        found: Settled | None = plan.settled.get((reduce, count, self.batch, plan.block_bytes), make)
        if found is None or (count > 1 and runner.neck(plan, found.schedule, values, count) is not None):
            return None
        return found

    def _all_at_once(
        self, settled: Settled, state: list[Any], asked: Targets, reduce: str | None, bar: Progress | None
    ) -> Relevance:
        plan, count = self.plan, asked.count
        self._note_paths({})
        result = Result("input", settled.value, self.batch, count, reduce, None, True)
        with Computing(settled.work, plan.device):
            initial = asked.block(0, count, one_hot=plan.takes_one_hot)
            result.write(0, *settled.descend(plan, state, initial))
            if bar is not None:
                bar.reach(count)
            if self.looks_for_nan and not result.is_finite():
                raise NotFiniteError(self._why_not_finite(state, asked, 0, count))
        if self.inputs.form == "tensor":
            return result.finish()
        return self.inputs.like([result.finish()], [v in plan.flows for v in plan.graph.inputs])

    def _why_not_finite(self, state: list[Any], asked: Targets, start: int, count: int) -> str:
        """The reason, looked for a few targets at a time: all layers' relevance is held at once."""
        state = joined(state)
        each = self.plan.graph.output.numel * max(1, self.batch) * self.plan.dtype.itemsize
        block = max(1, min(BLOCK, BASIS_BYTES // each))
        for first in range(0, count, block):
            initial = asked.block(start + first, min(block, count - first), one_hot=self.plan.takes_one_hot)
            found = not_finite(self.plan, state, initial)
            if found is not None:
                return found
        return "relevance is NaN or infinite: `explainer.verify(x, targets)` shows where"

    def _steps(
        self, state: list[Any], names: dict[str, Value], count: int, reduce: str | None
    ) -> tuple[list[Any], Schedule, list[WayDown]]:
        """Filled slots, the schedule of the values asked for, and its steps for the neurons alive in this pass.

        Where slots are in parts of the batch and layers may be sparse, each part has a way down of its own.
        """
        schedule = self.plan.schedule(tuple(dict.fromkeys(names.values())), reduce == "channels")
        state = runner.complete(self.plan, state, schedule.slots)
        parts = rows_of_parts(state) if self.plan.chooser.may_be_sparse(count) else []
        ways = []
        for rows in parts:
            some = of_rows(state, rows, self.batch)
            found = self.specialize(some, (schedule, 0, rows.number), schedule.steps, count)
            ways.append(WayDown(some, found, rows))
        if ways:
            self._note_paths(_of_all_parts(ways))
        if not parts:
            ways = [WayDown(state, self.specialize(state, (schedule, 0), schedule.steps, count))]
        return state, schedule, ways

    def specialize(
        self, state: list[Any], key: tuple[Any, ...], steps: Steps, count: int, below: Steps | None = None
    ) -> Specialized:
        """The steps of one way down, for the neurons alive in this pass where that costs less; ``below`` an edge.

        ``key``: the schedule, the position of its first step here, and of a part of the batch its number.
        """
        size = self._block_chosen_for(count)
        if self.keeps:
            make = lambda: runner.specialize(self.plan, steps, state, size, self.batch, below)  # noqa: E731
            found = self.specialized.get((*key, size), make)
        else:
            found = runner.specialize(self.plan, steps, state, size, self.batch, below)
        below_a_neck = key[1] > 0
        self._note_paths({**(self.paths if below_a_neck else {}), **found.by_module})
        return found

    def _block_chosen_for(self, count: int) -> int:
        """For how many targets at once layers are chosen, of so many in all."""
        # Rows hold whole lanes, and from one full block of targets on the choice is the same for any number of them.
        step = LANES if count > LANES else LANES // 4
        return min(self.plan.sparse_block, -(-count // step) * step) if count >= LEAST_TARGETS else 1

    def _note_paths(self, paths: dict[str, Path]) -> None:
        self.paths = self.plan.latest_paths = paths

    def _by_basis(
        self,
        state: list[Any],
        initial: Tensor | OneHot,
        schedule: Schedule,
        neck: Neck,
        sink: Sink,
        by_value: dict[Value, list[Result]],
    ) -> None:
        """All targets at once through a basis of a narrow edge."""
        plan = self.plan
        emitted = [step.value for step, _ in schedule.steps[neck.position :] if isinstance(step, Emission)]
        below: dict[Value, list[Reduce]] = {value: [result.reduced for result in by_value[value]] for value in emitted}
        state = runner.complete(plan, state, frozenset(neck.dead_at))
        factors = [state[s] for s in neck.dead_at]
        block = max(1, BASIS_BYTES // (max(v.numel for v in below) * max(1, self.batch) * plan.dtype.itemsize))
        block = block // BLOCK * BLOCK or block
        steps, at = schedule.steps, neck.position
        lower = self.specialize(state, (schedule, at), steps[at:], max(2, neck.width)).steps
        found = propagate_basis(
            runner.descent(plan, state, sink, self.batch), steps[:at], lower, neck, factors,
            runner.registers_with(plan, initial), initial.shape[1], below, block,
        )  # fmt: skip
        for value, parts in found.items():
            for result, part in zip(by_value[value], parts, strict=True):
                result.put(0, part)


def _of_all_parts(ways: list[WayDown]) -> dict[str, Path]:
    """How the layers of a batch in parts were computed."""
    if len(ways) == 1:
        return ways[0].found.by_module
    lengths = [0 if way.rows is None else way.rows.length for way in ways]
    found = [way.found.by_module for way in ways]
    common = [name for name in found[0] if all(name in other for other in found)]
    return {name: Path.of_parts([paths[name] for paths in found], lengths) for name in common}
