"""Each step of a plan against its transpose: <down(c), t> = <c, up(t)> for random registers c and cotangents t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.transpose import results, transposed
from fastlrp.run import runner
from fastlrp.run.record import ForwardRecord
from fastlrp.run.up.ascent import register_shapes

LARGEST = 1e-12


def errors_of_steps(record: ForwardRecord, targets: int = 3) -> dict[str, float]:
    """By step: ``|<down(c), t> - <c, up(t)>|`` over the sum of the products' sizes."""
    plan = record.plan
    slots = frozenset(slot for step in plan.program.backward for slot in step.slots)
    found: dict[str, float] = {}
    with torch.no_grad():
        state = runner.complete(plan, record.state(), slots)
        shapes = register_shapes(plan, state, record.batch)

        def random(register: int) -> Tensor:
            shape = shapes[register]
            return torch.randn(record.batch, targets, *shape.sizes, dtype=torch.float64).to(shape.dtype)

        for number, step in enumerate(plan.program.backward):
            if not step.is_linear:
                continue
            read = [state[slot] for slot in step.slots]
            given, cotangents = [random(r) for r in step.ins], [random(r) for r in step.outs]
            kept = [t.clone() for t in (*given, *cotangents)]
            down = _tuple(step.run(*given, *read))
            up = _tuple(transposed(step, lambda: shapes)(*cotangents, *read))
            for before, after in zip(kept, (*given, *cotangents), strict=True):
                assert torch.equal(before, after), f"{step.name} wrote into a register"
            left = [(a * b).double() for a, b in zip(down, cotangents, strict=True)]
            right = [(a * b).double() for a, b in zip(given, up, strict=True)]
            assert [t.shape for t in up] == [t.shape for t in given], step.name
            size = sum(float(t.abs().sum()) for t in (*left, *right)) or 1.0
            difference = sum(float(t.sum()) for t in left) - sum(float(t.sum()) for t in right)
            found[f"{number}: {step.name}"] = abs(difference) / size
    return found


def _tuple(made: Any) -> tuple[Tensor, ...]:
    return results(made)
