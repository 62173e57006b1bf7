"""Packed sequences while a model is traced: they stay padded, and their lengths are a tensor like any other.

``pack_padded_sequence`` sorts the samples by length and lays the valid steps of all one behind the other, in sizes that
only the lengths tell; torch.export cannot follow that. While a model is traced it gives a ``PackedSequence`` whose rows
are all steps of all samples, ``(B T, …)``, in the samples' own order, and whose ``batch_sizes`` are a
:class:`Packing`. To PyTorch that is something like a tensor: recurrent layers and ``pad_packed_sequence`` hand it their
arguments, and it answers for them.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import rnn

from fastlrp.capture.recurrent import SEQUENCES
from fastlrp.errors import CaptureError

PADDED = "fastlrp_capture::padded"
"""The operation that stands for a recurrent layer of sequences of several lengths."""
VALID = "fastlrp_capture::valid_steps"
"""The operation that says which steps are valid, where sequences are unpacked."""

_LIBRARY = torch.library.Library("fastlrp_capture", "DEF")  # The operations live as long as it does.
_LIBRARY.define(
    "padded(str mode, Tensor input, Tensor lengths, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, "
    "float dropout, bool train, bool bidirectional) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define("valid_steps(Tensor lengths, int steps, bool cut) -> Tensor")

_TRACING: list[int] = []
"""The thread that traces a model, while one does."""


class Packing:
    """In the place of a packed sequence's ``batch_sizes``.

    Args:
        lengths: ``(B,)``. steps: to which the sequences are padded, ``T``. batch: ``B``.
    """

    device = torch.device("cpu")

    def __init__(self, lengths: Tensor, steps: int, batch: Any) -> None:
        self.lengths, self.steps, self.batch = lengths, steps, batch
        self._padded: list[tuple[Tensor, Tensor]] = []

    def rows(self, padded: Tensor) -> Tensor:
        """``(B, T, …)`` as rows ``(B T, …)``."""
        rows = padded.flatten(0, 1)
        self._padded.append((rows, padded))
        return rows

    def padded(self, rows: Tensor) -> Tensor:
        """The reverse, without a step in the graph for rows that nobody changed."""
        known = next((padded for known, padded in self._padded if known is rows), None)
        return rows.unflatten(0, (self.batch, self.steps)) if known is None else known

    def __getitem__(self, index: int) -> Any:
        if index != 0:
            raise CaptureError(_reads("batch_sizes[…]"))
        return self.batch

    def size(self, axis: int) -> _Longest:
        return _Longest(self.steps)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CaptureError(_reads(f"batch_sizes.{name}"))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in SEQUENCES:
            return _layer(name, *args, **(kwargs or {}))
        if name == "_pad_packed_sequence":
            return _unpack(*args, **(kwargs or {}))
        raise CaptureError(_reads(f"batch_sizes in {name}"))


class _Longest(int):
    """The longest length as far as it is known: that of the padded input."""


def _reads(what: str) -> str:
    return (
        f"the model could not be captured: it reads {what} of a packed sequence, which is not known before the lengths "
        "are. A packed sequence may go through recurrent layers, operations on each row of its .data, and "
        "pad_packed_sequence"
    )


def pack(input: Tensor, lengths: Tensor | Sequence[int], batch_first: bool, enforce_sorted: bool) -> rnn.PackedSequence:
    """In the place of ``pack_padded_sequence``; the order of the samples is their own."""
    if threading.get_ident() not in _TRACING:
        own: rnn.PackedSequence = _OWN(input, lengths, batch_first, enforce_sorted)
        return own
    if not isinstance(lengths, Tensor) and len(set(lengths)) > 1:
        raise CaptureError(
            "the model could not be captured: pack_padded_sequence gets lengths as a list of numbers, one for each "
            "sample of this batch, so that samples could not be told apart from places in the batch. Give the model "
            "the lengths as a tensor (B,) beside x"
        )
    given = torch.as_tensor(lengths).to(device=input.device, dtype=torch.int64)
    x = input if batch_first else input.transpose(0, 1)
    batch, steps = x.shape[:2]
    if given.dim() != 1 or given.shape[0] != batch:
        raise CaptureError(
            f"pack_padded_sequence: lengths must have one entry for each sample, {batch}, got {tuple(given.shape)}"
        )
    packing: Any = Packing(given, int(steps), batch)
    return rnn.PackedSequence(packing.rows(x), packing)


def _layer(
    mode: str, data: Tensor, packing: Packing, hx: Any, params: list[Tensor], has_biases: bool, num_layers: int,
    dropout: float, train: bool, bidirectional: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    x = packing.padded(data)
    states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
    y, h, c = torch.ops.fastlrp_capture.padded(
        mode, x, packing.lengths, states, params, has_biases, num_layers, dropout, train, bidirectional
    )
    return (packing.rows(y), h, c) if mode == "lstm" else (packing.rows(y), h)


def _unpack(
    data: Tensor, packing: Packing, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    y = packing.padded(data)
    cut = isinstance(total_length, _Longest)
    valid = torch.ops.fastlrp_capture.valid_steps(packing.lengths, packing.steps, cut)
    valid = valid.reshape(*valid.shape, *(1,) * (y.dim() - 2))
    y = torch.where(valid, y, padding_value)
    if total_length > packing.steps:
        added = [0, 0] * (y.dim() - 2) + [0, int(total_length) - packing.steps]
        y = torch.nn.functional.pad(y, added, value=padding_value)
    return y if batch_first else y.transpose(0, 1), packing.lengths.cpu()


def _stand_in(input, lengths, batch_first=False, enforce_sorted=True):  # type: ignore[no-untyped-def]
    import sys

    return sys.modules["fastlrp.capture.packed"].pack(input, lengths, batch_first, enforce_sorted)


def _copy(function: Any) -> Callable[..., Any]:
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)


_OWN = _copy(rnn.pack_padded_sequence)


@contextmanager
def kept_padded() -> Iterator[None]:
    """Let the calling thread's ``pack_padded_sequence`` leave sequences padded, under whatever name a model has it.

    The function is changed, not the place where it stands: ``from … import`` has made others. One thread at a time.
    """
    function: Any = rnn.pack_padded_sequence
    own = function.__code__
    _TRACING.append(threading.get_ident())
    function.__code__ = _stand_in.__code__
    try:
        yield
    finally:
        function.__code__ = own
        _TRACING.pop()


@contextmanager
def packed_again() -> Iterator[None]:
    """Within :func:`kept_padded`: the model as it is."""
    tracing = _TRACING.copy()
    _TRACING.clear()
    try:
        yield
    finally:
        _TRACING.extend(tracing)


# The operations themselves


def _shapes(
    mode: str, input: Tensor, lengths: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    h = hx[0]
    y = input.new_empty(input.shape[0], input.shape[1], h.shape[2] * (2 if bidirectional else 1))
    return y, torch.empty_like(h), torch.empty_like(hx[-1])


def valid_steps(lengths: Tensor, steps: int, cut: bool) -> Tensor:
    """Which steps are valid, ``(B, T)`` of ``lengths (B,)``.

    ``cut``: whether the model cuts its sequences to the longest.
    """
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(-1)


_LIBRARY.impl("valid_steps", valid_steps, "CompositeExplicitAutograd")
torch.library.register_fake("fastlrp_capture::padded", _shapes, lib=_LIBRARY)
torch.library.register_fake("fastlrp_capture::valid_steps", valid_steps, lib=_LIBRARY)
