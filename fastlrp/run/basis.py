"""Basis propagation: if everything flows through an edge narrower than K, move a basis of that edge down once.

Relevance is linear in what arrives. Let ``F`` (B, K, n) be what the K targets bring to an edge of n entries, and ``M``
(B, n, …) what the unit vectors of that edge become at the input; then the relevance is ``F M``. The lower part costs n
targets instead of K, and entries whose factor is zero (dead neurons) need no unit vector at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.plan.neck import Neck, dead_at, sole_carriers
from fastlrp.plan.steps import Emission, Flow, Steps
from fastlrp.plan.total import in_one_axis
from fastlrp.run.descent import Descent

Reduce = Callable[[Tensor, tuple[Tensor, ...]], Tensor]
"""``(register, factors) -> (B, k, …)``: relevance, or its sum over channels."""

_WORTH_IT = 0.9
"""Take the detour if its estimated work is below this share of the direct way's."""

_LEAST_WORK = 1 << 28
"""Floating-point operations below which the detour's own overhead counts."""


def find_neck(
    steps: Steps, flows: Mapping[Value, Flow], count: int, result_numel: int, nonnegative: Callable[[], set[Value]]
) -> Neck | None:
    """The neck that makes ``count`` targets cheapest, or None if the direct way is cheaper.

    Args:
        flows: how the relevance of each value is read. result_numel: entries of all results below, per sample and
            target. nonnegative: gives the values that are proved to have no entry below zero.
    """
    work = [0 if type(step) is Emission else step.work for step, _ in steps]
    carried = {flow.register: value for value, flow in flows.items() if value.has_batch_first}
    total = sum(work) * count
    best: tuple[float, Neck] | None = None
    for position, register in sole_carriers(steps):
        if position == len(steps) or type(steps[position][0]) is Emission:
            continue
        if register not in carried or carried[register].numel >= count:
            continue
        width, above = carried[register].numel, sum(work[:position])
        cost = above * count + (sum(work) - above) * width + 2 * width * count * result_numel
        if best is None or cost < best[0]:
            best = cost, Neck(position, register, carried[register], width)
    if best is None or total <= _LEAST_WORK or best[0] >= _WORTH_IT * total:
        return None
    return replace(best[1], dead_at=dead_at(steps, best[1].register, flows, nonnegative()))


def propagate(
    descent: Descent,
    above: Steps,
    under: Steps,
    neck: Neck,
    factors: Sequence[Tensor],
    registers: list[Any],
    count: int,
    below: dict[Value, list[Reduce]],
    block: int,
) -> dict[Value, list[Tensor]]:
    """Move ``count`` targets to the neck, a basis from there, and combine.

    Args:
        descent: state, and the sink for results above the neck. above, under: the steps on either side of the neck.
        factors: activations ``(B, …)`` where one that is 0 makes an entry of the neck useless.
        registers: with the initial relevance in its place.
        below: values that the steps below the neck emit, each with what is wanted of its relevance.
        block: basis vectors at once.

    Returns:
        what was wanted of each lower value, ``(B, count, …)``.
    """
    edge = Value(-1, "neck", neck.value.shape, neck.value.dtype)
    collected: list[Tensor] = []

    def upper_sink(value: Value, first: int, register: Tensor, given: tuple[Tensor, ...]) -> None:
        if value is edge:
            collected.append(in_one_axis(register))
        else:
            descent.sink(value, first, register, given)

    upper = replace(descent, sink=upper_sink)
    upper.descend([*above, (Emission(edge, neck.register, ()), ())], 0, registers, 0, count)
    arrived = torch.cat(collected, 1)  # (B, K, n)
    total: dict[Value, list[Tensor]] = {}
    sizes: dict[Value, list[torch.Size]] = {}
    active = _active(factors, arrived)
    if active.numel() == 0:  # Nothing arrived: one vector, so that zeros of the right shape come out.
        active = active.new_zeros(1)
    for start in range(0, active.numel(), block):
        index = active[start : start + block]
        part = arrived[:, :, index]
        vectors = arrived.new_zeros(descent.batch, index.numel(), neck.width)
        vectors[:, torch.arange(index.numel(), device=index.device), index] = 1

        def lower_sink(
            value: Value, first: int, register: Tensor, given: tuple[Tensor, ...], part: Tensor = part
        ) -> None:
            wanted = [reduce(register, given) for reduce in below[value]]
            if value not in total:
                sizes[value] = [w.shape[2:] for w in wanted]
                total[value] = [w.new_zeros(descent.batch, count, math.prod(w.shape[2:])) for w in wanted]
            arriving = part[:, :, first : first + register.shape[1]]
            for sum_, w in zip(total[value], wanted, strict=True):
                sum_.baddbmm_(arriving, in_one_axis(w))

        fresh: list[Any] = [None] * len(registers)
        fresh[neck.register] = vectors.view(*vectors.shape[:2], *neck.value.sizes)
        replace(descent, sink=lower_sink).descend(under, 0, fresh, 0, index.numel())
    return {v: [t.view(*t.shape[:2], *n) for t, n in zip(total[v], sizes[v], strict=True)] for v in total}


def _active(factors: Sequence[Tensor], arrived: Tensor) -> Tensor:
    """Entries of the neck that carry relevance in any sample: those with a factor other than zero that got some."""
    alive = (arrived != 0).any(0).any(0)
    for factor in factors:
        alive &= (factor.flatten(1) != 0).any(0)
    return alive.nonzero().squeeze(1)
