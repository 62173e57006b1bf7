"""Products of bfloat16 whose reader wants float32 write it themselves.

Their sums are of float32 before they are rounded. To round them, to write and read that, and to write float32 again is
a pass over a map more and a rounding more than the reader asks for: a residual sum with a factor, as a rule.
"""

from __future__ import annotations

from dataclasses import replace

from fastlrp.plan.steps import Emission, Steps


def widen(steps: Steps) -> Steps:
    """The steps, of which those write float32 that can and have a reader that does not take bfloat16."""
    if not any(type(step) is not Emission and step.in_full is not None for step, _ in steps):
        return steps
    wanted: set[int] = set()
    for step, _ in steps:
        if type(step) is Emission:
            wanted.add(step.register)
        elif not step.takes_bf16:
            wanted.update(step.ins)
    return [
        (replace(step, run=step.in_full, fresh=True), frees)
        if type(step) is not Emission and step.in_full is not None and step.out in wanted
        else (step, frees)
        for step, frees in steps
    ]
