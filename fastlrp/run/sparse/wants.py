"""What each register must hold so that all who read it have what they need: everything, or the entries of a pattern.

A dense layer needs a whole map too, but of its numbers only those that its coefficients do not multiply by zero: a
sparse layer above it computes these alone, and the others are zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.compact import Mask, Pattern, picked
from fastlrp.plan.forms import Affine, AvgPool, MaxPool, Sum, Way
from fastlrp.plan.paths.path import Path
from fastlrp.plan.steps import BackwardStep, Emission, Steps

Patterns = dict[tuple[tuple[int, int], ...], tuple[Pattern, list[Mask]]]
"""What was found, by the identities of the masks, which are kept with it."""

Choose = Callable[[Affine, float, float], Way]
"""``(layer, density of what its output is given, density wanted of its input) -> way``."""


class Wants:
    """What the readers of each register need of it: masks whose union is enough, or everything (None).

    Args:
        state: all slots that the steps read. choose: which layers are sparse. steps: all of them, in order; each is
            then to be added, the last one first. patterns: found for another choice with the same state.

    Attributes:
        masks: of each register. readers: how many each has. sparse, narrow: steps that are written anew, those with
            products of bfloat16 among them, by identity. paths: what was chosen; path_of: by the step's identity.
        above_pools: what a pool needs of its output. ends: registers that wait at the end of the steps.
        rows, maps: registers of which some entries are enough, read by steps that take these alone, or by dense layers.
        either: steps that are sparse if what they are given is, by identity.
    """

    def __init__(
        self, state: Sequence[Any], choose: Choose, steps: Steps, patterns: Patterns | None = None
    ) -> None:  # fmt: skip
        self.state, self.choose, self._produced = state, choose, _produced(steps)
        self._pools = {s.out: s for s, _ in steps if type(s) is not Emission and isinstance(s.form, MaxPool)}
        self.masks: dict[int, list[Mask] | None] = {}
        self.readers: Counter[int] = Counter()
        self.sparse: set[int] = set()
        self.narrow: set[int] = set()
        self.paths: list[Path] = []
        self.above_pools: dict[int, list[Mask]] = {}
        self.ends: set[int] = set()
        self.rows: set[int] = set()
        self.maps: set[int] = set()
        self.either: set[int] = set()
        self.path_of: dict[int, Path] = {}
        self._patterns: Patterns = {} if patterns is None else patterns

    def add(self, step: Any) -> None:
        """A step, or an emission, whose readers have been added."""
        if type(step) is Emission:
            self.readers[step.register] += 1
            if step.whole:
                self._everything([step.register])
            else:
                self.ends.add(step.register)
            return
        self.readers.update(step.ins)
        form, wanted = step.form, self.masks.get(step.out)
        if isinstance(form, Affine):
            self._affine(step, form, wanted)
        elif isinstance(form, (MaxPool, AvgPool)) and wanted is not None:
            self.above_pools[id(step)] = self._above_pool(form, wanted)
            self._some(step.ins[0], self.above_pools[id(step)])
            self._as_read(step)
        elif isinstance(form, Sum) and wanted is not None:
            for register in step.ins:
                self._some(register, wanted)
            self._as_read(step)
        else:
            self._everything(step.ins)

    def _affine(self, step: BackwardStep, form: Affine, wanted: list[Mask] | None) -> None:
        coefficients: list[Mask] = [(self.state[slot], None) for slot in form.coefficients]
        above = self.pattern(coefficients).density
        below = 1.0 if wanted is None else self.pattern(wanted).density
        # One-hot targets select rows of a weight, which nothing beats.
        selects = step.accepts_one_hot and step.ins[0] not in self._produced
        way: Way = "dense" if selects else self.choose(form, min(above, self._given(step.ins[0], coefficients)), below)
        sparse, narrow = way != "dense", way == "sparse bf16"
        self.path_of[id(step)] = path = Path(form, sparse, above, below, narrow, above)
        self.paths.append(path)
        if narrow:
            self.narrow.add(id(step))
        if selects:
            self._everything(step.ins)
            return
        self._some(step.ins[0], coefficients)
        if sparse:
            self.sparse.add(id(step))
        (self.rows if sparse else self.maps).update(step.ins)

    def _given(self, register: int, masks: list[Mask]) -> float:
        """Density of what comes down to a sparse reader: below a max-pool of the winners alone."""
        pool = self._pools.get(register)
        if pool is None:
            return 1.0
        assert isinstance(pool.form, MaxPool)
        winners = self.pattern([_at_winners(mask, self.state[pool.form.index]) for mask in masks])
        return winners.entries / max(1, winners.batch * torch.Size(pool.form.leaving).numel())

    def _as_read(self, step: BackwardStep) -> None:
        """A step without a weight takes what it is given where dense layers alone read what it gives."""
        if self.is_map(step.out):
            self.either.add(id(step))
        else:
            self.sparse.add(id(step))
            self.rows.update(step.ins)

    def is_map(self, register: int) -> bool:
        """Whether dense layers alone read a register of which some entries are enough."""
        return register in self.maps and register not in self.rows and register not in self.ends

    def _above_pool(self, form: MaxPool | AvgPool, wanted: list[Mask]) -> list[Mask]:
        """What a pool needs of its output, if that is wanted of its input."""
        if isinstance(form, MaxPool):
            return [_at_winners(mask, self.state[form.index]) for mask in wanted]
        if form.scale is not None:
            return [(self.state[form.scale], None)]
        return [(form.reached(picked(mask)), None) for mask in wanted]

    def _everything(self, registers: Sequence[int]) -> None:
        self.masks.update(dict.fromkeys(registers, None))

    def _some(self, register: int, masks: list[Mask]) -> None:
        known = self.masks.setdefault(register, [])
        if known is not None:
            known += [mask for mask in masks if _key(mask) not in map(_key, known)]

    def pattern(self, masks: list[Mask]) -> Pattern:
        """Entries where any of the masks is not zero."""
        key = tuple(sorted(_key(mask) for mask in masks))
        if key not in self._patterns:
            # The masks are kept with their pattern: they are remembered by identity.
            self._patterns[key] = Pattern.of(*masks), list(masks)
        return self._patterns[key][0]

    def of(self, register: int) -> Pattern | None:
        """The entries that the readers of a register need; None for all."""
        masks = self.masks.get(register)
        return None if masks is None else self.pattern(masks)


def _key(mask: Mask) -> tuple[int, int]:
    return id(mask[0]), id(mask[1])


def _at_winners(mask: Mask, index: Tensor) -> Mask:
    return mask[0] if mask[1] is None else picked(mask), index


def _produced(steps: Steps) -> set[int]:
    """Registers that steps write; not those of copies of the initial relevance, which stay one-hot if that is."""
    found: set[int] = set()
    for step, _ in steps:
        if type(step) is not Emission and not (step.keeps_one_hot and found.isdisjoint(step.ins)):
            found.update(step.outs)
    return found
