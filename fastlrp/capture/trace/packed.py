"""Packed sequences while a model is traced: they stay padded, and their lengths are a tensor like any other.

``pack_padded_sequence`` sorts the samples by length and lays the valid steps of all one behind the other, in sizes that
only the lengths tell; torch.export cannot follow that. While a model is traced it gives a ``PackedSequence`` whose rows
are all steps of all samples, ``(B T, …)``, in the samples' own order, and whose ``batch_sizes`` are a
:class:`Packing`. To PyTorch that is something like a tensor: recurrent layers and ``pad_packed_sequence`` hand it their
arguments, and it answers for them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode

from fastlrp.capture.trace import padded
from fastlrp.capture.trace.recurrent import PACKED, SEQUENCES
from fastlrp.errors import CaptureError

_TRACING: list[int] = []
"""The thread that traces a model, while one does."""
_ROWS: list[Rows] = []
"""What it has packed."""


class Rows(TorchFunctionMode):
    """The rows of packed sequences and what is made from them row by row, whose number a trace would take for real.

    ``len`` and iteration must answer with a number and are refused. A size stays a symbol, which may go into shapes;
    but a comparison with it may be decided by what the trace knows.

    Attributes:
        counted: whether the model asked for the number of rows, or made of them what has another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted = False
        self._known: dict[int, Tensor] = {}  # Held, so that their ids stay theirs.

    def __bool__(self) -> bool:
        """Whether anything was packed."""
        return bool(self._known)

    def add(self, rows: Tensor) -> None:
        self._known[id(rows)] = rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = self._among(args) if self._known else None
        if known is not None:
            self._note(func, known, args[1:], kwargs or {})
        found = func(*args, **(kwargs or {}))
        if known is not None:
            for made in found if isinstance(found, (tuple, list)) else (found,):
                if isinstance(made, Tensor) and made.dim() and _same(made, known):
                    self.add(made)
                elif isinstance(made, Tensor) and not any(isinstance(arg, Packing) for arg in args):
                    self.counted = True
        return found

    def _note(self, func: Any, rows: Tensor, args: Any, kwargs: Any) -> None:
        if func in _COUNTS:
            raise CaptureError(reads(_COUNTS[func]))
        if func not in _UNBIND and func not in _SIZES:
            return
        dim = None if func == _SHAPE else args[0] if args else kwargs.get("dim")
        if dim in (None, 0, -rows.dim()):
            if func in _UNBIND:
                raise CaptureError(reads("row after row of .data"))
            self.counted = True

    def _among(self, args: Any) -> Tensor | None:
        for arg in args:
            if isinstance(arg, Tensor) and id(arg) in self._known:
                return arg
            if isinstance(arg, (tuple, list)) and (inner := self._among(arg)) is not None:
                return inner
        return None


_COUNTS: dict[Any, str] = {Tensor.__len__: "len(.data)", Tensor.numel: ".data.numel()", torch.numel: ".data.numel()",
                            Tensor.nelement: ".data.nelement()"}  # fmt: skip
_UNBIND = (Tensor.unbind, torch.unbind)  # Iteration too.
_SHAPE: Any = Tensor.shape.__get__  # type: ignore[attr-defined]
_SIZES = (_SHAPE, Tensor.size)


def _same(made: Tensor, rows: Tensor) -> bool:
    """Whether two tensors have equally many rows; asked of symbols as such, which a comparison would make numbers."""
    return str(made.shape[0]) == str(rows.shape[0])


class Packing:
    """In the place of a packed sequence's ``batch_sizes``.

    Args:
        lengths: ``(B,)``. steps: to which the sequences are padded, ``T``. batch: ``B``.
        ordered: whether the model wants the lengths in decreasing order.
    """

    device = torch.device("cpu")

    def __init__(self, lengths: Tensor, steps: int, batch: Any, ordered: bool) -> None:
        self.lengths, self.steps, self.batch, self.ordered = lengths, steps, batch, ordered
        self._padded: list[tuple[Tensor, Tensor]] = []

    def rows(self, padded: Tensor) -> Tensor:
        """``(B, T, …)`` as rows ``(B T, …)``."""
        rows = padded.flatten(0, 1)
        self._padded.append((rows, padded))
        if _ROWS:
            _ROWS[-1].add(rows)
        return rows

    def padded(self, rows: Tensor) -> Tensor:
        """The reverse, without a step in the graph for rows that nobody changed."""
        known = next((padded for known, padded in self._padded if known is rows), None)
        return rows.unflatten(0, (self.batch, self.steps)) if known is None else known

    def __getitem__(self, index: int) -> Any:
        if index != 0:
            raise CaptureError(reads("batch_sizes[…]"))
        return self.batch

    def size(self, axis: int) -> _Longest:
        if sys._getframe(1).f_code is not rnn.pad_packed_sequence.__code__:
            raise CaptureError(reads("batch_sizes.size()"))
        return _Longest(self.steps)

    def __len__(self) -> int:
        raise CaptureError(reads("len(batch_sizes)"))

    def _refused(self, *others: Any) -> Any:
        raise CaptureError(reads("batch_sizes"))

    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = _refused
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __iter__ = _refused

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CaptureError(reads(f"batch_sizes.{name}"))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in SEQUENCES:
            return _layer(name, *args, **(kwargs or {}))
        if name == "_pad_packed_sequence":
            return _unpack(*args, **(kwargs or {}))
        raise CaptureError(reads(f"batch_sizes in {name}"))


class _Longest(int):
    """The longest length as far as it is known: that of the padded input."""

    def __gt__(self, total_length: int) -> bool:
        if int(self) <= total_length:
            return False
        raise CaptureError(
            f"the model could not be captured: pad_packed_sequence(total_length={total_length}) unpacks to fewer steps "
            f"than the input has, {int(self)}, which suits some lengths only. Pass total_length={int(self)} or more, "
            f"or cut the input before the model, x[:, :{total_length}]"
        )


MAY = "A packed sequence may go through recurrent layers, operations on each row of its .data, and pad_packed_sequence"


def reads(what: str) -> str:
    return (
        f"the model could not be captured: it reads {what} of a packed sequence, which is not known before the lengths "
        f"are. {MAY}"
    )


def _number(steps: Any) -> int:
    try:
        return int(steps)
    except Exception as error:
        raise CaptureError(
            "the model could not be captured: it cuts its sequences to a length computed from data before it packs "
            "them (as x[:, :int(lengths.max())] does), and a graph has one number of steps. Cut the input before the "
            "model, or leave the cut away: packed sequences end at their lengths in any case"
        ) from error


def pack(input: Tensor, lengths: Tensor | Sequence[int], batch_first: bool, enforce_sorted: bool) -> rnn.PackedSequence:
    """In the place of ``pack_padded_sequence``; the order of the samples is their own."""
    if threading.get_ident() not in _TRACING:
        own: rnn.PackedSequence = _OWN(input, lengths, batch_first, enforce_sorted)
        return own
    if not isinstance(lengths, Tensor) and not all(isinstance(n, int) for n in lengths):
        raise CaptureError(PACKED)
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
    packing: Any = Packing(given, _number(steps), batch, enforce_sorted)
    return rnn.PackedSequence(packing.rows(x), packing)


def _layer(
    mode: str, data: Tensor, packing: Packing, hx: Any, params: list[Tensor], has_biases: bool, num_layers: int,
    dropout: float, train: bool, bidirectional: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    x = packing.padded(data)
    states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
    y, h, c = padded.layer_call(
        mode, x, packing.lengths, states, params, has_biases, num_layers, dropout, train, bidirectional,
        packing.ordered,
    )  # fmt: skip
    return (packing.rows(y), h, c) if mode == "lstm" else (packing.rows(y), h)


def _unpack(
    data: Tensor, packing: Packing, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    y = packing.padded(data)
    cut = isinstance(total_length, _Longest)
    valid = padded.valid_steps_call(packing.lengths, packing.steps, cut, packing.ordered)
    valid = valid.reshape(*valid.shape, *(1,) * (y.dim() - 2))
    y = torch.where(valid, y, padding_value)
    if total_length > packing.steps:
        added = [0, 0] * (y.dim() - 2) + [0, int(total_length) - packing.steps]
        y = torch.nn.functional.pad(y, added, value=padding_value)
    return y if batch_first else y.transpose(0, 1), packing.lengths.cpu()


def _stand_in(input, lengths, batch_first=False, enforce_sorted=True):  # type: ignore[no-untyped-def]
    import sys

    return sys.modules["fastlrp.capture.trace.packed"].pack(input, lengths, batch_first, enforce_sorted)


def expected_size(layer: nn.RNNBase, size: int, input: Tensor, batch_sizes: Any, own: str) -> tuple[Any, Any, int]:
    """In the place of a layer's method ``own``: the sizes of its states, whose batch stays a symbol for a Packing."""
    if not isinstance(batch_sizes, Packing):
        found: tuple[Any, Any, int] = _OWN_SIZES[own](layer, input, batch_sizes)
        return found
    return layer.num_layers * (2 if layer.bidirectional else 1), batch_sizes.batch, size


def _hidden_stand_in(self, input, batch_sizes):  # type: ignore[no-untyped-def]
    import sys

    size, expected = self.proj_size or self.hidden_size, sys.modules["fastlrp.capture.trace.packed"].expected_size
    return expected(self, size, input, batch_sizes, "get_expected_hidden_size")


def _cell_stand_in(self, input, batch_sizes):  # type: ignore[no-untyped-def]
    import sys

    expected = sys.modules["fastlrp.capture.trace.packed"].expected_size
    return expected(self, self.hidden_size, input, batch_sizes, "get_expected_cell_size")


def _copy(function: Any) -> Callable[..., Any]:
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)


_OWN = _copy(rnn.pack_padded_sequence)
_STAND_INS: list[tuple[Any, Callable[..., Any]]] = [
    (rnn.pack_padded_sequence, _stand_in),
    (nn.RNNBase.get_expected_hidden_size, _hidden_stand_in),
    (nn.LSTM.get_expected_cell_size, _cell_stand_in),
]
_OWN_SIZES = {function.__name__: _copy(function) for function, _ in _STAND_INS[1:]}


@contextmanager
def kept_padded(watched: bool = False) -> Iterator[Rows]:
    """Let the calling thread's ``pack_padded_sequence`` leave sequences padded, under whatever name a model has it.

    The function is changed, not the place where it stands: ``from … import`` has made others. One thread at a time.
    So are those that ask a packed sequence for the number of its samples, which would make it a constant.

    Args:
        watched: refuse to count rows.
    """
    own = [function.__code__ for function, _ in _STAND_INS]
    rows = Rows()
    _TRACING.append(threading.get_ident())
    _ROWS.append(rows)
    for function, stand_in in _STAND_INS:
        function.__code__ = stand_in.__code__
    try:
        with rows if watched else contextlib.nullcontext():
            yield rows
    finally:
        for (function, _), code in zip(_STAND_INS, own, strict=True):
            function.__code__ = code
        _TRACING.pop()
        _ROWS.pop()


@contextmanager
def packed_again() -> Iterator[None]:
    """Within :func:`kept_padded`: the model as it is."""
    tracing = _TRACING.copy()
    _TRACING.clear()
    try:
        yield
    finally:
        _TRACING.extend(tracing)
