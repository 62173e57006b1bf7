"""Summands that fill a part of a sum are added to that part.

What is taken of a value along one axis sends relevance that is zero elsewhere: the two halves of a gated unit, the
halves or pairs that a rotation of positions exchanges, all tokens but the class token. Instead of writing each summand
into zeros of the whole's size and adding these up, one step writes or adds each where it belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.passes.moving import Ways
from fastlrp.plan.steps import BackwardStep, Emission, Steps
from fastlrp.plan.total import Total, multiply
from fastlrp.plan.window import Window


def sum_windows(steps: Steps) -> list[Any]:
    """Steps in order, in which sums with such summands have become one step each."""
    writers = {step.out: step for step, _ in steps if type(step) is not Emission and step.embeds is not None}
    gone: set[BackwardStep] = set()
    summed: dict[BackwardStep, BackwardStep] = {}
    ways: Ways | None = None
    for step, _ in steps:
        if (
            type(step) is Emission
            or type(step.run) is not Total
            or step.least > 1
            or writers.keys().isdisjoint(step.ins)
        ):
            continue
        ways = Ways.of(steps) if ways is None else ways
        makers = _makers(step, writers, ways)
        if any(makers):
            summed[step] = _together(step, makers)
            gone.update(maker for maker in makers if maker is not None)
    return [summed.get(step, step) for step, _ in steps if step not in gone]


def _makers(total: BackwardStep, writers: dict[int, BackwardStep], ways: Ways) -> list[BackwardStep | None]:
    """What writes each summand into zeros for this sum alone. Where they all have the same few positions, these stay a
    register of few positions, and so does the sum."""
    makers = [writers.get(register) if ways.readers[register] == 1 else None for register in total.ins]
    makers = [step if step is not None and not step.slots and len(step.ins) == 1 else None for step in makers]
    few = {step.embeds for step in makers if step is not None and step.embeds is not None and step.embeds.is_few}
    return makers if len(few) != 1 else [None if step is None or step.embeds in few else step for step in makers]


def _together(total: BackwardStep, makers: Sequence[BackwardStep | None]) -> BackwardStep:
    run = total.run
    assert isinstance(run, Total)
    windows = tuple(None if maker is None else maker.embeds for maker in makers)
    summed = _Summed(run, windows, tuple(None if maker is None else maker.run for maker in makers))
    over = {position: partial(summed.into, position) for position in total.overwrites if windows[position] is None}
    return BackwardStep(
        total.name,
        total.node,
        summed,
        tuple(register if maker is None else maker.ins[0] for register, maker in zip(total.ins, makers, strict=True)),
        total.slots,
        total.outs,
        total.numels,
        total.work,
        fresh=True,
        by_position=total.by_position and all(window is None or window.axis > 2 for window in windows),
        overwrites=over,
        takes_bf16=total.takes_bf16,
        senders=total.senders,
    )


@dataclass(eq=False)
class _Summed:
    """The sum. ``windows``: of each summand, None where it is whole; ``embeds``: what writes it into zeros."""

    total: Total
    windows: tuple[Window | None, ...]
    embeds: tuple[Any, ...]
    _covers: bool = field(init=False)

    def __post_init__(self) -> None:
        self._covers = _fill_once(self.windows)

    def __call__(self, *operands: Tensor) -> Tensor:
        flows, factors = self._apart(operands)
        if not self._may_write(flows, factors):
            return self._plainly(flows, operands[self.total.count :])
        whole = [i for i, window in enumerate(self.windows) if window is None]
        result: Tensor | None = None
        for i in whole:
            flow, factor = flows[i], factors[i]
            if result is None:
                result = flow.clone() if factor is None else multiply(flow, factor)
            else:
                _add(result, flow, factor)
        return self._add_windows(result, flows, factors)

    def into(self, position: int, *operands: Tensor) -> Tensor:
        """The same sum, written into the summand at ``position``, which is whole and has no factor."""
        flows, factors = self._apart(operands)
        if not self._may_write(flows, factors):
            return self._plainly(flows, operands[self.total.count :])
        for i, window in enumerate(self.windows):
            if window is None and i != position:
                _add(flows[position], flows[i], factors[i])
        return self._add_windows(flows[position], flows, factors)

    def _add_windows(self, result: Tensor | None, flows: Sequence[Tensor], factors: Sequence[Tensor | None]) -> Tensor:
        writes = result is None and self._covers
        if result is None:
            result = self._new(flows)
        for window, flow, factor in zip(self.windows, flows, factors, strict=True):
            if window is None:
                continue
            room, own = window.room(result), None if factor is None else _part(factor, window)
            if not writes:
                _add(room, flow, own)
            elif own is None:
                room.copy_(flow)
            else:
                torch.mul(flow, own.unsqueeze(1), out=room)
        return result

    def _new(self, flows: Sequence[Tensor]) -> Tensor:
        window, flow = next((w, f) for w, f in zip(self.windows, flows, strict=True) if w is not None)
        sizes = list(flow.shape)
        if window.drops:
            sizes.insert(window.axis, window.whole)
        sizes[window.axis] = window.whole
        return flow.new_empty(sizes) if self._covers else flow.new_zeros(sizes)

    def _apart(self, operands: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[Tensor | None]]:
        count, plain = self.total.count, self.total.plain
        return operands[:count], [*[None] * plain, *operands[count:]]

    def _may_write(self, flows: Sequence[Tensor], factors: Sequence[Tensor | None]) -> bool:
        """Whether the sum can be formed in place: one dtype, no derivative, factors with all axes."""
        dtype, axes = flows[0].dtype, flows[0].dim() + (self.windows[0] is not None and self.windows[0].drops)
        given = [factor for factor in factors if factor is not None]
        alike = all(t.dtype == dtype for t in (*flows, *given)) and all(t.dim() == axes - 1 for t in given)
        return alike and not (torch.is_grad_enabled() and any(t.requires_grad for t in (*flows, *given)))

    def _plainly(self, flows: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
        embedded = [f if embed is None else embed(f) for f, embed in zip(flows, self.embeds, strict=True)]
        return self.total(*embedded, *factors)


def _add(room: Tensor, flow: Tensor, factor: Tensor | None) -> None:
    if factor is None:
        room.add_(flow)
    else:
        room.addcmul_(flow, factor.unsqueeze(1))


def _part(factor: Tensor, window: Window) -> Tensor:
    """A factor ``(B, …)`` of the summand; one that is the same along the axis stays so."""
    if factor.shape[window.axis - 1] == window.whole:
        return window.room(factor.unsqueeze(1)).squeeze(1)
    return factor.squeeze(window.axis - 1) if window.drops else factor


def _fill_once(windows: Sequence[Window | None]) -> bool:
    """Whether the windows lie along one axis and fill it, each place once."""
    known = [window for window in windows if window is not None]
    if len(known) != len(windows) or len({(w.axis, w.whole) for w in known}) != 1:
        return False
    places = sorted(place for w in known for place in range(w.start, w.end, w.step))
    return places == list(range(known[0].whole))
