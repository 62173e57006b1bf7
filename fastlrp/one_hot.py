"""Initial relevance that stands in a few entries of the output, which layers with a weight take as rows of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Rows = Callable[..., Tensor]
"""``(value (B, K), index (B, K), weight (O, I), u (B, O), v, input, signed, multiply) -> (B, K, I)``."""


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

    @property
    def shape(self) -> torch.Size:
        """``(B, K, *sizes)``, of what it stands for."""
        return torch.Size((*self.index.shape[:2], *self.sizes))

    @property
    def terms(self) -> int:
        """M."""
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
        """A block of targets."""
        assert dim == 1, "only the target axis can be cut"
        return replace(self, index=self.index.narrow(1, start, length), value=self.value.narrow(1, start, length))

    def to(self, dtype: torch.dtype) -> OneHot:
        """With values of that dtype."""
        return replace(self, value=self.value.to(dtype))

    def moved(self, places: Callable[[Tensor], Tensor], sizes: tuple[int, ...]) -> OneHot:
        """Each entry at the place that ``places`` gives for its own; -1 drops it."""
        index = places(self.index)
        value = torch.where(index < 0, 0, self.value)
        return OneHot(index.clamp(min=0), value, sizes)

    def through(self, rows: Rows, weight: Tensor, u: Tensor) -> Tensor:
        """``c = W^T (u F)`` of a linear layer ``(B, *L, I) -> (B, *L, O)``: rows of its weight, no product.

        Args:
            rows: the operation ``linear_one_hot_relevance``. weight: ``(O, I)``. u: coefficients ``(B, *L, O)``.

        Returns:
            ``(B, K, *L, I)``, zero but at the entries' positions.
        """
        outputs, inputs = weight.shape
        if self.value.dtype != u.dtype:  # Float16 coefficients may need more range.
            return self.to(u.dtype).through(rows, weight, u)
        if len(self.sizes) == 1:
            found = [
                rows(self.value[..., m], self.index[..., m], weight, u, None, None, False, False)
                for m in range(self.terms)
            ]
            return sum(found[1:], found[0])
        u = u.flatten(1)
        value = self.value * u.gather(1, self.index.flatten(1)).view(self.index.shape)
        position, row = self.index // outputs, self.index % outputs
        ones = u.new_ones(1, 1).expand(u.shape[0], outputs)  # The coefficients are in the values.
        result = value.new_zeros(*self.index.shape[:2], math.prod(self.sizes[:-1]), inputs)
        for m in range(self.terms):
            part = rows(value[..., m], row[..., m], weight, ones, None, None, False, False)
            where = position[:, :, m, None, None].expand(-1, -1, 1, inputs)
            result.scatter_add_(2, where, part.unsqueeze(2))
        return result.view(*self.index.shape[:2], *self.sizes[:-1], inputs)
