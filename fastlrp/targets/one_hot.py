"""Initial relevance that stands in a few entries of the output, which layers with a weight take as rows of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.looking import may_look

Rows = Callable[..., Tensor]
"""``(value (B, K), index (B, K), weight (O, I), u (B, O), v, input, signed, multiply) -> (B, K, I)``."""


@dataclass(frozen=True)
class AtPositions:
    """A register of which only some positions (tokens, patches) carry relevance: the others are not there.

    Attributes:
        rows: ``(B, K, P, …)``. positions: ``(P,)``, ascending, the same for every sample and target. whole: how many
            positions there are. is_prefix: whether they are the first P.
    """

    rows: Tensor
    positions: Tensor
    whole: int
    is_prefix: bool = False

    @property
    def shape(self) -> torch.Size:
        """``(B, K, S, …)``, of what it stands for."""
        return torch.Size((*self.rows.shape[:2], self.whole, *self.rows.shape[3:]))

    def dense(self) -> Tensor:
        """``(B, K, S, …)`` with zeros at the other positions."""
        if self.is_prefix:
            result = self.rows.new_empty(self.shape)
            first = len(self.positions)
            result.narrow(2, 0, first).copy_(self.rows)
            result.narrow(2, first, self.whole - first).zero_()
            return result
        return self.rows.new_zeros(self.shape).index_copy_(2, self.positions, self.rows)

    def narrow(self, dim: int, start: int, length: int) -> AtPositions:
        """A block of targets, or with ``dim=0`` of samples."""
        assert dim in (0, 1), "only the axes of samples and targets can be cut"
        return replace(self, rows=self.rows.narrow(dim, start, length))

    def taken(self, order: list[int]) -> AtPositions:
        """The targets in another order."""
        return replace(self, rows=self.rows[:, order])

    def to(self, dtype: torch.dtype) -> AtPositions:
        """With rows of that dtype."""
        return replace(self, rows=self.rows.to(dtype))

    def clamp(self, low: float, high: float) -> AtPositions:
        """With rows within these bounds."""
        return replace(self, rows=self.rows.clamp(low, high))

    def of(self, slot: Any) -> Any:
        """What a step reads of a slot ``(B, S, …)``: these positions; anything else as it is."""
        has_positions = isinstance(slot, Tensor) and slot.dim() > 1 and slot.shape[1] == self.whole
        if not has_positions:
            return slot
        return slot.narrow(1, 0, len(self.positions)) if self.is_prefix else slot.index_select(1, self.positions)


@dataclass(frozen=True)
class OneHot:
    """Relevance with M entries per sample and target: one of a class, several of a contrast.

    Attributes:
        index: ``(B, K, M)`` places in the flattened sizes. value: ``(B, K, M)`` relevance there; places that occur
            twice add up.
        sizes: of one sample, ``(C,)`` or ``(S, V)``.
    """

    index: Tensor
    value: Tensor
    sizes: tuple[int, ...]

    @staticmethod
    def of_classes(index: Tensor, value: Tensor, sizes: tuple[int, ...]) -> OneHot:
        """One entry for each target, ``(B, K)``: their third axis is made when somebody wants it.

        The way down through a small network's last layer does not, and a view costs it as much as a product.
        """
        made = object.__new__(OneHot)
        made.__dict__.update(sizes=sizes, _of_classes=(index, value))
        return made

    def __getattr__(self, name: str) -> Tensor:
        if name not in ("index", "value") or "_of_classes" not in self.__dict__:
            raise AttributeError(f"OneHot has no attribute {name!r}")
        index, value = self.__dict__["_of_classes"]
        made: Tensor = (index if name == "index" else value).unsqueeze(2)
        self.__dict__[name] = made
        return made

    @property
    def shape(self) -> torch.Size:
        """``(B, K, *sizes)``, of what it stands for."""
        return torch.Size((*self.index.shape[:2], *self.sizes))

    @property
    def terms(self) -> int:
        """M, the number of entries that a target has."""
        return self.index.shape[2]

    def dense(self) -> Tensor:
        """``(B, K, *sizes)``."""
        zero = self.value.new_zeros(*self.index.shape[:2], math.prod(self.sizes))
        if self.terms == 1:
            zero.scatter_(2, self.index, self.value)
        else:
            zero.scatter_add_(2, self.index, self.value)
        return zero.view(self.shape)

    def narrow(self, dim: int, start: int, length: int) -> OneHot:
        """A block of targets, or with ``dim=0`` of samples."""
        assert dim in (0, 1), "only the axes of samples and targets can be cut"
        if start == 0 and length == self.index.shape[dim]:
            return self
        return replace(self, index=self.index.narrow(dim, start, length), value=self.value.narrow(dim, start, length))

    def taken(self, order: list[int]) -> OneHot:
        """The targets in another order."""
        return replace(self, index=self.index[:, order], value=self.value[:, order])

    def to(self, dtype: torch.dtype) -> OneHot:
        """With values of that dtype."""
        return replace(self, value=self.value.to(dtype))

    def moved(self, places: Callable[[Tensor], Tensor], sizes: tuple[int, ...]) -> OneHot:
        """Each entry at the place that ``places`` gives for its own; -1 drops it."""
        index = places(self.index)
        value = torch.where(index < 0, 0, self.value)
        return OneHot(index.clamp(min=0), value, sizes)

    def through(
        self, rows: Rows, weight: Tensor, u: Tensor | None, v: Tensor | None = None, input: Tensor | None = None
    ) -> Tensor | AtPositions:
        """``c = W^T (u F) + W+^T (v F)`` of a linear layer ``(B, *L, I) -> (B, *L, O)``: rows of its weight.

        Args:
            rows: the operation ``linear_one_hot_relevance``. weight: ``(O, I)``.
            u, v: coefficients ``(B, *L, O)``, at least one.
            input: ``(B, *L, I)`` if the second term goes by its sign, see
                :func:`fastlrp.reference.linear.linear_relevance`.

        Returns:
            ``(B, K, *L, I)``, zero but at the entries' positions; on a CPU those alone where they are few.
        """
        dtype = next(t.dtype for t in (u, v) if t is not None)
        if "_of_classes" in self.__dict__:
            index, value = self.__dict__["_of_classes"]
            if value.dtype == dtype and len(self.sizes) == 1:
                return rows(value, index, weight, u, v, input, input is not None, False)
        if self.value.dtype != dtype:  # Float16 coefficients may need more range.
            return self.to(dtype).through(rows, weight, u, v, input)
        if len(self.sizes) == 1:
            found = [
                rows(self.value[..., m], self.index[..., m], weight, u, v, input, input is not None, False)
                for m in range(self.terms)
            ]
            return sum(found[1:], found[0])
        return self._at_positions(rows, weight, u, v, input)

    def _at_positions(
        self, rows: Rows, weight: Tensor, u: Tensor | None, v: Tensor | None, input: Tensor | None
    ) -> Tensor | AtPositions:
        outputs, inputs = weight.shape
        batch, count = self.index.shape[:2]
        position, row = self.index // outputs, self.index % outputs
        room, place, positions = math.prod(self.sizes[:-1]), position, self._few_positions(position)
        if positions is not None:
            room, place = len(positions), torch.searchsorted(positions, position)
        # Each target is a sample of its own: it stands at a position with coefficients and an input of its own.
        ones = self.value.new_ones(1, 1).expand(batch * count, outputs)
        result = self.value.new_zeros(batch, count, room, inputs)
        for m in range(self.terms):
            where = position[:, :, m, None].expand(-1, -1, inputs)
            x = None if input is None else input.flatten(1, -2).gather(1, where).flatten(0, 1)
            for coefficient, first, second, sign in ((u, ones, None, None), (v, None, ones, x)):
                if coefficient is not None:
                    own = coefficient.flatten(1).gather(1, self.index[..., m])
                    value = (self.value[..., m] * own).flatten().unsqueeze(1)
                    part = rows(
                        value, row[..., m].flatten().unsqueeze(1), weight, first, second, sign, sign is not None, False
                    )
                    into = place[:, :, m, None, None].expand(-1, -1, 1, inputs)
                    result.scatter_add_(2, into, part.view(batch, count, 1, inputs))
        if positions is not None:
            return AtPositions(result, positions, self.sizes[0])
        return result.view(batch, count, *self.sizes[:-1], inputs)

    def _few_positions(self, position: Tensor) -> Tensor | None:
        """Those that any target stands at, if most of them are free; not on a GPU, where looking would wait for it."""
        if len(self.sizes) != 2 or not may_look(position):
            return None
        found = position.unique()
        return found if 2 * len(found) <= self.sizes[0] else None
