"""Down from the targets, up from the groups, or to an edge in between: which costs less, by the work of the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastlrp.groups import Resolved
from fastlrp.plan.forms import Affine, MaxPool
from fastlrp.plan.paths.choose import estimate
from fastlrp.plan.paths.path import Path
from fastlrp.plan.paths.rates import rates_of
from fastlrp.plan.plan import Plan
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.steps import BackwardStep, Emission
from fastlrp.run import runner
from fastlrp.run.sparse.upward import SparseUp
from fastlrp.run.up.ascent import not_linear
from fastlrp.run.up.boxes import Boxes, form_of
from fastlrp.run.up.causal import positions, share_left
from fastlrp.run.up.middle import Edge, edges, fits
from fastlrp.run.up.way_up import WayUp, ways_of

Direction = Literal["auto", "down", "up", "middle"]
Way = Literal["down", "up", "middle"]

TRAFFIC = 8
"""Floating-point operations in whose time one entry is written and read again (AVX-512 CPU, matrix products)."""

BY_DERIVATIVE = 3
"""A step that has no transpose of its own is run, recorded and differentiated."""

IN_BOXES = 2e6
"""Floating-point operations in whose time a step in boxes cuts and places what belongs to one group."""

OF_TAILS = 1.3
"""How much longer steps take for an operation where causal order cuts them: GPT-2, 128 tokens, 9.7 s of one core for
1,700 GFLOP up, 12.7 s for 3,020 down (AMD EPYC)."""

PICKED_IN_BOXES, PICKED = 3000, 900
"""In the time of so many one entry of a max-pool's result is taken from its winner, in boxes (13 ns) or on whole maps
(4 ns; AMD EPYC)."""

MEETS_IN_BOXES, MEETS = 140, 100
"""The same for one target, group and entry of a box at an edge, whose row is looked for (0.6 ns), and on whole maps for
one entry of a target or group, before the product."""

WORTH_IT = 0.95
"""The way up is taken only if it is estimated to cost less than this share of the way down, and both ways to an edge
only if they cost less than this share of the better one. Of equal estimates the way down was the faster one (ViT-B/16,
as many groups as targets: 2.7 s against 3.2 s)."""


@dataclass(frozen=True)
class Costs:
    """Estimated floating-point operations of one sample for each way; None where it is not possible.

    Attributes:
        down: target by target. basis: the same from a narrow edge on by a basis of it, where the way down takes that.
        up: group by group. middle: up to ``edge``, down to it, and one product. width: of the basis.
    """

    down: float
    basis: float | None
    up: float | None
    middle: float | None
    edge: Edge | None
    width: int = 0

    @property
    def below(self) -> float:
        """What the way down costs as it is taken."""
        return self.down if self.basis is None else self.basis


@dataclass(frozen=True)
class Choice:
    """Which way was taken.

    Attributes:
        direction: ``"down"``, ``"up"`` or ``"middle"``. why: the reason in words. costs: of every way.
    """

    direction: Way
    why: str
    costs: Costs

    @property
    def down(self) -> float:
        """Estimated floating-point operations of one sample on the way down, by a basis where one is used."""
        return self.costs.below

    @property
    def up(self) -> float | None:
        """The same on the way up; None where that is not possible."""
        return self.costs.up

    @property
    def middle(self) -> float | None:
        """The same of both ways to the best edge between; None where there is none."""
        return self.costs.middle

    def __str__(self) -> str:
        c = self.costs
        named = [("down", c.down), ("basis", c.basis), ("up", c.up), ("middle", c.middle)]
        said = [f"{name} {_text(cost)}" for name, cost in named if cost is not None or name == "up"]
        return f"{self.direction}: {self.why} (estimated: {', '.join(said)})"


def _text(cost: float | None) -> str:
    return "not possible" if cost is None else f"{cost / 1e9:.3g} GFLOP"


def cost_of(step: BackwardStep) -> float:
    """Of one sample and target or group."""
    return step.work + TRAFFIC * sum(step.numels)


def estimated(
    plan: Plan, way_up: WayUp | None, targets: int, resolved: Resolved, is_hot: bool, batch: int,
    max_memory: int | None, paths: Mapping[str, Path], state: list[Any],
) -> Costs:  # fmt: skip
    """Of all ways. ``paths``: of layers computed for alive neurons alone on the way down. ``state``: of the record."""
    values = plan.explained_inputs()
    schedule = plan.schedule(values)
    steps = [step for step, _ in schedule.steps if type(step) is not Emission]
    each = [
        TRAFFIC * sum(step.numels)
        if _rows_only(plan, step, is_hot)
        else cost_of(step) * _alive(plan, step, paths, targets)
        for step in steps
    ]
    sums = sum(v.numel for v in values) * (TRAFFIC if resolved.is_partition else 2 * resolved.count)
    down = targets * (sum(each) + sums)
    basis, width = _basis(plan, schedule, each, targets, sums) if max_memory is None else (None, 0)
    if way_up is None:
        return Costs(down, basis, None, None, None, width)
    full = runner.complete(plan, state, way_up.path.slots)
    boxes, alive = ways_of(plan, way_up.path, full, resolved, batch)
    left = share_left(way_up.path, resolved, full)
    above = [_cost_up(step, boxes, left, alive) for step in steps]
    up = _up(plan, way_up, dict(zip(steps, above, strict=True)), targets, resolved.count)
    best: tuple[float, Edge] | None = None
    for edge in edges(plan, schedule.steps):
        if fits(plan, edge, batch, targets, resolved.count, max_memory):
            position = sum(type(step) is not Emission for step, _ in schedule.steps[: edge.position])
            both = targets * sum(each[:position]) + resolved.count * sum(above[position:])
            both += _product(edge, boxes, targets, resolved.count)
            if best is None or both < best[0]:
                best = both, edge
    if best is None:
        return Costs(down, basis, up, None, None, width)
    return Costs(down, basis, up, *best, width)


def _product(edge: Edge, boxes: Boxes, targets: int, groups: int) -> float:
    """At an edge; in boxes group by group, where a part of each target's register is cut out."""
    entries = targets * groups * edge.width
    if edge.register in boxes:
        return MEETS_IN_BOXES * boxes[edge.register].share * entries
    return 2 * entries + MEETS * (targets + groups) * edge.width


def _basis(
    plan: Plan, schedule: Schedule, each: Sequence[float], targets: int, sums: float
) -> tuple[float | None, int]:
    """What the way down costs by a basis, and its width; None where it takes none."""
    values = plan.explained_inputs()
    neck = runner.neck(plan, schedule, values, targets)
    if neck is None:
        return None, 0
    above = sum(type(step) is not Emission for step, _ in schedule.steps[: neck.position])
    combined = 2 * neck.width * sum(v.numel for v in values)
    return targets * (sum(each[:above]) + combined + sums) + neck.width * sum(each[above:]), neck.width


def _alive(plan: Plan, step: BackwardStep, paths: Mapping[str, Path], targets: int) -> float:
    """The part of a dense layer's time that its alive neurons take."""
    path = paths.get(step.form.path) if isinstance(step.form, Affine) else None
    if path is None or not path.sparse:
        return 1.0
    rates = rates_of(plan.device, plan.mixes_dtypes)
    cost = estimate(path.form, path.arriving, path.below, targets, plan.dtype.itemsize, rates)
    return min(1.0, cost.of(path.way) / cost.dense)


def _rows_only(plan: Plan, step: BackwardStep, is_hot: bool) -> bool:
    return is_hot and plan.takes_one_hot and step.accepts_one_hot and step.ins[0] == plan.program.top


def _cost_up(step: BackwardStep, boxes: Boxes, left: float, alive: Mapping[BackwardStep, SparseUp]) -> float:
    """Of one group. ``left``: the part of the work over positions that causal order leaves."""
    if step in alive:
        return alive[step].share * step.work + TRAFFIC * sum(step.numels)
    box = boxes.get(step.out)
    if isinstance(step.form, MaxPool) and step.node is not None:
        reached = boxes[step.ins[0]].share if step.ins[0] in boxes else 1.0
        return (PICKED if box is None else PICKED_IN_BOXES) * reached * step.node.output.numel
    if left < 1 and positions(step):
        return OF_TAILS * left * cost_of(step)
    if box is None or form_of(step) is None:
        return (1 if step.up is not None else BY_DERIVATIVE) * cost_of(step)
    above = [boxes[register].share if register in boxes else 1.0 for register in step.ins]
    return max(above) * cost_of(step) + IN_BOXES


def _up(plan: Plan, way_up: WayUp, above: Mapping[BackwardStep, float], targets: int, groups: int) -> float:
    """Of all groups, with what each target takes of the result."""
    each = sum(above[step] for step in way_up.path.steps)
    if way_up.front is None:
        return groups * (each + 2 * targets * plan.graph.output.numel)
    for step, hot in way_up.front.final:
        share = 1.0
        if step.up_at is not None and len(hot.sizes) > 1:
            places = (hot.index[0] // hot.sizes[-1]).unique().numel()
            share = places * hot.sizes[-1] / max(1, hot.shape[2:].numel())
        each += share * cost_of(step)
    return groups * (each + TRAFFIC * targets * way_up.front.hot.terms)


def chosen(plan: Plan, asked: Direction, costs: Costs, targets: int, groups: int) -> Choice:
    """The cheapest way, or the one asked for.

    Raises:
        ValueError: for another word, or where there is no edge to meet at.
    """
    if asked not in ("auto", "down", "up", "middle"):
        raise ValueError(f"direction must be 'auto', 'down', 'up' or 'middle', got {asked!r}")
    if asked == "middle" and costs.edge is None:
        raise ValueError(
            "direction='middle' needs an edge that all relevance goes through and that max_memory has room for, and "
            "there is none: use direction='auto'"
        )
    if asked != "auto":
        return Choice(asked, "as asked for" + _details(asked, costs), costs)
    if costs.up is None:
        return Choice("down", f"{not_linear(plan)} is not linear in relevance", costs)
    best: Way = "up" if costs.up < WORTH_IT * costs.below else "down"
    if costs.middle is not None and costs.middle < WORTH_IT * min(costs.below, costs.up):
        best = "middle"
    word = f"{targets} target{'s' * (targets != 1)} and {groups} group{'s' * (groups != 1)}"
    word = f"for {word}{_details(best, costs)}"
    equal = best == "down" and costs.up < costs.below
    return Choice(best, f"as cheap as the way up {word}" if equal else f"the cheaper one {word}", costs)


def _details(way: Way, costs: Costs) -> str:
    if way == "middle" and costs.edge is not None:
        return f", meeting at {costs.edge.name}, {costs.edge.width} entries"
    return f", by a basis of {costs.width}" if way == "down" and costs.basis is not None else ""
