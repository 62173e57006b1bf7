"""What each register must hold so that all who read it have what they need: everything, or the entries of a pattern.

This depends on a forward pass alone, and not on which layers are sparse: it is found once for all ways down that are
compared. A dense layer needs a whole map too, but of its numbers only those that its coefficients do not multiply by
zero: a sparse layer above it computes these alone, and the others are zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.compact import Mask, Pattern, picked
from fastlrp.plan.forms import Affine, AvgPool, MaxPool, Sum
from fastlrp.plan.steps import BackwardStep, Emission, Steps

Masks = dict[tuple[int, int], Mask]
"""Masks whose union is enough, by identity."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A step that can do with some of the entries of what it reads.

    Attributes:
        form: of a layer with a weight; None for a pool or a sum, which take what they are given.
        above, below: densities of the layer's coefficients, and of what is wanted of its result.
        given: density of what comes down to the layer: below a max-pool of the winners alone.
        selects: whether the layer selects rows of its weight, by one-hot targets.
        follows: whether it is one of the steps that would follow.
    """

    step: BackwardStep
    form: Affine | None
    above: float = 1.0
    below: float = 1.0
    given: float = 1.0
    selects: bool = False
    follows: bool = False


class Needs:
    """What the readers of each register need of it: masks whose union is enough, or everything (None).

    Args:
        state: all slots that the steps read, and those that would follow. steps: all of them, in order.
        below: steps that would follow, which say what they need.

    Attributes:
        masks: of each register. times_read: how many readers each has. ends: registers that wait at the end of the
            steps. above_pools: what a pool needs of its output, by the step's identity.
        readers: steps of which some can do with some of the entries, the last one first.
        given: registers that are there before the first step.
    """

    def __init__(self, state: Sequence[Any], steps: Steps, below: Steps | None = None) -> None:
        self.state = state
        self._produced = _produced(steps)
        self._pools = {s.out: s for s, _ in steps if type(s) is not Emission and isinstance(s.form, MaxPool)}
        self.masks: dict[int, Masks | None] = {}
        self.times_read: Counter[int] = Counter()
        self.ends: set[int] = set()
        self.above_pools: dict[int, Masks] = {}
        self.readers: list[Reader] = []
        self._patterns: dict[tuple[tuple[int, int], ...], tuple[Pattern, list[Mask]]] = {}
        self._of: dict[int, Pattern | None] = {}
        self._joinable: list[int] | None = None
        for step, _ in reversed(below or []):
            self._add(step, follows=True)
        for step, _ in reversed(steps):
            self._add(step, follows=False)
        made = {r for step, _ in steps if type(step) is not Emission for r in step.outs}
        read = dict.fromkeys(r for step, _ in steps if type(step) is not Emission for r in step.ins)
        self.given = [register for register in read if register not in made]

    def _add(self, step: Any, follows: bool) -> None:
        """A step, or an emission, whose readers have been added."""
        if type(step) is Emission:
            self.times_read[step.register] += 1
            if step.whole:
                self.masks[step.register] = None
            else:
                self.ends.add(step.register)
            return
        for register in step.ins:
            self.times_read[register] += 1
        form, wanted = step.form, self.masks.get(step.out)
        if type(form) is Affine:
            self._affine(step, form, wanted, follows)
        elif wanted is None or type(form) not in (MaxPool, AvgPool, Sum):
            self.masks.update(dict.fromkeys(step.ins, None))
        else:
            if not isinstance(form, Sum):
                wanted = self.above_pools[id(step)] = self._above_pool(form, wanted)
            for register in step.ins:
                self._some(register, wanted)
            self.readers.append(Reader(step, None, follows=follows))

    def _affine(self, step: BackwardStep, form: Affine, wanted: Masks | None, follows: bool) -> None:
        coefficients = self.coefficients(form)
        above = self.pattern(coefficients).density
        below = 1.0 if wanted is None else self.pattern(wanted).density
        # One-hot targets select rows of a weight, which nothing beats.
        if step.accepts_one_hot and step.ins[0] not in self._produced:
            self.readers.append(Reader(step, form, above, below, selects=True, follows=follows))
            self.masks.update(dict.fromkeys(step.ins, None))
            return
        given = self._given(step.ins[0], coefficients)
        self.readers.append(Reader(step, form, above, below, given, follows=follows))
        self._some(step.ins[0], coefficients)

    def coefficients(self, form: Affine) -> Masks:
        """What a layer needs of what it is given."""
        return _by_key((self.state[slot], None) for slot in form.coefficients)

    def _given(self, register: int, masks: Masks) -> float:
        """Density of what comes down to a sparse reader: below a max-pool of the winners alone."""
        pool = self._pools.get(register)
        if pool is None:
            return 1.0
        assert isinstance(pool.form, MaxPool)
        index = self.state[pool.form.index]
        winners = self.pattern(_by_key(_at_winners(mask, index) for mask in masks.values()))
        return winners.entries / max(1, winners.batch * torch.Size(pool.form.leaving).numel())

    def _above_pool(self, form: MaxPool | AvgPool, wanted: Masks) -> Masks:
        """What a pool needs of its output, if that is wanted of its input."""
        if isinstance(form, MaxPool):
            return _by_key(_at_winners(mask, self.state[form.index]) for mask in wanted.values())
        if form.scale is not None:
            return _by_key([(self.state[form.scale], None)])
        return _by_key((form.reached(picked(mask)), None) for mask in wanted.values())

    def _some(self, register: int, masks: Masks) -> None:
        known = self.masks.setdefault(register, {})
        if known is not None:
            known.update(masks)

    def joinable(self, steps: Steps) -> list[int]:
        """Positions of layers whose result goes into a sum of two that follows at once, unscaled, and nowhere else."""
        if self._joinable is None:
            self._joinable = [
                position for position, ((layer, _), (total, _)) in enumerate(pairwise(steps))
                if type(total) is not Emission and type(total.form) is Sum and type(layer) is not Emission
                and self._goes_into(layer, total)
            ]  # fmt: skip
        return self._joinable

    def _goes_into(self, layer: BackwardStep, total: BackwardStep) -> bool:
        form, of_sum = layer.form, total.form
        assert isinstance(of_sum, Sum)
        if not isinstance(form, Affine) or form.factors is not None or form.is_split(self.state):
            return False
        alone = len(total.ins) == 2 and total.ins.count(layer.out) == 1 and self.times_read[layer.out] == 1
        return alone and of_sum.scales[total.ins.index(layer.out)] is None

    def pattern(self, masks: Masks) -> Pattern:
        """Entries where any of the masks is not zero."""
        key = tuple(masks) if len(masks) == 1 else tuple(sorted(masks))
        if key not in self._patterns:
            # The masks are kept with their pattern: they are remembered by identity.
            kept = list(masks.values())
            self._patterns[key] = Pattern.of(*kept), kept
        return self._patterns[key][0]

    def of(self, register: int) -> Pattern | None:
        """The entries that the readers of a register need; None for all."""
        if register not in self._of:
            masks = self.masks.get(register)
            self._of[register] = None if masks is None else self.pattern(masks)
        return self._of[register]


def _by_key(masks: Iterable[Mask]) -> Masks:
    return {(id(mask[0]), id(mask[1])): mask for mask in masks}


def _at_winners(mask: Mask, index: Tensor) -> Mask:
    return mask[0] if mask[1] is None else picked(mask), index


def _produced(steps: Steps) -> set[int]:
    """Registers that steps write; not those of copies of the initial relevance, which stay one-hot if that is."""
    found: set[int] = set()
    for step, _ in steps:
        if type(step) is not Emission and not (step.keeps_one_hot and found.isdisjoint(step.ins)):
            found.update(step.outs)
    return found
