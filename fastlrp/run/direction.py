"""Down from the targets or up from the groups: which costs less, by the work of the steps on either way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastlrp.groups import Resolved
from fastlrp.plan.plan import Plan
from fastlrp.plan.steps import BackwardStep, Emission
from fastlrp.run import runner
from fastlrp.run.ascent import Frontier, Route, not_linear

Direction = Literal["auto", "down", "up"]

TRAFFIC = 8
"""Floating-point operations in whose time one entry is written and read again (AVX-512 CPU, matrix products)."""

BY_DERIVATIVE = 3
"""A step that has no transpose of its own is run, recorded and differentiated."""


@dataclass(frozen=True)
class Choice:
    """Which way was taken.

    Attributes:
        direction: ``"down"`` or ``"up"``. why: the reason in words. down, up: estimated floating-point operations of
            one sample either way; None where that way is not possible.
    """

    direction: Literal["down", "up"]
    why: str
    down: float | None
    up: float | None

    def __str__(self) -> str:
        costs = [f"{name} {_text(cost)}" for name, cost in (("down", self.down), ("up", self.up))]
        return f"{self.direction}: {self.why} (estimated: {', '.join(costs)})"


def _text(cost: float | None) -> str:
    return "not possible" if cost is None else f"{cost / 1e9:.3g} GFLOP"


def cost_of(step: BackwardStep) -> float:
    """Of one sample and target or group."""
    return step.work + TRAFFIC * sum(step.numels)


def cost_down(plan: Plan, targets: int, resolved: Resolved, is_hot: bool, may_use_basis: bool) -> float:
    """Of ``targets`` targets, with the sums over groups."""
    values = plan.explained_inputs()
    schedule = plan.schedule(values)
    steps = [(step, _rows_only(plan, step, is_hot)) for step, _ in schedule.steps if type(step) is not Emission]
    each = [TRAFFIC * sum(step.numels) if hot else cost_of(step) for step, hot in steps]
    sums = sum(v.numel for v in values) * (TRAFFIC if resolved.is_partition else 2 * resolved.count)
    neck = runner.neck(plan, schedule, values, targets) if may_use_basis else None
    if neck is None:
        return targets * (sum(each) + sums)
    above = sum(type(step) is not Emission for step, _ in schedule.steps[: neck.position])
    combined = 2 * neck.width * sum(v.numel for v in values)
    return targets * (sum(each[:above]) + combined + sums) + neck.width * sum(each[above:])


def _rows_only(plan: Plan, step: BackwardStep, is_hot: bool) -> bool:
    return is_hot and plan.takes_one_hot and step.accepts_one_hot and step.ins[0] == plan.program.top


def cost_up(path: Route, front: Frontier | None, targets: int, resolved: Resolved, output: int) -> float:
    """Of all groups, with what each target takes of the result."""
    each = sum((1 if step.up is not None else BY_DERIVATIVE) * cost_of(step) for step in path.steps)
    if front is None:
        return resolved.count * (each + 2 * targets * output)
    for step, hot in front.final:
        share = 1.0
        if step.up_at is not None and len(hot.sizes) > 1:
            places = (hot.index[0] // hot.sizes[-1]).unique().numel()
            share = places * hot.sizes[-1] / max(1, hot.shape[2:].numel())
        each += share * cost_of(step)
    return resolved.count * (each + TRAFFIC * targets * front.hot.terms)


def chosen(plan: Plan, asked: Direction, down: float, up: float | None, targets: int, groups: int) -> Choice:
    """The cheaper way, or the one asked for."""
    if asked not in ("auto", "down", "up"):
        raise ValueError(f"direction must be 'auto', 'down' or 'up', got {asked!r}")
    if asked != "auto":
        return Choice(asked, "as asked for", down, up)
    if up is None:
        return Choice("down", f"{not_linear(plan)} is not linear in relevance", down, None)
    word = f"{targets} target{'s' * (targets != 1)} and {groups} group{'s' * (groups != 1)}"
    return Choice("down" if down <= up else "up", f"the cheaper one for {word}", down, up)
