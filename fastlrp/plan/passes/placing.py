"""Parts of a whole are written where the moves would bring them.

Where queries, keys and values of one product are moved and put together, an operation that can write into given memory
writes each part where it goes. Parts that come to the whole by way of another step (a norm of queries and keys, a
rotation) are copied there once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.passes.moving import MOST_KNOWN, Known, Ways
from fastlrp.plan.steps import BackwardStep, Emission, Steps
from fastlrp.plan.window import Rooms


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
        if maker is not None and maker not in placed:
            placed[maker], filled = found.written_by(maker, ways)
            gone |= found.steps
            if filled is not None:
                placed[step] = filled
        elif step.slots or found.copies_below:  # Else they are put side by side, as views where they lie so already.
            placed[step] = found.copied()
            gone |= found.steps - {step}
    return [placed.get(step, step) for step, _ in steps if step not in gone or step in placed]


def _puts_together(step: BackwardStep) -> bool:
    numbers = bool(step.slots) and all(slot in step.numbers for slot in step.slots)
    return len(step.ins) > 1 and step.least == 1 and (step.adds or numbers)


@dataclass(frozen=True)
class PartsOfWhole:
    """What parts are in memory of a whole ``(B, K, *sizes)``.

    Attributes:
        places: of each part the sizes, strides and offset behind batch and targets.
    """

    sizes: tuple[int, ...]
    places: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]

    def __call__(self, like: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """New memory for as many samples and targets as ``like`` has, and the parts in it."""
        whole = like.new_empty(*like.shape[:2], *self.sizes)
        return whole, self.rooms_of(whole)

    def rooms_of(self, whole: Tensor) -> Sequence[Tensor]:
        """The parts of the whole as views of it, one for each place."""
        first, steps, at = whole.shape[:2], whole.stride()[:2], whole.storage_offset()
        return [
            whole.as_strided((*first, *sizes), (*steps, *strides), at + offset)
            for sizes, strides, offset in self.places
        ]


@dataclass(eq=False)
class _Whole:
    """Parts that are moved into a whole, and the whole, which is moved on.

    Attributes:
        total: the sum of the parts. steps: it and the moves. entries: the registers that the parts come from. out: the
            register of the whole at the end. parts: what each entry is in memory of the whole. times: numbers that
            the entries are multiplied with. copies_below: whether the moves of the whole would copy it if its parts
            were put side by side.
    """

    total: BackwardStep
    steps: set[BackwardStep]
    entries: list[int]
    out: int
    numel: int
    parts: PartsOfWhole
    times: list[float]
    copies_below: bool

    @staticmethod
    def of(total: BackwardStep, ways: Ways, readers: dict[int, BackwardStep], known: Known) -> _Whole | None:
        """None where moves do more than to look at the same memory in another way, or the parts do not fill it."""
        embeds = [ways.makers.get(register) for register in total.ins]
        if not _fill(embeds, total, ways):
            return None
        moves = [[step, *_moves_above(step.ins[0], ways)] for step in embeds if step is not None]
        below = _moves_below(total.out, ways, readers)
        every = [step for path in moves for step in path]
        parts = None
        if len(set(every)) == len(every):
            parts = known.get((total, *every, *below), lambda: _parts_of_whole(moves, below))
        if parts is None:
            return None
        plain = len(total.ins) - len(total.slots)
        return _Whole(
            total,
            {total, *below, *every},
            [path[-1].ins[0] for path in moves],
            below[-1].out if below else total.out,
            total.numel,
            parts,
            [1.0] * plain + [total.numbers[slot] for slot in total.slots],
            known.get(("copies", *below), lambda: _copy(below)),
        )

    def maker(self, ways: Ways) -> BackwardStep | None:
        """The step that makes parts, as many as possible, and can write them where they go."""
        makers = [ways.makers.get(register) for register in self.entries if ways.readers[register] == 1]
        able = [step for step in makers if step is not None and step.into is not None and step.least == 1]
        return max(able, key=able.count) if able else None

    def written_by(self, maker: BackwardStep, ways: Ways) -> tuple[BackwardStep, BackwardStep | None]:
        """The step that makes its parts where they go, in front of what else it makes, and the one that then copies
        the others there, if there are any."""
        mine = [out for out in maker.outs if out in self.entries and ways.readers[out] == 1]
        own = [out for out in maker.outs if out not in mine]
        left = [i for i, register in enumerate(self.entries) if register not in mine]
        order = [self.entries.index(out) if out in mine else None for out in maker.outs]
        times, run, into = [1.0 if i is None else self.times[i] for i in order], maker.run, maker.into

        def rooms(like: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
            whole, found = self.parts(like)
            return whole, [None if i is None else found[i] for i in order]

        def written(*operands: Any) -> Any:
            if into is None or _differentiates(operands):
                return _fill_rooms(rooms, times, run(*operands))
            return into(rooms, times, *operands)

        def filled(whole: Tensor, *parts: Tensor) -> Tensor:
            found = self.parts.rooms_of(whole)
            for i, part in zip(left, parts, strict=True):
                found[i].copy_((part if self.times[i] == 1 else part * self.times[i]).reshape(found[i].shape))
            return whole

        unfilled = self.total.ins[0] if left else self.out  # That register was a summand's, which is gone.
        outs, numels = (unfilled, *own), (self.numel, *(maker.numels[maker.outs.index(out)] for out in own))
        first = BackwardStep(
            maker.name, maker.node, written, maker.ins, maker.slots, outs, numels, maker.work, fresh=True
        )
        ins = (unfilled, *(self.entries[i] for i in left))
        return first, self._step(self.total.name, self.total, filled, ins, (), self.total.work) if left else None

    def copied(self) -> BackwardStep:
        """The step that copies the parts to where they go."""

        def copied(*parts: Tensor) -> Tensor:
            return _fill_rooms(self.parts, self.times, parts)

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


def _copy(moves: Sequence[BackwardStep]) -> bool:
    """Whether the moves copy what lies in memory in the order of its axes."""
    if not moves or moves[0].moves_from is None:
        return False
    first = moved = torch.empty(1, 1, *moves[0].moves_from)
    for step in moves:
        moved = step.run(moved)
    return moved.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()


def _parts_of_whole(moves: Sequence[Sequence[BackwardStep]], below: Sequence[BackwardStep]) -> PartsOfWhole | None:
    """What each part is in new memory of the whole; None where moves do more than to look at it in another way."""
    first = moves[0][0]
    assert first.moves_from is not None
    sizes = _sizes_after(first, first.moves_from)
    for step in below:
        sizes = _sizes_after(step, sizes)
    whole = torch.empty(1, 1, *sizes)
    views = [view for view in (_view(whole, [*below[::-1], *path]) for path in moves) if view is not None]
    places = tuple((tuple(v.shape[2:]), v.stride()[2:], int(v.storage_offset())) for v in views)
    return PartsOfWhole(sizes, places) if len(views) == len(moves) else None


def _sizes_after(step: BackwardStep, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(step.run(torch.empty(1, 1, *sizes)).shape[2:])


def _view(whole: Tensor, moves: Sequence[BackwardStep]) -> Tensor | None:
    """What arrives at the last of the moves, in the memory of the whole; None if it does not lie there as it is.

    Where the last move puts the first two axes together, of windows and heads, it may have them apart.
    """
    before = found = whole
    for step in moves:
        if step.up is None:
            return None
        before, found = found, step.up(found)
    arriving = moves[-1].moves_from if moves else None
    if _shares(found, whole):
        return found if arriving == tuple(found.shape[2:]) else None
    together = before.dim() > 3 and arriving == tuple(before.flatten(2, 3).shape[2:])
    return before if together and _shares(before, whole) and _puts_axes_together(moves[-1], before) else None


def _shares(view: Tensor, whole: Tensor) -> bool:
    return view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def _puts_axes_together(step: BackwardStep, like: Tensor) -> bool:
    """Whether the move, upwards, is a reshape: seen from the entries' numbers."""
    assert step.up is not None
    numbers = torch.arange(like.numel(), dtype=torch.float64).view(like.shape)
    return torch.equal(step.up(numbers).flatten(), numbers.flatten())


def _fill_rooms(rooms: Rooms, times: Sequence[float], parts: Sequence[Tensor]) -> Any:
    whole, found = rooms(parts[0])
    results = [part if number == 1 else part * number for part, number in zip(parts, times, strict=True)]
    for room, result in zip(found, results, strict=True):
        if room is not None:
            room.copy_(result.reshape(room.shape))
    own = [result for room, result in zip(found, results, strict=True) if room is None]
    return (whole, *own) if own else whole


def _differentiates(operands: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in operands)
