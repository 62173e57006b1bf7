"""Steps that one kernel does together.

Backward: a max-pool and the convolution below it. Forward: a layer and the ReLU that alone reads its output; or a ReLU,
the max-pool after it and the coefficients of the layer before it, which all read that layer's output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fastlrp.plan.steps import BackwardStep, Emission, ForwardStep, Steps


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

    def through_layer_and_pool(flow: Tensor, index: Tensor, *slots: Any) -> Tensor:
        return unpooled(flow, index, geometry, *slots)

    return BackwardStep(
        f"{pool.name} + {layer.name}", layer.node, through_layer_and_pool, pool.ins, (*pool.slots, *layer.slots),
        layer.outs, layer.numels, layer.work,
    )  # fmt: skip


def fuse_relus(steps: Sequence[ForwardStep], kept: frozenset[int]) -> list[ForwardStep]:
    """Where a ReLU alone reads a layer's output, the layer writes what is left of it."""
    readers = Counter(slot for step in steps for slot in set(step.ins))
    makers = {step.outs[0]: step for step in steps if step.with_relu is not None}
    fused = {step: step for step in steps}
    for relu in steps:
        layer = makers.get(relu.ins[0]) if relu.part is not None and relu.part.kind == "relu" else None
        if layer is not None and layer.with_relu is not None and readers[relu.ins[0]] == 1 and relu.ins[0] not in kept:
            name = f"{layer.name} + {relu.name}"
            fused[layer] = replace(layer, name=name, run=layer.with_relu, outs=relu.outs, with_relu=None)
            del fused[relu]
    return list(fused.values())


def fuse_sweeps(steps: Sequence[ForwardStep], kept: frozenset[int], sweep: Callable[..., Any]) -> list[ForwardStep]:
    """Where only a max-pool and a layer's coefficients read a ReLU, the three become one step.

    ``sweep`` is the operation ``elementwise_pooled_coefficients``. The activation itself is then never written.
    """
    made = {slot: step for step in steps for slot in step.outs}
    readers: dict[int, list[ForwardStep]] = {}
    for step in steps:
        for slot in step.ins:
            readers.setdefault(slot, []).append(step)
    fused = list(steps)
    for relu in steps:
        together = _swept(relu, readers, kept)
        if together is not None:
            pool, coefficients = together
            _replace(fused, relu, pool, coefficients, _sweep(relu, pool, coefficients, sweep), made)
    return fused


def _swept(
    relu: ForwardStep, readers: dict[int, list[ForwardStep]], kept: frozenset[int]
) -> tuple[ForwardStep, ForwardStep] | None:
    if relu.part is None or relu.part.kind != "relu" or relu.outs[0] in kept:
        return None
    found = {step.part.kind: step for step in readers.get(relu.outs[0], []) if step.part is not None}
    if len(readers.get(relu.outs[0], [])) != 2 or set(found) != {"pool", "coefficients"}:
        return None
    part = found["coefficients"].part
    assert part is not None
    fits = part.slots[3] == relu.outs[0] and part.slots[0] in (None, relu.ins[0], part.slots[1])
    return (found["pool"], found["coefficients"]) if fits else None


def _sweep(relu: ForwardStep, pool: ForwardStep, coefficients: ForwardStep, sweep: Callable[..., Any]) -> ForwardStep:
    assert pool.part is not None
    assert coefficients.part is not None
    geometry, rule, (_, positive, negative, _) = (
        pool.part.arguments,
        coefficients.part.arguments,
        coefficients.part.slots,
    )
    has_positive = positive is not None

    def pooled_and_coefficients(z: Tensor, *parts: Tensor) -> Any:
        given = iter(parts)
        p = next(given) if has_positive else None
        return sweep(z, p, next(given, None), *rule, *geometry)

    ins = (relu.ins[0], *(slot for slot in (positive, negative) if slot is not None))
    name = " + ".join(step.name for step in (relu, pool, coefficients))
    return ForwardStep(name, pool.node, pooled_and_coefficients, ins, (*pool.outs, *coefficients.outs), is_cache=False)


def _replace(
    steps: list[ForwardStep], relu: ForwardStep, pool: ForwardStep, coefficients: ForwardStep, whole: ForwardStep,
    made: dict[int, ForwardStep],
) -> None:  # fmt: skip
    """Puts the whole where the pool was, and what it reads before it."""
    early: list[ForwardStep] = []
    wanted = list(reversed(whole.ins))
    while wanted:
        step = made.get(wanted[-1])
        if step is None or not step.is_cache or step not in steps:
            wanted.pop()
            continue
        before = [slot for slot in step.ins if slot in made and made[slot].is_cache and made[slot] in steps]
        if before:  # What the step reads comes before it.
            wanted += reversed(before)
            continue
        wanted.pop()
        steps.remove(step)
        early.append(replace(step, is_cache=False))
    steps.remove(relu)
    steps.remove(coefficients)
    at = steps.index(pool)
    steps[at : at + 1] = [*early, whole]
