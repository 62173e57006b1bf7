"""How a record answers questions about groups: whole, and in streams of targets, groups or contributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.groups import Groups, Resolved
from fastlrp.run import runner
from fastlrp.run.answers import Answers
from fastlrp.run.names import input_values, layer_values
from fastlrp.run.up import grouped
from fastlrp.run.up.contributions import Asked
from fastlrp.run.up.direction import Choice, Direction
from fastlrp.run.up.grouped import Question, resolved_groups
from fastlrp.run.up.meeting import Arrived
from fastlrp.run.up.middle import Edge, to_edge
from fastlrp.targets.targets import Targets

Over = Literal["targets", "groups"]

_RESULTS = 4
"""Which part of ``max_memory`` one block of a stream of results of groups may take."""


def refuse_more(layers: Any, reduce: str | None, out: Any = None) -> None:
    """Arguments that have no meaning for groups.

    Raises:
        ValueError: if there is one.
    """
    if layers is not None or reduce is not None or out is not None:
        raise ValueError("groups are parts of the input, summed up: leave layers, reduce and out away")


def check_over(over: Any, groups: Groups, block: int | None) -> None:
    """What a stream goes over.

    Raises:
        ValueError: for another word, or one that does not fit the other arguments.
    """
    if over not in ("targets", "groups") or (over == "groups" and (groups is None or block is not None)):
        raise ValueError(f"over must be 'targets', or 'groups' together with groups= and without block, got {over!r}")


def check_block(size: Any, given: Any) -> None:
    """Targets of one block.

    Raises:
        ValueError: unless it is a number of at least 1.
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"block must be at least 1, got {given!r}")


@dataclass(frozen=True, eq=False)
class GroupAnswers:
    """Answers about groups from the slots of one forward pass.

    Attributes:
        answers: how the way down answers, and what it remembers. state: the slots. asked: the targets. groups: the
            parts. direction: as asked for.
    """

    answers: Answers
    state: list[Any]
    asked: Targets
    groups: Groups
    direction: Direction = "auto"

    @cached_property
    def resolved(self) -> Resolved:
        """The parts as entries of the inputs, once for all blocks of a stream."""
        return _resolved(self.answers, self.groups)

    def question(self, start: int, count: int) -> Question:
        """Of ``count`` targets from ``start`` on, with the ways down that only :class:`Answers` knows."""
        answers, state, asked = self.answers, self.state, self.asked
        plan, batch, resolved = answers.plan, answers.batch, self.resolved

        def down(first: int, length: int) -> list[Tensor]:
            found = answers.relevance(state, asked, first, length, None, None, None)
            several = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else [found]
            return [R for R in several if R is not None]

        def block() -> int | None:
            if answers.max_memory is None:
                return None
            # Beside a block's relevance there are its sums over groups, and all of them twice when they are joined.
            sums = 3 * batch * count * resolved.count * plan.dtype.itemsize
            return answers.block_of_targets(state, asked, None, None, min(sums, answers.max_memory // 2))

        with torch.no_grad():
            names = input_values(plan, answers.inputs)
            paths = answers.paths_down(state, names, count) if self.direction != "up" else {}
        return Question(
            plan, state, asked, start, count, resolved, self.direction, batch, answers.max_memory, down, self._to_edge,
            block, paths,
        )  # fmt: skip

    def estimate(self) -> Choice:
        """Which way all targets would go."""
        return grouped.estimate_of_groups(self.question(0, self.asked.count))

    def relevance(self, start: int, count: int) -> Tensor:
        """``(B, count, G)`` of the targets from ``start`` on."""
        with torch.no_grad():
            result, choice = grouped.relevance_of_groups(self.question(start, count))
        self.answers.direction = self.answers.plan.latest_direction = choice
        self.answers.refuse_not_finite(self.state, result, self.asked, start, count)
        return result

    def blocks_of_groups(self) -> Iterator[tuple[range, Tensor]]:
        """``(range of groups, (B, K, number))``."""
        found = grouped.blocks_of_groups(self.question(0, self.asked.count))
        while True:
            with torch.no_grad():
                following = next(found, None)
            if following is None:
                return
            self.answers.refuse_not_finite(self.state, following[1], self.asked, 0, self.asked.count)
            yield following

    def block_of_targets(self) -> int:
        """Targets whose result takes a part of ``max_memory``."""
        answers, size = self.answers, self.asked.count
        if answers.max_memory is None:
            return size
        each = max(1, answers.batch * self.resolved.count * answers.plan.dtype.itemsize)
        return max(1, min(size, answers.max_memory // _RESULTS // each))

    def _to_edge(self, edge: Edge, start: int, length: int) -> list[Arrived]:
        """The targets' registers at an edge, without what dead neurons would bring, for which nobody below asks."""
        plan = self.answers.plan
        schedule = plan.schedule(plan.explained_inputs())
        steps = to_edge(schedule.steps, edge)
        below = schedule.steps[edge.position :]
        state = runner.complete(plan, self.state, schedule.slots)
        found = self.answers.specialize(state, (schedule, -edge.position), steps, length, below).steps
        collected: list[Arrived] = []

        def sink(value: Value, first: int, register: Tensor, factors: tuple[Tensor, ...]) -> None:
            collected.append((first, register))

        initial = self.asked.block(start, length, one_hot=plan.takes_one_hot)
        runner.propagate(plan, state, initial, found, sink, start)
        return collected


def contributions_asked(
    answers: Answers, state: list[Any], groups: Groups, layers: str | Sequence[str], readout: Tensor | None
) -> Asked:
    """What is asked of hidden layers; see :meth:`fastlrp.run.record.ForwardRecord.contributions`."""
    plan, resolved = answers.plan, _resolved(answers, groups)
    names = layer_values(plan, layers)
    asked_for = layers == "all" or "output" in layers
    values = {name: v for name, v in names.items() if name != "output" or asked_for}
    with torch.no_grad():
        return Asked(plan, state, values, resolved, answers.batch, answers.max_memory, readout)


def _resolved(answers: Answers, groups: Groups) -> Resolved:
    plan = answers.plan
    return resolved_groups(plan, groups, input_values(plan, answers.inputs), answers.batch)
