"""Patterns of alive neurons, and registers that hold relevance for these neurons only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.dispatch import sparse_kernels

Mask = tuple[Tensor, Tensor | None]
"""Values ``(B, C, *S)``; with an index of winners, the values that these have."""


def picked(mask: Mask) -> Tensor:
    """The values of a mask, those of the winners where it has an index."""
    values, index = mask
    return values if index is None else values.flatten(2).gather(2, index.flatten(2)).view(index.shape)


def kernels_for(tensor: Tensor) -> Any:
    """The sparse kernels of the tensor's device."""
    module = sparse_kernels(tensor.device)
    assert module is not None, "forms are attached only where there are kernels"
    return module


@dataclass(frozen=True, eq=False)
class Pattern:
    """The alive neurons of a value ``(B, C, *S)``.

    Attributes:
        offsets: int64 ``(B * prod(S) + 1,)``: where each position's entries begin.
        channels: int32 ``(entries,)``: the alive channels of each position, ascending.
        batch, sizes: B and ``(C, *S)``.
    """

    offsets: Tensor
    channels: Tensor
    batch: int
    sizes: tuple[int, ...]

    @staticmethod
    def of(*masks: Tensor | Mask) -> Pattern:
        """Entries where any of the masks ``(B, C, *S)`` is not zero."""
        pairs = [mask if isinstance(mask, tuple) else (mask, None) for mask in masks]
        values, index = pairs[0]
        offsets, channels = kernels_for(values).sparse_pattern(pairs)
        shape = values.shape if index is None else index.shape
        return Pattern(offsets, channels, shape[0], tuple(shape[1:]))

    @staticmethod
    def full(batch: int, sizes: tuple[int, ...], device: torch.device) -> Pattern:
        """The pattern in which every neuron is alive."""
        positions = batch * torch.Size(sizes[1:]).numel()
        offsets = torch.arange(positions + 1, device=device) * sizes[0]
        channels = torch.arange(sizes[0], dtype=torch.int32, device=device).repeat(positions)
        return Pattern(offsets, channels, batch, sizes)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """As the kernels take it."""
        return self.offsets, self.channels

    @property
    def entries(self) -> int:
        return self.channels.numel()

    @cached_property
    def density(self) -> float:
        """Share of the neurons that are alive."""
        return self.entries / max(1, self.batch * torch.Size(self.sizes).numel())

    @property
    def nbytes(self) -> int:
        return self.offsets.nbytes + self.channels.nbytes


@dataclass(frozen=True, eq=False)
class Compact:
    """A register ``(B, K, C, *S)`` that is kept for the entries of a pattern only; the others do not matter.

    Attributes:
        values: ``(rows, at least K)``, targets innermost. rows: the row of each entry, None for the same order.
    """

    values: Tensor
    pattern: Pattern
    count: int
    rows: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.pattern.batch, self.count, *self.pattern.sizes)

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """As the kernels take it."""
        return self.values, self.rows, self.pattern.offsets, self.pattern.channels

    @staticmethod
    def of(register: Tensor, pattern: Pattern) -> Compact:
        """The entries of a dense register."""
        return Compact(kernels_for(register).sparse_from_dense(register, pattern.tensors), pattern, register.shape[1])

    def dense(self) -> Tensor:
        """``(B, K, C, *S)``, zero outside the pattern."""
        result: Tensor = kernels_for(self.values).sparse_to_dense(
            self.parts, self.pattern.batch, self.count, list(self.pattern.sizes)
        )
        return result

    def narrow(self, dim: int, start: int, length: int) -> Compact:
        """Some of the targets, without a copy."""
        if dim != 1:
            raise ValueError(f"a compact register can be cut along its targets only (dim 1), not along {dim}")
        return Compact(self.values[:, start : start + length], self.pattern, length, self.rows)
