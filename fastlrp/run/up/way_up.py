"""The way up of one record: from groups of input entries to targets, or to whatever register is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.dispatch import sparse_kernels
from fastlrp.groups import Resolved
from fastlrp.looking import LOOKS
from fastlrp.plan.forms import Affine
from fastlrp.plan.paths.choose import LEAST_TARGETS
from fastlrp.plan.paths.rates import rates_of
from fastlrp.plan.plan import Plan
from fastlrp.plan.steps import LANES, BackwardStep
from fastlrp.plan.total import in_one_axis
from fastlrp.plan.transpose import Shape
from fastlrp.run import runner
from fastlrp.run.sparse import upward
from fastlrp.run.sparse.upward import SparseUp
from fastlrp.run.up.ascent import (
    Ascent,
    Cotangent,
    Route,
    on_whole_map,
    register_shapes,
    route,
)
from fastlrp.run.up.boxes import Box, Boxed, Boxes, boxes_of_groups, growth, maps_of_zeros, planned
from fastlrp.run.up.frontier import Frontier, at_positions, combine_hot, frontier
from fastlrp.run.up.stages import blocks, stages
from fastlrp.run.up.tails import Tails
from fastlrp.targets.one_hot import OneHot
from fastlrp.targets.targets import Targets

TOP_ENTRIES = 16 << 20
"""Entries of the explained output that groups hold at once where they meet many positions."""

Part = tuple[int, int, Tensor]
"""``(first group, number, (B, number, K))``."""


def boxes_of(plan: Plan, path: Route, resolved: Resolved) -> Boxes:
    """Where groups reach a part of the maps alone: on a CPU, from an input that one step reads which can follow."""
    if plan.device.type != "cpu" or len(path.starts) != 1:
        return {}
    (value,) = path.starts
    register = plan.flows[value].register
    readers = [step for step in path.steps if register in step.outs]
    if len(readers) != 1 or growth(readers[0]) is None:
        return {}
    box = boxes_of_groups(resolved, 0, value.sizes)
    return {} if box is None else planned(path.steps, {register: box})


def prepared(
    plan: Plan, path: Route, state: list[Any], batch: int, slots: frozenset[int], resolved: Resolved
) -> Ascent:
    """The way up with all slots filled that it reads."""
    shapes: dict[int, Shape] = {}
    factors = frozenset(slot for value in path.starts for slot in plan.flows[value].factor.slots)
    full = runner.complete(plan, state, slots | factors)

    def of_registers() -> dict[int, Shape]:
        if not shapes:
            every = frozenset(slot for step in plan.program.backward for slot in step.slots)
            shapes.update(register_shapes(plan, runner.complete(plan, full, every), batch))
        return shapes

    made = sum(t.nbytes for t, had in zip(full, state, strict=True) if had is None and isinstance(t, Tensor))
    boxes, alive = ways_of(plan, path, full, resolved, batch)
    tails = Tails() if plan.device.type == "cpu" and LOOKS.get() else None
    made += Ascent.bytes_of_copies(plan, path, alive)
    return Ascent(plan, path, full, of_registers, boxes, made, tails, alive)


def ways_of(
    plan: Plan, path: Route, state: list[Any], resolved: Resolved, batch: int
) -> tuple[Boxes, Mapping[BackwardStep, SparseUp]]:
    """The registers in boxes, and the steps for alive neurons only; ``state`` has all slots of the path."""
    boxes = boxes_of(plan, path, resolved)
    count = min(resolved.count, plan.sparse_block)
    work = sum(step.work for step in path.steps if isinstance(step.form, Affine))
    looks = sparse_kernels(plan.device) is not None and LOOKS.get()
    if not looks or not plan.chooser.may_be_sparse(count, work * resolved.count * batch):
        return boxes, {}
    rates = rates_of(plan.device)
    if rates is None and not plan.chooser.asks_for_sparse:
        return boxes, {}  # A GPU that nobody has measured; patterns would wait for it.

    def choose(form: Affine, share: float, instead: float) -> bool:
        wish = plan.chooser.wish(form.path)
        pays = rates is not None and count >= LEAST_TARGETS and share < instead
        return wish == "sparse" if wish != "auto" else pays

    # Groups go in blocks of 32, of which the last is filled up to 16 or 32.
    waste = -(-resolved.count // LANES) * LANES / resolved.count if resolved.count > count else 1.0
    shares = {register: box.share for register, box in boxes.items()}
    found = upward.planned(path.steps, state, shares, choose, count, plan.dtype.itemsize, rates, waste)
    return {register: box for register, box in boxes.items() if register in found.boxed}, found.steps


def start(ascent: Ascent, resolved: Resolved, first: int, length: int) -> dict[int, Cotangent]:
    """Cotangents of the inputs' registers: the groups' weights times what a register is multiplied with."""
    plan = ascent.plan
    found: dict[int, Cotangent] = {}
    for position, value in enumerate(ascent.route.starts):
        flow = plan.flows[value]
        if flow.register in ascent.boxes:
            box = ascent.boxes[flow.register]
            boxed = Boxed(_weights(ascent, resolved, box, first, length), box, first)
            for slot in flow.factor.slots:
                boxed.times_(ascent.state[slot])
            found[flow.register] = boxed
            continue
        t = resolved.weights(position, first, length, plan.dtype)
        for slot in flow.factor.slots:
            t = t * ascent.state[slot].unsqueeze(1)
        t = t.expand(ascent.state[value.index].shape[0], *t.shape[1:])
        before = found.get(flow.register)
        assert before is None or isinstance(before, Tensor)
        found[flow.register] = t if before is None else before + t
    return found


def _weights(ascent: Ascent, resolved: Resolved, box: Box, first: int, length: int) -> Tensor:
    """The weights of an input's entries in each group's box, ``(B, G, C, *lengths)``."""
    (value,), (found,) = ascent.route.starts, resolved.maps
    like = ascent.state[value.index]
    rows = maps_of_zeros(like.new_empty(0, dtype=ascent.plan.dtype), len(like), length, value.sizes[0], box.lengths)
    for g, where in enumerate(box.slices(first, length)):
        if found.is_floating_point():
            rows[:, g] = found[first + g][where].to(rows.dtype)
        else:
            rows[:, g] = found[where] == first + g
    return rows


class WayUp:
    """From the groups of one record to what is asked of them.

    Attributes:
        first, count: the targets, of those that are asked for. front: where targets of few entries of the output wait;
            None for others. path: the steps.
    """

    def __init__(self, plan: Plan, asked: Targets, first: int = 0, count: int | None = None) -> None:
        self.plan, self.asked, self.first = plan, asked, first
        self.count = asked.count - first if count is None else count
        found = asked.block(first, self.count, one_hot=True) if asked.terms is not None else None
        self.front: Frontier | None = frontier(plan, found) if isinstance(found, OneHot) else None
        self.final = {step.out: (step, hot) for step, hot in self.front.final} if self.front is not None else {}
        self.path: Route = route(plan, frozenset(self.final) or frozenset([plan.program.top]))

    def prepared(self, state: list[Any], resolved: Resolved, batch: int) -> Ascent:
        """With all slots filled that it reads."""
        slots = self.path.slots | frozenset(s for step, _ in self.final.values() for s in step.slots)
        return prepared(self.plan, self.path, state, batch, slots, resolved)

    def relevance(self, state: list[Any], resolved: Resolved, batch: int, max_memory: int | None) -> Tensor:
        """``(B, K, G)``.

        Raises:
            TooSmallError: if not even one group fits into ``max_memory``.
        """
        result = torch.empty((batch, resolved.count, self.count), dtype=self.plan.dtype, device=self.plan.device)
        held = result.numel() * result.element_size()
        ordered, order = resolved.in_order()
        for first, length, part in self.parts(state, ordered, batch, max_memory, held):
            if order is None:
                result.narrow(1, first, length).copy_(part)
            else:
                result.index_copy_(1, order[first : first + length], part)
        return result.transpose(1, 2)

    def parts(
        self, state: list[Any], resolved: Resolved, batch: int, max_memory: int | None, held: int = 0
    ) -> Iterator[Part]:
        """Relevance of the groups, block by block. ``held``: bytes of ``max_memory`` that are taken."""
        plan, count = self.plan, resolved.count
        ascent = self.prepared(state, resolved, batch)
        each = batch * plan.dtype.itemsize * (2 * self.count + 2 * self._top_entries())
        made = stages(ascent, batch, count, max_memory, held + ascent.made_bytes, each)
        entries = TOP_ENTRIES if max_memory is None else min(TOP_ENTRIES, made[-1].size * batch * self._top_entries())
        found: list[tuple[int, Tensor]] = []

        def take(register: int, first: int, t: Cotangent) -> None:
            found.append((first, self._taken(ascent, register, on_whole_map(t), entries)))

        def begin(first: int, length: int) -> dict[int, Cotangent]:
            return start(ascent, resolved, first, length)

        for first, length in blocks(ascent, made, count, begin, take):
            yield first, length, self._assembled(found, first, length, batch)

    def _assembled(self, found: list[tuple[int, Tensor]], first: int, length: int, batch: int) -> Tensor:
        """The sum of what came to each end; it may have come in smaller blocks."""
        if len(found) == 1 and found[0][1].shape[1] == length:
            return found.pop()[1]
        result = torch.zeros((batch, length, self.count), dtype=self.plan.dtype, device=self.plan.device)
        for at, part in found:
            result.narrow(1, at - first, part.shape[1]).add_(part)
        found.clear()
        return result

    def _top_entries(self) -> int:
        """Entries that a group holds at one position of the layer above the ends, if there is one."""
        sizes = [
            hot.sizes[-1:] if step.up_at and len(hot.sizes) > 1 else hot.sizes for step, hot in self.final.values()
        ]
        return max((torch.Size(size).numel() for size in sizes), default=0)

    def _taken(self, ascent: Ascent, register: int, t: Tensor, entries: int) -> Tensor:
        if register in self.final:
            return at_positions(ascent, *self.final[register], t, entries)
        if self.front is not None:
            return combine_hot(t, self.front.hot)
        flat, count = in_one_axis(t), self.count
        size = max(1, TOP_ENTRIES // max(1, flat.shape[0] * flat.shape[2]))
        found = []
        for first in range(0, count, size):
            initial = self.asked.block(self.first + first, min(size, count - first))
            assert isinstance(initial, Tensor)
            found.append(flat @ in_one_axis(initial).mT)
        return found[0] if len(found) == 1 else torch.cat(found, 2)
