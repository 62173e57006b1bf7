"""Relevance of parts of the input, ``(B, K, G)``: down from the targets, up from the parts, or to an edge between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.errors import UnsupportedOperationError
from fastlrp.groups import Groups, Part, Resolved, resolve
from fastlrp.plan.paths.path import Path
from fastlrp.plan.plan import Plan
from fastlrp.run.up import middle
from fastlrp.run.up.direction import Choice, Costs, Direction, chosen, estimated
from fastlrp.run.up.meeting import Arrived
from fastlrp.run.up.middle import Edge
from fastlrp.run.up.stages import TooSmallError
from fastlrp.run.up.way_up import WayUp
from fastlrp.targets.targets import Targets

DOWN_BYTES = 256 << 20
"""Relevance of entries that is held at once before it is summed over groups."""


def parts_of(plan: Plan, names: Mapping[str, Value], batch: int) -> list[Part]:
    """The inputs that have relevance, as groups see them."""
    return [Part(name, v.sizes, v.is_float, batch, plan.device) for name, v in names.items()]


def resolved_groups(plan: Plan, groups: Groups, names: Mapping[str, Value], batch: int) -> Resolved:
    """See :func:`fastlrp.groups.resolve`."""
    return resolve(groups, parts_of(plan, names, batch))


@dataclass(frozen=True, eq=False)
class Question:
    """What a record is asked about groups.

    Attributes:
        first, count: the targets, of those of ``asked``. direction: as asked for. max_memory: bytes.
        down: the relevance ``(B, length, *x)`` of each input for a block of targets, ``down(start, length)``.
        above: their registers at an edge. block: gives targets at once on the way down; None: as many as
            :data:`DOWN_BYTES` allow. paths: how layers would go down, for the estimate.
    """

    plan: Plan
    state: list[Any]
    asked: Targets
    first: int
    count: int
    resolved: Resolved
    direction: Direction
    batch: int
    max_memory: int | None
    down: Callable[[int, int], list[Tensor]]
    above: Callable[[Edge, int, int], list[Arrived]]
    block: Callable[[], int | None]
    paths: Mapping[str, Path]

    def way_up(self) -> WayUp | None:
        """None where there is none and none is insisted on."""
        try:
            return WayUp(self.plan, self.asked, self.first, self.count)
        except UnsupportedOperationError:
            if self.direction in ("up", "middle"):
                raise
            return None

    def costs(self, way_up: WayUp | None) -> Costs:
        """What each way is estimated to cost."""
        return estimated(
            self.plan, way_up, self.count, self.resolved, self.asked.terms is not None, self.batch, self.max_memory,
            self.paths, self.state,
        )  # fmt: skip


def relevance_of_groups(question: Question) -> tuple[Tensor, Choice]:
    """``(B, K, G)``, and which way it came."""
    q, way_up = question, question.way_up()
    costs = q.costs(way_up)
    choice = chosen(q.plan, q.direction, costs, q.count, q.resolved.count)
    if choice.direction == "down":
        return _down(q), choice
    try:
        if choice.direction == "middle":
            assert costs.edge is not None
            edge, first = costs.edge, q.first

            def above(start: int, length: int) -> list[Arrived]:
                return [(at - first, register) for at, register in q.above(edge, first + start, length)]

            found = middle.relevance(
                q.plan, edge, q.state, q.resolved, q.batch, q.count, q.max_memory, above, q.block
            )  # fmt: skip
        else:
            assert way_up is not None
            found = way_up.relevance(q.state, q.resolved, q.batch, q.max_memory)
    except (UnsupportedOperationError, TooSmallError) as error:
        if q.direction != "auto":
            raise
        return _down(q), Choice("down", str(error).split(". ")[0], costs)
    return found, choice


def estimate_of_groups(question: Question) -> Choice:
    """Which way they would go."""
    q = question
    return chosen(q.plan, q.direction, q.costs(q.way_up()), q.count, q.resolved.count)


def _down(q: Question) -> Tensor:
    each = sum(v.numel for v in q.plan.explained_inputs()) * max(1, q.batch) * q.plan.dtype.itemsize
    size = q.block() or max(1, min(q.count, DOWN_BYTES // max(1, each)))
    found = [q.resolved.total(q.down(q.first + first, min(size, q.count - first))) for first in range(0, q.count, size)]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def blocks_of_groups(question: Question) -> Iterator[tuple[range, Tensor]]:
    """``(range of groups, (B, K, number))``, each block forgotten when the next one comes.

    Raises:
        ValueError: if the way down is insisted on. UnsupportedOperationError: where there is no way up. TooSmallError:
            if not even one group fits into ``max_memory``.
    """
    q = question
    if q.direction not in ("auto", "up"):
        raise ValueError(
            f"a stream over groups goes up, and direction is {q.direction!r}: use direction='up', or over='targets'"
        )
    way_up = WayUp(q.plan, q.asked, q.first, q.count)
    for first, length, part in way_up.parts(q.state, q.resolved, q.batch, q.max_memory):
        yield range(first, first + length), part.transpose(1, 2)
