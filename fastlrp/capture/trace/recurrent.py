"""Recurrent layers and cells as one operation for each layer and direction, which takes sequences batch first.

``lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu`` hold several layers, both directions and three results. Here each layer
and direction is an operation of its own on ``(B, T, C)``, with moves around it: transposes where the model has the time
in front, sums of directions side by side, last states picked out of the sequences.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Value
from fastlrp.errors import CaptureError

aten = torch.ops.aten
SEQUENCES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = {"lstm_cell": "lstm", "gru_cell": "gru", "rnn_tanh_cell": "rnn_tanh", "rnn_relu_cell": "rnn_relu"}
_MODULES = (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)
_ZEROS = ("zeros", "new_zeros", "zeros_like")

PACKED = (
    "the model could not be captured: it packs sequences of several lengths (pack_padded_sequence) in a way that "
    "torch.export cannot follow. Lengths must be a tensor (B,) that the model gets or computes, or a list of numbers; "
    "lengths.tolist() and .item() are not known before the input is. Or leave the sequences padded and take the last "
    "valid step of each: y, _ = lstm(x); y.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, y.shape[2])). Padding "
    "behind it then changes nothing and gets no relevance."
)

LENGTHS = (
    " The lengths of packed sequences must stay a tensor: pack_padded_sequence(x, lengths.cpu(), …), not "
    "lengths.tolist(). Sequences cannot be cut inside the model to a length computed from data, as "
    "x[:, :int(lengths.max())] does: cut the input before the model, or leave the cut away, since packed sequences end "
    "at their own lengths."
)

Shape = tuple[int | str | None, ...]
Emit = Callable[[str, Any, tuple[Any, ...], Shape, torch.dtype], Value]


@dataclass(frozen=True)
class Layer:
    """One layer and direction as a function of its input, first states and weights.

    Attributes:
        mode: ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        reverse: whether it reads the sequence from its end.
        with_cell: whether the last memory is a result too: then it stands behind the hidden states, all in one axis.
        ordered: whether the model wants packed sequences with the longest first, which makes no difference here.
    """

    mode: str
    reverse: bool = False
    with_cell: bool = False
    ordered: bool = False

    def __call__(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        weight_hr: Tensor | None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Hidden states ``(B, T, P)``; with ``with_cell`` ``(B, T P + H)``. First states ``(B, P)``, ``(B, H)``.

        Several sequences for each sample, ``(B, N, T, C)``, have one more axis everywhere. With ``lengths (B,)`` only
        the first steps of each are read, of which a layer with ``reverse`` begins at the last; behind them the hidden
        states are 0, and the last memory is that after them.
        """
        if x.dim() == 4:
            first = [None if t is None else t.flatten(0, 1) for t in (h0, c0, lengths)]
            h0, c0, lengths = first
            y = self(x.flatten(0, 1), h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, lengths)
            return y.unflatten(0, x.shape[:2])
        weights = [w for w in (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) if w is not None]
        hidden = weight_hh.shape[1]
        h = x.new_zeros(1, x.shape[0], hidden) if h0 is None else h0.unsqueeze(0)
        states: Any = h
        if self.mode == "lstm":
            size = weight_ih.shape[0] // 4
            states = [h, x.new_zeros(1, x.shape[0], size) if c0 is None else c0.unsqueeze(0)]
        rest = (states, weights, bias_ih is not None, 1, 0.0, False, False)
        read = in_order(x, 1, lengths) if self.reverse else x
        with _differentiable(x, *weights):
            y, last = self._packed(read, lengths, rest) if lengths is not None else self._whole(read, rest)
        y = in_order(y, 1, lengths) if self.reverse else y
        return torch.cat([y.flatten(1), last], 1) if self.with_cell else y

    def _whole(self, x: Tensor, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        found = getattr(torch, self.mode)(x, *rest, True)
        return found[0], found[-1].squeeze(0)

    def _packed(self, x: Tensor, lengths: Tensor, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """The same for the first steps of each sequence, as the model itself computes it."""
        steps = x.shape[1]
        refuse_lengths(lengths, steps)
        if not len(x):
            return self._whole(x, rest)
        ordered, order = lengths.cpu().sort(descending=True)
        order = order.to(x.device)
        back = order.argsort()
        states = rest[0]
        states = [t[:, order] for t in states] if self.mode == "lstm" else states[:, order]
        rows, counts = torch._pack_padded_sequence(x[order], ordered, True)
        found = getattr(torch, self.mode)(rows, counts, states, *rest[1:])
        y, _ = torch._pad_packed_sequence(found[0], counts, True, 0.0, steps)
        return y[back], found[-1].squeeze(0)[back]


def refuse_lengths(lengths: Tensor, steps: int) -> None:
    """Raise ValueError for lengths that sequences of so many steps cannot have."""
    if lengths.numel() and not 1 <= int(lengths.min()) <= int(lengths.max()) <= steps:
        raise ValueError(
            f"lengths must be between 1 and the number of steps, {steps}, got {lengths.tolist()}: sequences without a "
            "step cannot be packed"
        )


def in_order(t: Tensor, axis: int, lengths: Tensor | None) -> Tensor:
    """A sequence from its last step to its first; what is behind ``lengths (B,)`` stays where it is."""
    if lengths is None:
        return t.flip(axis)
    steps, ends = torch.arange(t.shape[axis], device=t.device), lengths.to(t.device).unsqueeze(1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)  # (B, T)
    return t.gather(axis, along(index, t, axis).expand_as(t))


def along(of_steps: Tensor, t: Tensor, axis: int) -> Tensor:
    """``(B, T)`` as it broadcasts to ``t``, whose steps are ``axis``."""
    return of_steps.reshape(len(of_steps), *(1,) * (axis - 1), of_steps.shape[1], *(1,) * (t.dim() - axis - 1))


def _differentiable(*tensors: Tensor) -> contextlib.AbstractContextManager[Any]:
    """cuDNN differentiates recurrent layers in training mode only."""
    wanted = torch.is_grad_enabled() and any(t.is_cuda for t in tensors)
    return torch.backends.cudnn.flags(enabled=False) if wanted else contextlib.nullcontext()


def split(name: str, a: dict[str, Any], shapes: list[Shape], dtype: torch.dtype, with_cell: bool, emit: Emit) -> Any:
    """The results of ``name`` as values that ``emit`` makes; None for a use that has no such form.

    Args:
        a: the arguments by name. shapes: of the results. with_cell: whether somebody reads the last memory.
        emit: makes a node from operation, function, arguments, shape and dtype.

    Raises:
        CaptureError: where layers drop entries at random.
    """
    return _cell(name, a, shapes, dtype, emit) if name in CELLS else _sequence(name, a, shapes, dtype, with_cell, emit)


def _cell(name: str, a: dict[str, Any], shapes: list[Shape], dtype: torch.dtype, emit: Emit) -> Any:
    x, lstm = a["input"], name == "lstm_cell"
    state = a["hx"] if lstm else [a["hx"]]
    weights = [a["w_ih"], a["w_hh"], a.get("b_ih"), a.get("b_hh"), None]
    if not _fits(x, 2, [w for w in weights if w is not None]):
        return None
    h0, c0 = _given(state[0]), _given(state[1]) if lstm else None
    batch, channels = x.shape
    size = shapes[0][1]
    assert isinstance(size, int)
    sequence = emit("unsqueeze", aten.unsqueeze.default, (x, 1), (batch, 1, channels), dtype)
    layer = Layer(CELLS[name], with_cell=lstm)
    shape = (batch, 2 * size) if lstm else (batch, 1, size)
    y = emit(CELLS[name], layer, (sequence, h0, c0, *weights), shape, dtype)
    if not lstm:
        return emit("select", aten.select.int, (y, 1, 0), (batch, size), dtype)
    return tuple(
        emit("slice", aten.slice.Tensor, (y, 1, i * size, (i + 1) * size), (batch, size), dtype) for i in (0, 1)
    )


def _sequence(
    name: str, a: dict[str, Any], shapes: list[Shape], dtype: torch.dtype, with_cell: bool, emit: Emit
) -> Any:
    x, lstm = a["input"], name == "lstm"
    weights, layers, directions = list(a["params"]), a["num_layers"], 2 if a["bidirectional"] else 1
    if not _fits(x, 3, weights):
        return None
    if a["train"] and a["dropout"] and layers > 1:
        raise CaptureError(
            f"{name} drops entries between its layers at random (dropout={a['dropout']}) in training mode: its output "
            "is another one each time. Call model.eval() first"
        )
    states = list(a["hx"]) if lstm else [a["hx"]]
    per_layer = len(weights) // (layers * directions)
    biases, projected = 2 if a["has_biases"] else 0, bool(per_layer - 2 - (2 if a["has_biases"] else 0))
    if not a["batch_first"]:
        time, batch, channels = x.shape
        x = emit("transpose", aten.transpose.int, (x, 0, 1), (_leading(batch), time, channels), dtype)
    batch, time, _ = x.shape
    if not isinstance(time, int) or time < 1:
        return None
    lengths = a.get("lengths")
    first = _States(states, (shapes[1][2], shapes[2][2] if lstm else None), batch, dtype, emit)
    sequence, last_h = x, []
    last_c: list[Value] = []
    for layer in range(layers):
        parts = []
        for direction in range(directions):
            index = layer * directions + direction
            own = weights[index * per_layer : (index + 1) * per_layer]
            given = [*own[:2], *(own[2:4] if biases else (None, None)), own[-1] if projected else None]
            given += [] if lengths is None else [lengths]
            function = Layer(name, direction == 1, with_cell and lstm, bool(a.get("ordered")))
            size = shapes[1][2]
            assert isinstance(size, int)
            y = _states_of(function, (sequence, *first.at(index), *given), time, size, first, last_c)
            last_h.append(_last_hidden(y, size, function, lengths, emit))
            parts.append(y)
        width = sum(int(part.shape[2] or 0) for part in parts)
        sequence = parts[0]
        if len(parts) > 1:
            sequence = emit("cat", aten.cat.default, (parts, 2), (batch, time, width), dtype)
    if not a["batch_first"]:
        sequence = emit("transpose", aten.transpose.int, (sequence, 0, 1), shapes[0], dtype)
    results: list[Any] = [sequence, emit("stack", aten.stack.default, (last_h, 0), shapes[1], dtype)]
    if lstm:  # None where nobody reads it.
        results.append(emit("stack", aten.stack.default, (last_c, 0), shapes[2], dtype) if last_c else None)
    elif lengths is not None:  # The operation has three results whatever the layer.
        results.append(None)
    return tuple(results)


@dataclass
class _States:
    """First states ``(L, B, P)`` and ``(L, B, H)``, of which each layer and direction takes one row."""

    states: list[Any]
    sizes: tuple[Any, Any]
    batch: int | str | None
    dtype: torch.dtype
    emit: Emit

    def at(self, index: int) -> tuple[Any, Any]:
        rows: list[Any] = [None, None]
        for i, state in enumerate(map(_given, self.states)):
            if isinstance(state, Constant):
                rows[i] = Constant(state.name, partial(_row, state, index), state.fault)
            elif state is not None:
                shape = (self.batch, self.sizes[i])
                rows[i] = self.emit("select", aten.select.int, (state, 0, index), shape, self.dtype)
        return rows[0], rows[1]


def _states_of(layer: Layer, args: tuple[Any, ...], time: int, size: int, first: _States, last_c: list[Value]) -> Value:
    """Hidden states ``(B, T, P)``; the last memory goes to ``last_c`` where it is wanted."""
    emit, batch, dtype = first.emit, first.batch, first.dtype
    if not layer.with_cell:
        return emit(layer.mode, layer, args, (batch, time, size), dtype)
    cell = first.sizes[1]
    y = emit(layer.mode, layer, args, (batch, time * size + cell), dtype)
    end = time * size
    last_c.append(emit("slice", aten.slice.Tensor, (y, 1, end, end + cell), (batch, cell), dtype))
    hidden = emit("slice", aten.slice.Tensor, (y, 1, 0, end), (batch, end), dtype)
    return emit("unflatten", aten.unflatten.int, (hidden, 1, [time, size]), (batch, time, size), dtype)


def one_state(name: str, args: Any) -> Value | None:
    """The last state of one layer and direction, ``h[-1]``, out of those that were stacked: it has the batch first."""
    if name != "select" or not isinstance(args[0], Value) or len(args) != 3 or args[1] != 0:
        return None
    made = args[0].producer
    if made is None or made.operation != "stack" or made.args[1:] != (0,) or made.module_type not in _MODULES:
        return None
    state = made.args[0][args[2]]
    return state if isinstance(state, Value) else None


def _last_hidden(y: Value, size: int, layer: Layer, lengths: Any, emit: Emit) -> Value:
    """The hidden states after the last step that the layer reads, ``(B, P)`` of ``(B, T, P)``."""
    assert y.dtype is not None
    batch, time, _ = y.shape
    if layer.reverse or lengths is None:
        at = 0 if layer.reverse else int(str(time)) - 1
        return emit("select", aten.select.int, (y, 1, at), (batch, size), y.dtype)
    index: Any = Constant("last", partial(_at_end, lengths, size))
    if isinstance(lengths, Value):
        index, rest = lengths, torch.int64
        index = emit("sub", aten.sub.Tensor, (index, 1), (batch,), rest)
        index = emit("reshape", aten.reshape.default, (index, [-1, 1, 1]), (batch, 1, 1), rest)
        index = emit("expand", aten.expand.default, (index, [-1, 1, size]), (batch, 1, size), rest)
    last = emit("gather", aten.gather.default, (y, 1, index), (batch, 1, size), y.dtype)
    return emit("select", aten.select.int, (last, 1, 0), (batch, size), y.dtype)


def _at_end(lengths: Constant, size: int) -> Tensor:
    return (lengths.tensor() - 1).reshape(-1, 1, 1).expand(-1, 1, size)


def _row(states: Constant, index: int) -> Tensor:
    return states.tensor()[index]


def _fits(x: Any, rank: int, weights: list[Any]) -> bool:
    return isinstance(x, Value) and len(x.shape) == rank and all(isinstance(w, Constant) for w in weights)


def _given(state: Any) -> Any:
    """A first state, None where it is zero."""
    zero = isinstance(state, Value) and state.producer is not None and state.producer.operation in _ZEROS
    return None if zero else state


def _leading(size: int | str | None) -> int | str | None:
    """The batch size, once it is that of axis 0."""
    return None if isinstance(size, str) and size[:1] == "s" and size[1:].isdigit() else size


def packs_sequences(error: BaseException) -> bool:
    """Whether an error arose where sequences are packed, unpacked, or read by a recurrent layer in that form."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        place, name = frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_name
        if place.endswith("torch/nn/utils/rnn.py") and "pack" in name:
            return True
        if place.endswith("torch/nn/modules/rnn.py") and frame.f_locals.get("batch_sizes") is not None:
            return True
        trace = trace.tb_next
    return False
