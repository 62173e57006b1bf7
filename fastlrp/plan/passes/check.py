"""Checks that the steps of a program fit together, after each pass that makes or changes them.

Every register and slot that a step reads was written before and not yet freed, each is written once and freed once,
what is emitted is still there, sizes agree, and what the sparse form of a step reads is kept for it. A step that breaks
this computes wrong numbers or fails far from the cause; here it is named.

``FASTLRP_CHECK=1`` in the environment checks after every pass, as the tests do. :meth:`fastlrp.plan.plan.Plan.check`
checks one plan.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

from fastlrp.plan.forms import Affine, AvgPool, Form, MaxPool, Sum
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.steps import BackwardStep, Emission, Program, Steps

ENABLED = os.environ.get("FASTLRP_CHECK", "0") not in ("", "0")
"""Whether every pass is checked."""


class ProgramError(AssertionError):
    """Steps of a program that do not fit together: a fault of fastlrp, not of the model or the call."""


def _require(holds: bool, where: str, fault: str) -> None:
    if not holds:
        raise ProgramError(f"{where}: {fault}. This is a fault in fastlrp: please report it with the model's code")


def check_program(program: Program) -> None:
    """What lowering made.

    Raises:
        ProgramError: naming the step and what is wrong with it.
    """
    filled = _check_filling(program)
    sizes = {flow.register: value.numel for value, flow in program.flows.items() if value.has_batch_first}
    written, top = {program.top}, program.top
    known = {top: sizes[top]} if top in sizes else {}
    for step in program.backward:
        _check_step(step, program.registers)
        for register in step.ins:
            _require(register in written, step.name, f"reads register {register}, which no step before it writes")
        for slot in step.slots:
            _require(slot in filled, step.name, f"reads slot {slot}, which no forward step fills")
        for out in step.outs:
            _require(out not in written, step.name, f"writes register {out}, which was written before")
        written.update(step.outs)
        known.update(zip(step.outs, step.numels, strict=True))
        if step.form is not None:
            _check_form(step, step.form, known)
    for value, flow in program.flows.items():
        place = f"the flow of {value.name}"
        _require(flow.register in written, place, f"is in register {flow.register}, which no step writes")
        for slot in flow.factor.slots:
            _require(slot in filled, place, f"has slot {slot} as a factor, which no forward step fills")
        if value.has_batch_first and flow.register in known:
            entries = known[flow.register]
            _require(entries == value.numel, place, f"has {entries} entries, the value has {value.numel}")
    for key, slot in program.keyed.items():
        _require(slot in filled, f"the coefficient {key[0]!r}", f"is slot {slot}, which no forward step fills")


def _check_filling(program: Program) -> set[int]:
    filled = set(program.inputs)
    for step in program.forward:
        _require(
            len(set(step.outs)) == len(step.outs) > 0, step.name, f"fills {step.outs}: each slot once, at least one"
        )
        for slot in step.ins:
            _require(slot in filled, step.name, f"reads slot {slot}, which neither an input nor a step before it fills")
        for slot in step.outs:
            _require(0 <= slot < program.slots, step.name, f"fills slot {slot}, of {program.slots} that there are")
            _require(slot not in filled, step.name, f"fills slot {slot}, which was filled before")
        filled.update(step.outs)
    return filled


def _check_step(step: BackwardStep, registers: int) -> None:
    _require(len(step.ins) > 0, step.name, "reads no register")
    _require(len(set(step.outs)) == len(step.outs) > 0, step.name, f"writes {step.outs}: each once, at least one")
    _require(
        len(step.outs) == len(step.numels), step.name, f"has {len(step.outs)} results and sizes of {len(step.numels)}"
    )
    for out in step.outs:
        _require(0 <= out < registers, step.name, f"writes register {out}, of {registers} that there are")


def _check_form(step: BackwardStep, form: Form, known: dict[int, int]) -> None:
    """The sparse form may take the step's place: it must be of the same sizes and read nothing else."""
    _require(len(step.outs) == 1, step.name, "has a sparse form, which makes one result, and has several")
    unkept = set(_slots(form)) - set(step.slots)
    _require(not unkept, step.name, f"has a sparse form that reads slots {sorted(unkept)}, which are not kept for it")
    if isinstance(form, Sum):
        _require(
            len(form.scales) == len(step.ins), step.name, f"adds {len(step.ins)} registers, {len(form.scales)} scales"
        )
        for register in step.ins:
            _same(step, f"register {register}", known.get(register), step.numel)
        return
    _require(len(step.ins) == 1, step.name, f"has the form of a layer, which reads one register, and reads {step.ins}")
    _same(step, "its result", step.numel, math.prod(form.leaving))
    if not isinstance(form, MaxPool):
        _same(step, f"register {step.ins[0]}", known.get(step.ins[0]), math.prod(form.arriving))


def _same(step: BackwardStep, what: str, entries: int | None, expected: int) -> None:
    _require(entries in (None, expected), step.name, f"{what} has {entries} entries, its form has {expected}")


def _slots(form: Form) -> tuple[int, ...]:
    if isinstance(form, Affine):
        return form.slots
    if isinstance(form, MaxPool):
        named: Sequence[int | None] = (form.index, form.scale)
    elif isinstance(form, AvgPool):
        named = (form.scale,)
    else:
        named = form.scales
    return tuple(slot for slot in named if slot is not None)


def given_registers(steps: Steps) -> set[int]:
    """Registers that steps read and do not write before: those that must be there when they begin."""
    given: set[int] = set()
    written: set[int] = set()
    for step, _ in steps:
        given.update({step.register} if type(step) is Emission else set(step.ins))
        given -= written
        written.update(() if type(step) is Emission else set(step.outs) - given)
    return given


def check_backward(program: Program, steps: Steps, start: Iterable[int], state: Sequence[Any] | None = None) -> None:
    """Steps in the order in which they run, with what each frees.

    Args:
        start: registers that are there at the beginning. state: slots, those that the steps read filled; None if there
            is no forward pass yet.

    Raises:
        ProgramError: naming the step and what is wrong with it.
    """
    begin = frozenset(start)
    live, gone = set(begin), set[int]()
    for step, frees in steps:
        for register in (step.register,) if type(step) is Emission else step.ins:
            what = "was freed before" if register in gone else "no step before it writes"
            _require(register in live, step.name, f"reads register {register}, which {what}")
        for slot in step.slots:
            _require(0 <= slot < program.slots, step.name, f"reads slot {slot}, of {program.slots} that there are")
            there = state is None or state[slot] is not None
            _require(there, step.name, f"reads slot {slot}, which the forward pass left empty")
        if type(step) is not Emission:
            _check_step(step, program.registers)
            for out in step.outs:
                # A change of form puts the same relevance back where it was.
                once = out in step.ins or (out not in live and out not in gone)
                _require(once, step.name, f"writes register {out}, which was written before")
            live.update(step.outs)
        for register in frees:
            what = "twice" if register in gone else "which no step writes"
            _require(register in live, step.name, f"frees register {register}, {what}")
            live.discard(register)
            gone.add(register)
    left = live - begin
    _require(not left, "the way down", f"registers {sorted(left)} are never freed")


def check_emissions(steps: Steps, values: Sequence[Any]) -> None:
    """Every value asked for is emitted once."""
    emitted = [step.value for step, _ in steps if type(step) is Emission]
    missing = [v.name for v in values if emitted.count(v) != 1]
    _require(not missing and len(emitted) == len(values), "the way down", f"emits {missing or emitted} not once each")


def check_forward(schedule: Schedule, filled: Iterable[int], slots: int) -> None:
    """Forward steps in the order in which they run, with what each frees. ``filled``: slots at the beginning.

    Raises:
        ProgramError: naming the step and what is wrong with it.
    """
    live, made, gone = set(filled), set[int](), set[int]()
    for step, frees in schedule.steps:
        for slot in step.ins:
            what = "was freed before" if slot in gone else "nothing filled before"
            _require(slot in live, step.name, f"reads slot {slot}, which {what}")
        for slot in step.outs:
            _require(0 <= slot < slots, step.name, f"fills slot {slot}, of {slots} that there are")
            _require(slot not in made, step.name, f"fills slot {slot}, which a step before it has filled")
        live.update(step.outs)
        made.update(step.outs)
        for slot in frees:
            what = "twice" if slot in gone else "which nothing filled"
            _require(slot in live, step.name, f"frees slot {slot}, {what}")
            _require(slot not in schedule.keep, step.name, f"frees slot {slot}, which is to be kept")
            live.discard(slot)
            gone.add(slot)
    missing = schedule.keep - live
    _require(not missing, "the forward pass", f"slots {sorted(missing)} are to be kept and nothing fills them")
