"""Narrow places on the way down, through which a basis may go in the place of the targets, or groups may meet them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from fastlrp.capture.graph import Value
from fastlrp.plan.steps import Emission, Flow, Steps


@dataclass(frozen=True)
class Neck:
    """A place in a schedule where one register carries everything.

    Attributes:
        position: steps before it are the upper part. register: what carries. value: the activation whose relevance
            it is (times its factor). width: entries per sample. dead_at: slots; from an entry where one of them is 0 no
            relevance goes on.
    """

    position: int
    register: int
    value: Value
    width: int
    dead_at: tuple[int, ...] = ()


def sole_carriers(steps: Steps) -> Iterator[tuple[int, int]]:
    """Every position of a schedule above which nothing is needed any more but one register, and that register.

    A register that the steps find filled, as that of the initial relevance, carries from the beginning on.
    """
    written: set[int] = set()
    live: set[int] = set()
    for step, _ in steps:
        ins = {step.register} if type(step) is Emission else set(step.ins)
        live.update(ins - written)
        written.update(ins, () if type(step) is Emission else step.outs)
    for position, (step, frees) in enumerate(steps):
        if type(step) is not Emission:
            live.update(step.outs)
        live.difference_update(frees)
        if len(live) == 1:
            yield position + 1, next(iter(live))


def dead_at(steps: Steps, register: int, flows: Mapping[Value, Flow], nonnegative: Container[Value]) -> tuple[int, ...]:
    """Slots with an activation whose zeros say from which entries of a register no relevance goes on.

    An activation that cannot be negative and is 0 has got nothing from below, or a ReLU has cut it off: either way all
    that comes of ``c`` there is multiplied by 0. Any other zero may be a difference of two summands, through which
    ``c`` goes on where epsilon is 0 in the limit. A register that is several values' relevance with different factors,
    or that a sum of several readers takes, passes on what other factors make of it.
    """
    factors = {flow.factor for flow in flows.values() if flow.register == register}
    sums = any(type(step) is not Emission and step.senders and register in step.ins for step, _ in steps)
    if sums or len(factors) != 1:
        return ()
    (factor,) = factors
    return factor.slots if factor.value is not None and factor.value in nonnegative else ()
