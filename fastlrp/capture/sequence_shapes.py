"""What torch.export computes of a recurrent layer while it traces: the shapes of its results, and not each step.

PyTorch takes ``lstm``, ``gru`` and ``rnn`` apart into every step of the sequence to know what shapes come out: seconds
for 100 steps, half a minute for 500. The operation stands in the graph as a whole either way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@contextlib.contextmanager
def steps_left_out() -> Iterator[None]:
    """In this block the calling thread gets shapes without steps wherever a layer's weights fit its input."""
    tracing = threading.get_ident()
    replaced: list[tuple[Any, Any, Callable[..., Any]]] = []
    for name, gates in _GATES.items():
        op = getattr(torch.ops.aten, name).input
        replaced += [(op, key, kernel) for key, kernel in op.py_kernels.items()]
        for key, kernel in op.py_kernels.items():
            op.py_kernels[key] = partial(_results, kernel, tracing, gates)
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, key, kernel in replaced:
            op.py_kernels[key] = kernel
            op._dispatch_cache.clear()


def _results(
    step_by_step: Callable[..., Any], tracing: int, gates: int, x: Tensor, states: Any, weights: Any, biases: bool,
    layers: int, dropout: float, train: bool, both_directions: bool, batch_first: bool,
) -> Any:  # fmt: skip
    """Tensors like the layer's results: hidden states of every step in the layout of ``x``, last states."""
    states = list(states) if gates == _GATES["lstm"] else [states]
    directions = 2 if both_directions else 1
    if threading.get_ident() != tracing or not _fit(x, states, weights, gates * states[-1].shape[-1], biases):
        given = states if gates == _GATES["lstm"] else states[0]
        return step_by_step(x, given, weights, biases, layers, dropout, train, both_directions, batch_first)
    steps_first = x.transpose(0, 1) if batch_first else x
    hidden = x.new_empty((*steps_first.shape[:2], directions * states[0].shape[-1]))
    return hidden.transpose(0, 1) if batch_first else hidden, *(x.new_empty(state.shape) for state in states)


def _fit(x: Tensor, states: list[Tensor], weights: Any, rows: int, biases: bool) -> bool:
    """Whether the first layer's weights are for this input and these states; if not, its own steps raise the error."""
    return (
        isinstance(x, FakeTensor)
        and x.dim() == 3
        and len(weights) >= (4 if biases else 2)
        and all(state.dim() == 3 for state in states)
        and all(t.dtype == x.dtype and t.device == x.device for t in (*states, *weights))
        and tuple(weights[0].shape) == (rows, x.shape[-1])
        and tuple(weights[1].shape) == (rows, states[0].shape[-1])
    )
