"""Residual sums: the sum of two maps, the ReLU that reads it and the sum's share become one step, on a CPU.

Each of them is a pass over maps, of 3 MB and more near a ResNet's input: together they read five and write three, in
one step they read two and write two. Behind the ReLU the share ``relu(z) / st(z)`` reads what that leaves of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.plan.products import reduced
from fastlrp.plan.steps import ForwardStep


def fuse_residuals(steps: Sequence[ForwardStep], kept: frozenset[int]) -> list[ForwardStep]:
    """The steps, with such sums as one; ``kept``: slots that are read later. The sum itself is then never written."""
    sums = {step.outs[0]: step for step in steps if step.part is not None and step.part.kind == "sum"}
    readers: dict[int, list[ForwardStep]] = {}
    for step in steps:
        for slot in set(step.ins):
            readers.setdefault(slot, []).append(step)
    fused = {step: step for step in steps}
    for relu in steps:
        if relu.part is None or relu.part.kind != "relu" or relu.ins[0] in kept or relu.ins[0] not in sums:
            continue
        z, y = relu.ins[0], relu.outs[0]
        others = [step for step in readers[z] if step is not relu]
        if len(others) > 1 or not all(_is_share(step, z, y) for step in others):
            continue
        share = others[0] if others else None
        fused[relu] = _together(sums[z], relu, share)
        for step in (sums[z], *others):
            del fused[step]
    return list(fused.values())


def _is_share(step: ForwardStep, z: int, y: int) -> bool:
    return step.part is not None and step.part.kind == "share" and step.part.slots == (z, y)


def _together(total: ForwardStep, relu: ForwardStep, share: ForwardStep | None) -> ForwardStep:
    epsilon = None if share is None or share.part is None else share.part.arguments[0]
    apart, rectified, shares = total.run, relu.run, None if share is None else share.run

    def sum_and_share(first: Tensor, second: Tensor) -> Any:
        if not _fits(first, second):
            z = apart(first, second)
            y = rectified(z)
            return y if shares is None else (y, shares(z, y))
        kernel: Any = loaded()
        y, found = kernel.elementwise_rectified_sum(first, second, epsilon)
        return y if shares is None else (y, found)

    steps = [step for step in (total, relu, share) if step is not None]
    outs = relu.outs if share is None else (*relu.outs, *share.outs)
    name = " + ".join(step.name for step in steps)
    return ForwardStep(name, relu.node, sum_and_share, total.ins, outs, is_cache=False)


def _fits(first: Tensor, second: Tensor) -> bool:
    plain = all(type(t) is Tensor and t.dtype == torch.float32 and t.device.type == "cpu" for t in (first, second))
    alike = plain and first.shape == second.shape and first.stride() == second.stride()
    dense = alike and (first.is_contiguous() or first.is_contiguous(memory_format=torch.channels_last))
    return dense and not reduced.is_traced(first) and not reduced.is_traced(second)
