"""Meeting in the middle: groups go up to an edge, targets go down to it, and one product combines them.

Relevance is linear, ``M = G T`` with ``T = T_below T_above``: the groups' cotangents at an edge of n entries times the
targets' registers there, ``(B, K, n)`` and ``(B, G, n)``, give ``(B, K, G)``. It pays where the way up is cheap near
the input, as for patches whose receptive fields are small, and the way down near the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.groups import Resolved
from fastlrp.plan.neck import sole_carriers
from fastlrp.plan.plan import Plan
from fastlrp.plan.steps import Emission, Steps, value_name
from fastlrp.run.up.ascent import Cotangent, route
from fastlrp.run.up.meeting import Arrived, combine
from fastlrp.run.up.stages import blocks, stages
from fastlrp.run.up.way_up import prepared, start

MIDDLE_BYTES = 512 << 20
"""Largest block of what waits at the edge, where no other budget is given."""

Above = Callable[[int, int], list[Arrived]]
"""``above(first target, number)``: their registers at the edge, in one piece or several."""


@dataclass(frozen=True, eq=False)
class Edge:
    """A place where one register carries everything.

    Attributes:
        position: steps of the schedule before it are above. register, value: what carries which relevance.
    """

    position: int
    register: int
    value: Value

    @property
    def width(self) -> int:
        """Entries per sample."""
        return self.value.numel

    @property
    def name(self) -> str:
        """Of the layer whose output it is."""
        return value_name(self.value)


def edges(plan: Plan, steps: Steps) -> list[Edge]:
    """All such places between output and input, neither of them included."""
    carried = {flow.register: value for value, flow in plan.flows.items() if value.has_batch_first}
    starts = {plan.flows[value].register for value in plan.explained_inputs()}
    first = next((i for i, (step, _) in enumerate(steps) if type(step) is Emission), len(steps))
    found: list[Edge] = []
    for position, register in sole_carriers(steps):
        if register in starts or position > first:  # Below the first emission an input's relevance has gone by.
            break
        if register in carried:
            found.append(Edge(position, register, carried[register]))
    return found


def to_edge(steps: Steps, edge: Edge) -> Steps:
    """The steps above an edge, and an emission of what arrives there."""
    end = Value(-1, "edge", edge.value.shape, edge.value.dtype)
    return [*steps[: edge.position], (Emission(end, edge.register, (), whole=False), (edge.register,))]


def fits(plan: Plan, edge: Edge, batch: int, targets: int, groups: int, max_memory: int | None) -> bool:
    """Whether what waits at the edge is small enough."""
    limit = MIDDLE_BYTES if max_memory is None else max_memory // 4
    return batch * edge.width * min(targets, groups) * plan.dtype.itemsize <= limit


def relevance(
    plan: Plan, edge: Edge, state: list[Any], resolved: Resolved, batch: int, count: int, max_memory: int | None,
    above: Above, block: Callable[[], int | None],
) -> Tensor:  # fmt: skip
    """``(B, K, G)``. The fewer of targets and groups wait at the edge; ``block`` gives targets at once.

    Raises:
        TooSmallError: if not even one group fits into ``max_memory``.
    """
    path = route(plan, frozenset([edge.register]))
    ascent = prepared(plan, path, state, batch, path.slots, resolved)
    result = torch.zeros((batch, count, resolved.count), dtype=plan.dtype, device=plan.device)
    waiting = batch * edge.width * plan.dtype.itemsize
    held = result.numel() * result.element_size() + min(count, resolved.count) * waiting + ascent.made_bytes
    made = stages(ascent, batch, resolved.count, max_memory, held, 0)
    size = block() or max(1, min(count, MIDDLE_BYTES // max(1, waiting)))
    targets = [(first, min(size, count - first)) for first in range(0, count, size)]
    from_groups: list[tuple[int, Cotangent]] = []

    def begin(first: int, length: int) -> dict[int, Cotangent]:
        return start(ascent, resolved, first, length)

    if count <= resolved.count:
        arrived = [piece for first, length in targets for piece in above(first, length)]

        def take(register: int, first: int, t: Cotangent) -> None:
            combine(result, arrived, [(first, t)])

        _exhaust(blocks(ascent, made, resolved.count, begin, take))
        return result
    keep = lambda register, first, t: from_groups.append((first, t))  # noqa: E731
    _exhaust(blocks(ascent, made, resolved.count, begin, keep))
    for first, length in targets:
        combine(result, above(first, length), from_groups)
    return result


def _exhaust(found: Any) -> None:
    for _ in found:
        pass
