"""Narrow places on the way down, through which a basis may go in the place of the targets, or groups may meet them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastlrp.capture.graph import Value
from fastlrp.plan.steps import Emission, Flow, Steps


@dataclass(frozen=True)
class Neck:
    """A place in a schedule where one register carries everything.

    Attributes:
        position: steps before it are the upper part. register: what carries. value: the activation whose relevance
            it is (times its factor). width: entries per sample. dead_at: slots, none of which is 0 at an entry from
            which relevance goes on.
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


def dead_at(steps: Steps, register: int, flows: Mapping[Value, Flow]) -> tuple[int, ...]:
    """Slots whose zeros say which entries of a register nothing reads: the output of an activation, above which it is.

    Below an activation every coefficient has its output as a factor. A register that is several values' relevance with
    different factors, or that a sum of several readers takes, passes on what other factors make of it.
    """
    values = [(value, flow.factor) for value, flow in flows.items() if flow.register == register]
    sums = any(type(step) is not Emission and step.senders and register in step.ins for step, _ in steps)
    factors = {factor.slots for _, factor in values}
    if sums or len(factors) != 1 or any(factor.value is None for _, factor in values):
        return ()
    lowest, factor = values[-1]
    return () if factor.value is lowest else factor.slots
