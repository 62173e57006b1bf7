"""Which layers are sparse on one way down, and what form the registers between them have because of that."""

from __future__ import annotations

from collections.abc import Callable

from fastlrp.plan.forms import Affine, Way
from fastlrp.plan.paths.path import Path
from fastlrp.plan.steps import BackwardStep
from fastlrp.run.sparse.needs import Needs

Choose = Callable[[Affine, float, float], Way]
"""``(layer, density of what its output is given, density wanted of its input) -> way``."""


class Wants:
    """What was chosen for the layers, and which registers are read for some of their entries.

    Args:
        needs: of each register. choose: which layers are sparse.

    Attributes:
        sparse, narrow: steps that are written anew, those with products of bfloat16 among them, by identity.
        paths: what was chosen, the last layer first; path_of: by the step's identity.
        rows, maps: registers of which some entries are enough, read by steps that take these alone, or by dense layers.
        either: steps that are sparse if what they are given is, by identity.
    """

    def __init__(self, needs: Needs, choose: Choose) -> None:
        self.needs = needs
        self.sparse: set[int] = set()
        self.narrow: set[int] = set()
        self.rows: set[int] = set()
        self.maps: set[int] = set()
        self.either: set[int] = set()
        self._open: set[int] = set()
        self.paths: list[Path] = []
        self.path_of: dict[int, Path] = {}
        for reader in needs.readers:
            step, form = reader.step, reader.form
            if form is None:
                self._as_read(step)
                continue
            given = min(reader.above, reader.given)
            way: Way = "dense" if reader.selects else choose(form, given, reader.below)
            is_sparse, narrow = way != "dense", way == "sparse bf16"
            path = Path(form, is_sparse, reader.above, reader.below, narrow, given if is_sparse else reader.above)
            if not reader.follows:
                self.path_of[id(step)] = path
                self.paths.append(path)
            if reader.selects:
                continue
            if narrow:
                self.narrow.add(id(step))
            if is_sparse:
                self.sparse.add(id(step))
            (self.rows if is_sparse else self.maps).update(step.ins)

    def _as_read(self, step: BackwardStep) -> None:
        """A step without a weight takes what it is given where dense layers alone read what it gives, or such steps."""
        if self.is_map(step.out) or (step.out in self._open and step.out not in self.rows | self.needs.ends):
            self.either.add(id(step))
            self._open.update(step.ins)
        else:
            self.sparse.add(id(step))
            self.rows.update(step.ins)

    def is_map(self, register: int) -> bool:
        """Whether dense layers alone read a register of which some entries are enough."""
        return register in self.maps and register not in self.rows and register not in self.needs.ends
