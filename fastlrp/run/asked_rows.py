"""Scores at the positions that are asked for alone, where a forward pass is made for one question.

A language model's head is a third of its products: GPT-2 small, 128 tokens: 9.9 of 31.6 billion operations. Who asks
for one position needs 1/128 of that. The other rows of the scores are zeros that nobody reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.plan import Plan
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.steps import ForwardStep

LEAST_SAVED = 1 << 24
"""Multiplications of one sample from which on it is worth it."""


def only_rows(plan: Plan, schedule: Schedule, at: Any) -> Schedule:
    """The same forward steps with the head at positions ``at`` alone; the schedule itself where that cannot be."""
    output = plan.graph.output
    head = next((i for i, (step, _) in enumerate(schedule.steps) if output.index in step.outs), None)
    if head is None or len(output.shape) != 3 or not output.has_batch_first:
        return schedule
    step: ForwardStep = schedule.steps[head][0]
    rows = _rows(at, output.sizes[0])
    is_head = step.node is not None and step.node.kind == "linear" and step.outs == (output.index,)
    is_read = any(output.index in other.ins for other, _ in schedule.steps)
    if rows is None or not is_head or is_read or len(step.ins) != 1:
        return schedule
    (x,) = step.node.inputs  # type: ignore[union-attr]
    if len(x.shape) != 3 or output.numel * x.sizes[-1] // output.sizes[0] * (output.sizes[0] - len(rows)) < LEAST_SAVED:
        return schedule

    def scores_at_rows(x: Tensor) -> Tensor:
        positions = torch.tensor(rows, device=x.device)
        found = step.run(x.index_select(1, positions))
        return found.new_zeros(len(x), *output.sizes).index_copy_(1, positions, found)

    steps = list(schedule.steps)
    steps[head] = (replace(step, run=scores_at_rows), steps[head][1])
    return Schedule(steps, schedule.keep)


def _rows(at: Any, count: int) -> list[int] | None:
    """A position or a list of them, counted from 0; None for anything else, and for positions that do not exist."""
    given = at if isinstance(at, list) else [at]
    if not given or not all(type(row) is int and -count <= row < count for row in given):
        return None
    return sorted({row % count for row in given})
