"""Steps as plain loops take them: what each reads is taken out of one list by one call, and nothing is looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple


class Line(NamedTuple):
    """One step on a list of cells.

    Attributes:
        name, run: of the step. read: what takes its operands out of the list.
        out: the cell that it fills; of several results a tuple of cells.
        frees: cells that are not needed after it.
    """

    name: str
    run: Callable[..., Any]
    read: Callable[[list[Any]], Sequence[Any]]
    out: Any
    frees: tuple[int, ...]


def forward_line(step: Any, frees: tuple[int, ...]) -> Line:
    """A :class:`~fastlrp.plan.steps.ForwardStep` on the slots."""
    return Line(step.name, step.run, _reader(step.ins), _out(step.outs), frees)


def backward_line(step: Any, frees: tuple[int, ...], registers: int) -> Line:
    """A :class:`~fastlrp.plan.steps.BackwardStep` on so many registers, followed by the slots."""
    operands = (*step.ins, *(registers + slot for slot in step.slots))
    return Line(step.name, step.run, _reader(operands), _out(step.outs), frees)


def _out(outs: tuple[int, ...]) -> Any:
    return outs[0] if len(outs) == 1 else outs


def _reader(places: tuple[int, ...]) -> Callable[[list[Any]], Sequence[Any]]:
    if len(places) > 1:
        return itemgetter(*places)
    if not places:
        return lambda cells: ()
    (place,) = places
    return lambda cells: (cells[place],)
