"""How far along the positions relevance of a block of targets can reach, where a model is causal.

A target at position p has no relevance at positions after p if attention is causal. Steps that treat positions one by
one then need those up to the last target of a block alone. Nothing is assumed of the model: a register is cut where
what lies behind is zero, which is looked at.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.looking import may_look
from fastlrp.targets.one_hot import AtPositions, OneHot

LEAST_SAVED = 1 / 16
"""Share of the positions that has to be behind the last target, so that it is worth looking."""


@dataclass(eq=False)
class Reach:
    """The last positions of the targets of a block.

    Attributes:
        ends: of each target its position plus one, the largest of all samples. whole: how many positions there are.
        prefix: those that the block needs.
    """

    ends: list[int]
    whole: int
    prefix: Tensor

    @staticmethod
    def of(initial: Any) -> Reach | None:
        """Of initial relevance at positions ``(S, V)``; None for any other, and on a GPU, where looking would wait."""
        if not isinstance(initial, OneHot) or len(initial.sizes) != 2 or initial.index.numel() == 0:
            return None
        if not may_look(initial.index):
            return None
        last = (initial.index // initial.sizes[1]).amax((0, 2)) + 1
        return _reach(last.tolist(), initial.sizes[0])

    def narrow(self, start: int, length: int) -> Reach:
        """Of some of the targets."""
        return _reach(self.ends[start : start + length], self.whole)

    def order(self) -> list[int] | None:
        """The targets by their positions, so that blocks of them end early; None if they are in order."""
        if all(a <= b for a, b in itertools.pairwise(self.ends)):
            return None
        return sorted(range(len(self.ends)), key=self.ends.__getitem__)

    def taken(self, order: list[int]) -> Reach:
        """Of the targets in another order."""
        return replace(self, ends=[self.ends[i] for i in order])

    @property
    def end(self) -> int:
        """How many positions the block needs."""
        return len(self.prefix)

    @property
    def is_short(self) -> bool:
        """Whether enough of the positions are behind the last target."""
        return self.whole - self.end >= max(1, LEAST_SAVED * self.whole)

    def cut(self, registers: list[Any]) -> list[AtPositions] | None:
        """The registers at these positions alone; None if there is relevance at others."""
        if not self.is_short:
            return None
        found = [self._cut_one(register) for register in registers]
        return None if any(register is None for register in found) else found  # type: ignore[return-value]

    def _cut_one(self, register: Any) -> AtPositions | None:
        if isinstance(register, AtPositions):
            return register if register.positions is self.prefix else None
        if not isinstance(register, Tensor) or register.dim() < 4 or register.shape[2] != self.whole:
            return None
        # As a rule the last position tells.
        if bool(register.select(2, -1).any()) or bool(register.narrow(2, self.end, self.whole - self.end).any()):
            return None
        return AtPositions(register.narrow(2, 0, self.end), self.prefix, self.whole, is_prefix=True)


def _reach(ends: list[int], whole: int) -> Reach:
    return Reach(ends, whole, torch.arange(max(ends)))
