"""Parts of a whole are written where the moves would bring them.

Where queries, keys and values of one product are moved and put together, an operation that can write into given memory
writes each part where it goes; others are copied there once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.moving import MOST_KNOWN, Known, Ways
from fastlrp.plan.steps import BackwardStep, Emission, Rooms, Steps


def place_parts(steps: Steps, known: Known | None = None) -> list[Any]:
    """Steps in order, with those that bring parts of a whole together replaced by one that writes them there.

    ``known``: what was found out about groups of steps before.
    """
    known = Known(MOST_KNOWN) if known is None else known
    ways = Ways.of(steps)
    readers = {r: step for step, _ in steps if type(step) is not Emission for r in step.ins}
    gone: set[BackwardStep] = set()
    placed: dict[BackwardStep, BackwardStep] = {}
    for step, _ in steps:
        if type(step) is Emission or not _puts_together(step):
            continue
        found = _Whole.of(step, ways, readers, known)
        if found is None:
            continue
        maker = found.maker(ways)
        if maker is not None:
            placed[maker] = found.written_by(maker)
            gone |= found.steps
        elif step.slots:  # Without numbers the parts are put side by side, as views where they lie so already.
            placed[step] = found.copied()
            gone |= found.steps - {step}
    return [placed.get(step, step) for step, _ in steps if step not in gone or step in placed]


def _puts_together(step: BackwardStep) -> bool:
    numbers = bool(step.slots) and all(slot in step.numbers for slot in step.slots)
    return len(step.ins) > 1 and step.least == 1 and (step.adds or numbers)


@dataclass(eq=False)
class _Whole:
    """Parts that are moved into a whole, and the whole, which is moved on.

    Attributes:
        total: the sum of the parts. steps: it and the moves. entries: the registers that the parts come from. out: the
            register of the whole at the end. rooms: what each entry is in new memory of the whole. times: numbers that
            the entries are multiplied with.
    """

    total: BackwardStep
    steps: set[BackwardStep]
    entries: list[int]
    out: int
    numel: int
    rooms: Rooms
    times: list[float]

    @staticmethod
    def of(total: BackwardStep, ways: Ways, readers: dict[int, BackwardStep], known: Known) -> _Whole | None:
        """None where moves do more than to look at the same memory in another way, or the parts do not fill it."""
        embeds = [ways.makers.get(register) for register in total.ins]
        if not _fill(embeds, total, ways):
            return None
        moves = [[step, *_moves_above(step.ins[0], ways)] for step in embeds if step is not None]
        below = _moves_below(total.out, ways, readers)
        every = [step for path in moves for step in path]
        rooms = None
        if len(set(every)) == len(every):
            rooms = known.get((total, *every, *below), lambda: _layout(moves, below))
        if rooms is None:
            return None
        plain = len(total.ins) - len(total.slots)
        return _Whole(
            total,
            {total, *below, *every},
            [path[-1].ins[0] for path in moves],
            below[-1].out if below else total.out,
            total.numel,
            rooms,
            [1.0] * plain + [total.numbers[slot] for slot in total.slots],
        )

    def maker(self, ways: Ways) -> BackwardStep | None:
        """The step that makes all parts and can write them where they go."""
        made = ways.makers.get(self.entries[0])
        if made is None or made.into is None or made.least > 1 or sorted(made.outs) != sorted(self.entries):
            return None
        return made if all(ways.readers[register] == 1 for register in self.entries) else None

    def written_by(self, maker: BackwardStep) -> BackwardStep:
        """The step that makes the parts where they go."""
        order = [self.entries.index(out) for out in maker.outs]
        times, run, into = [self.times[i] for i in order], maker.run, maker.into

        def rooms(like: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            whole, found = self.rooms(like)
            return whole, [found[i] for i in order]

        def written(*operands: Any) -> Tensor:
            if into is None or _differentiates(operands):
                return _fill_rooms(rooms, times, run(*operands))
            return into(rooms, times, *operands)

        return self._step(maker.name, maker, written, maker.ins, maker.slots, maker.work)

    def copied(self) -> BackwardStep:
        """The step that copies the parts to where they go."""

        def copied(*parts: Tensor) -> Tensor:
            return _fill_rooms(self.rooms, self.times, parts)

        return self._step(self.total.name, self.total, copied, tuple(self.entries), (), self.total.work)

    def _step(self, name: str, node: BackwardStep, run: Any, ins: Any, slots: Any, work: int) -> BackwardStep:
        return BackwardStep(name, node.node, run, ins, slots, (self.out,), (self.numel,), work, fresh=True)


def _fill(embeds: Sequence[BackwardStep | None], total: BackwardStep, ways: Ways) -> bool:
    """Whether what makes the summands writes them side by side into the whole axis."""
    windows = [step.embeds for step in embeds if step is not None and step.embeds is not None]
    alone = all(ways.readers[register] == 1 for register in total.ins)
    copies = all(step is not None and step.moves_from is not None for step in embeds)
    if len(windows) != len(embeds) or not alone or not copies:
        return False
    reached = 0
    for window in sorted(windows, key=lambda w: w.start):
        where = window.axis, window.whole, window.step
        if window.start != reached or where != (windows[0].axis, windows[0].whole, 1):
            return False
        reached += window.length
    return reached == windows[0].whole


def _is_permutation(step: BackwardStep) -> bool:
    """Whether it is a move that leaves the entries as many as they are; others fill in zeros."""
    return step.moves_from is not None and step.embeds is None and step.numel == math.prod(step.moves_from)


def _moves_above(register: int, ways: Ways) -> list[BackwardStep]:
    """The moves that a register comes through, from the last one up."""
    found = []
    while ways.readers[register] == 1 and register in ways.makers and _is_permutation(ways.makers[register]):
        found.append(ways.makers[register])
        register = found[-1].ins[0]
    return found


def _moves_below(register: int, ways: Ways, readers: dict[int, BackwardStep]) -> list[BackwardStep]:
    """The moves that a register goes on through, in order."""
    found = []
    while ways.readers[register] == 1 and register in readers and _is_permutation(readers[register]):
        found.append(readers[register])
        register = found[-1].out
    return found


def _layout(moves: Sequence[Sequence[BackwardStep]], below: Sequence[BackwardStep]) -> Rooms | None:
    """What each part is in new memory of the whole; None where moves do more than to look at it in another way."""
    first = moves[0][0]
    assert first.moves_from is not None
    sizes = _sizes_after(first, first.moves_from)
    for step in below:
        sizes = _sizes_after(step, sizes)
    whole = torch.empty(1, 1, *sizes)
    views = [view for view in (_view(whole, [*below[::-1], *path]) for path in moves) if view is not None]
    return _rooms(sizes, views) if len(views) == len(moves) else None


def _sizes_after(step: BackwardStep, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(step.run(torch.empty(1, 1, *sizes)).shape[2:])


def _view(whole: Tensor, moves: Sequence[BackwardStep]) -> Tensor | None:
    """What arrives at the last of the moves, in the memory of the whole; None if it does not lie there as it is."""
    found = whole
    for step in moves:
        if step.up is None:
            return None
        found = step.up(found)
    shared = found.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    arriving = moves[-1].moves_from if moves else None
    return found if shared and arriving == tuple(found.shape[2:]) else None


def _rooms(sizes: tuple[int, ...], views: Sequence[Tensor]) -> Rooms:
    numel = math.prod(sizes)
    places = [(tuple(v.shape[2:]), v.stride()[2:], v.storage_offset()) for v in views]

    def rooms(like: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        batch, count = like.shape[:2]
        whole = like.new_empty(batch, count, *sizes)
        steps = (count * numel, numel)
        return whole, [whole.as_strided((batch, count, *some), (*steps, *strides), at) for some, strides, at in places]

    return rooms


def _fill_rooms(rooms: Rooms, times: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    whole, found = rooms(parts[0])
    for room, part, number in zip(found, parts, times, strict=True):
        room.copy_(part if number == 1 else part * number)
    return whole


def _differentiates(operands: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in operands)
