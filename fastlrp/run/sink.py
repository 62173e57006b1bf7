"""Where the blocks of one value's relevance are put together: a tensor of ours, or what the caller gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.run.finite import all_finite, total
from fastlrp.run.parted import Rows
from fastlrp.run.shared_memory import share_entries


class Result:
    """Where the blocks of one value's relevance are put together."""

    def __init__(
        self, name: str, value: Value, batch: int, count: int, reduce: str | None, destination: Any, alone: bool
    ) -> None:
        self.value, self.count, self.alone = value, count, alone
        self.channels = reduce == "channels" and len(value.sizes) > 1 and value.is_float
        self.shape = (batch, count, *(value.sizes[1:] if self.channels else value.sizes))
        self.given = destination
        self.target: Tensor | None = None if destination is None else self._check(destination, name)
        self._sums: list[Tensor] = []

    def _check(self, out: Any, name: str) -> Tensor:
        if isinstance(out, np.ndarray):
            if not out.flags.writeable:
                raise ValueError(f"out for {name!r} is a read-only array: open the memmap with mode 'r+' or 'w+'")
            if not np.issubdtype(out.dtype, np.floating):
                raise TypeError(f"out for {name!r} must be of a floating-point dtype, got {out.dtype}")
            shape = out.shape
        elif isinstance(out, Tensor):
            if not out.is_floating_point():
                raise TypeError(f"out for {name!r} must be of a floating-point dtype, got {out.dtype}")
            if out.layout != torch.strided or out.is_meta:
                where = "on meta, a device without numbers" if out.is_meta else str(out.layout)
                raise TypeError(f"out for {name!r} is {where}: give a dense tensor, torch.empty({self.shape})")
            shape = tuple(out.shape)
        else:
            raise TypeError(f"out for {name!r} must be a tensor or a NumPy array, got {type(out).__name__}")
        if tuple(shape) != self.shape:
            raise ValueError(f"out for {name!r} must have the shape {self.shape}, got {tuple(shape)}")
        found = out.detach() if isinstance(out, Tensor) else _tensor_of(out, name)
        if any(stride == 0 and size > 1 for stride, size in zip(found.stride(), found.shape, strict=True)):
            raise ValueError(
                f"out for {name!r} is expanded: several of its entries share memory; give a tensor of its own"
            )
        return found

    def write(self, first: int, register: Tensor, factors: tuple[Tensor, ...], rows: Rows | None = None) -> None:
        """A block of targets from ``first`` on: relevance is the product of register and factors.

        ``rows``: the samples that it is of; None: all of them.
        """
        is_whole = register.shape[1] == self.count and rows is None
        if self.target is None and self.alone and is_whole and not self.channels and not factors:
            # The whole answer in one block: nothing to put together. A copy if the register is only a view, which
            # tensors made in inference mode do not tell.
            dense, may_be_view = register.contiguous(), register._is_view() or register.is_inference()
            self.target = dense.clone() if dense.data_ptr() == register.data_ptr() and may_be_view else dense
            return
        if self.target is None and self.alone and is_whole and not self.channels and len(factors) == 1:
            (factor,) = factors
            if register.is_contiguous() and (factor.dtype, factor.device) == (register.dtype, register.device):
                self.target = (register * factor.unsqueeze(1)).contiguous()
                return
        place = self._place(first, register, rows)
        if len(factors) == 1 and not self.channels and (place.dtype, place.device) == (register.dtype, register.device):
            torch.mul(register, factors[0].unsqueeze(1), out=place)
        else:
            place.copy_(self.reduced(register, factors))
        self._add_up(place)

    def reduced(self, register: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """Relevance, or its sum over channels, from a register and its factors."""
        for factor in factors[:-1] if self.channels else factors:
            register = register * factor.unsqueeze(1)
        return _channel_sum(register, factors[-1] if factors else None) if self.channels else register

    def put(self, first: int, relevance: Tensor) -> None:
        """A block of targets as :meth:`reduced` makes it."""
        place = self._place(first, relevance)
        place.copy_(relevance)
        self._add_up(place)

    def _add_up(self, place: Tensor) -> None:
        """Of memory that the caller gave the sum is taken block by block: it may be a file that is larger than RAM."""
        if self.given is not None:
            self._sums.append(total(place))

    def is_finite(self) -> bool:
        """Whether the result has no NaN and no infinity."""
        assert self.target is not None
        if self.given is None:
            return all_finite(self.target)
        return all(map(math.isfinite, map(float, self._sums))) or bool(torch.isfinite(self.target).all())

    def _place(self, first: int, like: Tensor, rows: Rows | None = None) -> Tensor:
        if self.target is None:
            self.target = like.new_empty(self.shape)
        found = self.target.narrow(1, first, like.shape[1])
        return found if rows is None else found.narrow(0, rows.start, rows.length)

    def finish(self) -> Any:
        if self.target is None:
            raise AssertionError("no relevance was written")
        return self.given if self.given is not None else self.target


def _tensor_of(array: np.ndarray, name: str) -> Tensor:
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:  # Strides that go backward, another order of bytes, long doubles.
        raise TypeError(
            f"out for {name!r} is an array of {array.dtype} with the strides {array.strides}, which PyTorch cannot "
            f"write to: give np.empty({array.shape}, np.float32)"
        ) from error


def _channel_sum(register: Tensor, factor: Tensor | None) -> Tensor:
    """``sum_c (register * factor)``, without a product of full size."""
    if factor is None:
        return register.squeeze(2) if register.shape[2] == 1 else register.sum(2)
    total = register[:, :, 0] * factor[:, 0].unsqueeze(1)
    for c in range(1, register.shape[2]):
        total.addcmul_(register[:, :, c], factor[:, c].unsqueeze(1))
    return total


def destination(out: Any, name: str, names: Mapping[str, Value]) -> Any:
    """What the caller gave for the result of that name; None if nothing.

    Raises:
        ValueError: if ``out`` is no dict where there are several results, or has entries that are none of them.
    """
    if out is None:
        return None
    if len(names) == 1:
        return out
    if not isinstance(out, dict):
        raise ValueError(f"out must be a dict by name when there are several results: {', '.join(names)}")
    unknown = set(out) - set(names)
    if unknown:
        raise ValueError(f"out has entries for {sorted(unknown)}, the results are {', '.join(names)}")
    return out.get(name)


def refuse_shared_memory(results: Mapping[str, Result], read: Sequence[Tensor | None]) -> None:
    """Results are written while the input and the targets are still read, for the next block of targets.

    Raises:
        ValueError: if the memory that was given for a result is theirs, or that of another result.
    """
    given = [(name, result.target) for name, result in results.items() if result.given is not None]
    for number, (name, target) in enumerate(given):
        assert target is not None
        other = next((f"that for {b!r}" for b, t in given[:number] if t is not None and share_entries(target, t)), None)
        if other is None and any(t is not None and share_entries(target, t) for t in read):
            other = "the input, the output or the targets"
        if other is not None:
            raise ValueError(f"out for {name!r} lies in the memory of {other}: give a tensor of its own")
