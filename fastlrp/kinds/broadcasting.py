"""Operands that were broadcast: their relevance is the sum over what they were copied to."""

from __future__ import annotations

from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply


def sum_to_shape(b: Builder, flow: Flow, y: Value, x: Value) -> Flow:
    """The same relevance summed over the axes along which ``x`` was broadcast to ``y``."""
    if x.shape == y.shape:
        return flow
    sizes = (1,) * (len(y.shape) - len(x.shape)) + x.sizes
    axes = [2 + i for i, (have, want) in enumerate(zip(sizes, y.sizes, strict=False)) if have == 1 and want != 1]

    def summed(f: Tensor, s: Tensor | None) -> Tensor:
        full = f if s is None else multiply(f, s)
        return full.sum(axes, keepdim=True).reshape(*f.shape[:2], *x.sizes)

    def copied(t: Tensor, s: Tensor | None) -> Tensor:
        full = t.reshape(*t.shape[:2], *sizes).expand(*t.shape[:2], *y.sizes)
        return full if s is None else multiply(full, s)

    return Flow(b.step(summed, [flow.register], [b.slot_of(flow.factor)], x.numel, up=copied))
