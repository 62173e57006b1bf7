"""Relevance of parts of the input, ``(B, K, G)``, down from the targets or up from the parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.errors import UnsupportedOperationError
from fastlrp.groups import Groups, Part, Resolved, resolve
from fastlrp.one_hot import OneHot
from fastlrp.plan.plan import Plan
from fastlrp.plan.transpose import Shape
from fastlrp.run import runner
from fastlrp.run.ascent import Ascent, Frontier, Route, at_positions, combine_hot, frontier, register_shapes, route
from fastlrp.run.direction import Choice, Direction, chosen, cost_down, cost_up
from fastlrp.targets import Targets

DOWN_BYTES = 256 << 20
"""Relevance of entries that is held at once before it is summed over groups."""

TOP_ENTRIES = 16 << 20
"""Entries of the explained output that groups hold at once where they meet many positions."""


def parts_of(plan: Plan, names: Mapping[str, Value], batch: int) -> list[Part]:
    """The inputs that have relevance, as groups see them."""
    return [Part(name, v.sizes, v.is_float, batch, plan.device) for name, v in names.items()]


def resolved_groups(plan: Plan, groups: Groups, names: Mapping[str, Value], batch: int) -> Resolved:
    """See :func:`fastlrp.groups.resolve`."""
    return resolve(groups, parts_of(plan, names, batch))


class TooSmallError(ValueError):
    """``max_memory`` does not hold one group on its way up."""


class WayUp:
    """From the groups of one record to what is asked of them.

    Attributes:
        hot: targets that are few entries of the output; None for others. front: where those wait. path: the steps.
    """

    def __init__(self, plan: Plan, asked: Targets) -> None:
        self.plan, self.asked = plan, asked
        found = asked.block(0, asked.count, one_hot=True) if asked.terms is not None else None
        self.front: Frontier | None = frontier(plan, found) if isinstance(found, OneHot) else None
        self.final = {step.out: (step, hot) for step, hot in self.front.final} if self.front is not None else {}
        self.path: Route = route(plan, frozenset(self.final) or frozenset([plan.program.top]))

    def cost(self, resolved: Resolved) -> float:
        """See :func:`fastlrp.run.direction.cost_up`."""
        return cost_up(self.path, self.front, self.asked.count, resolved, self.plan.graph.output.numel)

    def relevance(self, state: list[Any], resolved: Resolved, batch: int, max_memory: int | None) -> Tensor:
        """``(B, K, G)``."""
        plan, count = self.plan, self.asked.count
        slots = self.path.slots | frozenset(s for step, _ in self.final.values() for s in step.slots)
        ascent = prepared(plan, self.path, state, batch, slots)
        result = torch.zeros((batch, resolved.count, count), dtype=plan.dtype, device=plan.device)
        size = block_of_groups(plan, self.path, batch, resolved.count, max_memory, count * result.element_size())
        for first in range(0, resolved.count, size):
            length = min(size, resolved.count - first)
            part = result.narrow(1, first, length)

            def take(register: int, t: Tensor, part: Tensor = part) -> None:
                part.add_(self._taken(ascent, register, t))

            ascent.ascend(start(ascent, resolved, first, length), take)
        return result.transpose(1, 2)

    def _taken(self, ascent: Ascent, register: int, t: Tensor) -> Tensor:
        if register in self.final:
            return at_positions(ascent, *self.final[register], t, TOP_ENTRIES)
        if self.front is not None:
            return combine_hot(t, self.front.hot)
        flat, count = t.flatten(2), self.asked.count
        size = max(1, TOP_ENTRIES // max(1, flat.shape[0] * flat.shape[2]))
        found = []
        for first in range(0, count, size):
            initial = self.asked.block(first, min(size, count - first))
            assert isinstance(initial, Tensor)
            found.append(flat @ initial.flatten(2).mT)
        return found[0] if len(found) == 1 else torch.cat(found, 2)


def prepared(plan: Plan, path: Route, state: list[Any], batch: int, slots: frozenset[int]) -> Ascent:
    """The way up with all slots filled that it reads."""
    shapes: dict[int, Shape] = {}
    factors = frozenset(slot for value in path.starts for slot in plan.flows[value].factor.slots)
    full = runner.complete(plan, state, slots | factors)

    def of_registers() -> dict[int, Shape]:
        if not shapes:
            every = frozenset(slot for step in plan.program.backward for slot in step.slots)
            shapes.update(register_shapes(plan, runner.complete(plan, full, every), batch))
        return shapes

    return Ascent(plan, path, full, of_registers)


def start(ascent: Ascent, resolved: Resolved, first: int, length: int) -> dict[int, Tensor]:
    """Cotangents of the inputs' registers: the groups' weights times what a register is multiplied with."""
    plan = ascent.plan
    found: dict[int, Tensor] = {}
    for position, value in enumerate(ascent.route.starts):
        flow = plan.flows[value]
        t = resolved.weights(position, first, length, plan.dtype)
        for slot in flow.factor.slots:
            t = t * ascent.state[slot].unsqueeze(1)
        t = t.expand(ascent.state[value.index].shape[0], *t.shape[1:])
        found[flow.register] = found[flow.register] + t if flow.register in found else t
    return found


def block_of_groups(plan: Plan, path: Route, batch: int, count: int, max_memory: int | None, result_bytes: int) -> int:
    """Groups at once, so that a register stays within the plan's block and all of them within ``max_memory``.

    Raises:
        TooSmallError: if not even one group fits into ``max_memory``.
    """
    unit = max(1, batch) * plan.dtype.itemsize
    peak, largest = _peak(plan, path)
    size = max(1, plan.block_bytes // max(1, largest * unit))
    if max_memory is not None:
        left = max_memory - count * batch * result_bytes
        if left < peak * unit:
            raise TooSmallError(
                f"max_memory={max_memory} bytes is too small for the way up: one group of a batch of {batch} needs "
                f"{peak * unit} bytes beside the result's {count * batch * result_bytes}. Raise max_memory, explain "
                "fewer samples or targets at once, or use direction='down'"
            )
        size = min(size, left // (peak * unit))
    return max(1, min(size, count))


def _peak(plan: Plan, path: Route) -> tuple[int, int]:
    """Entries per sample and group: of all that is held at once, and of the largest register."""
    program = plan.program
    numels = {program.top: plan.graph.output.numel}
    numels.update((out, n) for step in program.backward for out, n in zip(step.outs, step.numels, strict=True))
    live = {plan.flows[value].register for value in path.starts}
    peak = largest = max((numels[r] for r in live), default=1)
    for step in path.steps:
        live.update(step.ins)
        here = max(numels[r] for r in (*step.ins, *step.outs))
        peak, largest = max(peak, sum(numels[r] for r in live) + 3 * here), max(largest, here)
        live.difference_update(step.outs)
    return peak, largest


def relevance_of_groups(
    plan: Plan, state: list[Any], asked: Targets, resolved: Resolved, direction: Direction, batch: int,
    max_memory: int | None, down: Callable[[int, int], list[Tensor]], block: Callable[[], int | None],
) -> tuple[Tensor, Choice]:  # fmt: skip
    """Either way.

    Args:
        down: the relevance ``(B, length, *x)`` of each input for a block of targets, ``down(start, length)``.
        block: gives targets at once on the way down; None: as many as :data:`DOWN_BYTES` allow.

    Returns:
        ``(B, K, G)``, and which way it came.
    """
    try:
        way_up = WayUp(plan, asked)
    except UnsupportedOperationError:
        if direction == "up":
            raise
        way_up = None
    cost = cost_down(plan, asked.count, resolved, asked.terms is not None, max_memory is None)
    other = None if way_up is None else way_up.cost(resolved)
    choice = chosen(plan, direction, cost, other, asked.count, resolved.count)
    if choice.direction == "up":
        assert way_up is not None
        try:
            return way_up.relevance(state, resolved, batch, max_memory), choice
        except (UnsupportedOperationError, TooSmallError) as error:
            if direction == "up":
                raise
            choice = Choice("down", str(error).split(". ")[0], cost, None)
    each = sum(v.numel for v in plan.explained_inputs()) * max(1, batch) * plan.dtype.itemsize
    size = block() or max(1, min(asked.count, DOWN_BYTES // max(1, each)))
    found = []
    for first in range(0, asked.count, size):
        found.append(resolved.total(down(first, min(size, asked.count - first))))
    return (found[0] if len(found) == 1 else torch.cat(found, 1)), choice
