"""Backward steps that one kernel does together: a max-pool and the convolution below it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from fastlrp.descent import Emission, Steps
from fastlrp.program import BackwardStep


def fuse_unpooling(steps: Steps) -> Steps:
    """A max-pool whose relevance only the next step reads becomes a part of that step, if it can un-pool itself.

    The convolution then reads the pooled relevance, and the map of full size, most of it zeros, is never written.
    """
    readers = Counter(r for step, _ in steps for r in ([step.register] if type(step) is Emission else step.ins))
    fused: Steps = []
    for step, frees in steps:
        above = fused[-1][0] if fused else None
        if above is not None and _fits(above, step, readers):
            _, early = fused.pop()
            fused.append((_together(above, step), (*early, *(r for r in frees if r != above.out))))
        else:
            fused.append((step, frees))
    return fused


def _fits(pool: Any, layer: Any, readers: Counter[int]) -> bool:
    if type(pool) is Emission or type(layer) is Emission or pool.unpool is None or layer.unpooled is None:
        return False
    # Only the index: relevance that is multiplied on the way takes a step of its own.
    return layer.ins == (pool.out,) and readers[pool.out] == 1 and len(pool.slots) == 1


def _together(pool: BackwardStep, layer: BackwardStep) -> BackwardStep:
    geometry, unpooled = pool.unpool, layer.unpooled
    assert geometry is not None
    assert unpooled is not None

    def run(flow: Tensor, index: Tensor, *slots: Any) -> Tensor:
        return unpooled(flow, index, geometry, *slots)

    return BackwardStep(run, pool.ins, (*pool.slots, *layer.slots), layer.out, layer.numel, layer.work)
