"""What comes out of a recurrent layer while torch.export traces a model: shapes, and not the steps that lead there.

PyTorch takes ``lstm``, ``gru`` and ``rnn`` apart into every step of the sequence to know what shapes come out: seconds
for 100 steps, half a minute for 500. The operation stands in the graph as a whole either way.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def results(
    gates: int, x: Tensor, states: Any, weights: Any, biases: bool, layers: int, dropout: float, train: bool,
    both_directions: bool, batch_first: bool,
) -> tuple[Tensor, ...] | None:  # fmt: skip
    """Tensors like the layer's results: hidden states of every step in the layout of ``x``, last states.

    None unless the first layer's weights are for this input and these states.
    """
    states = list(states) if gates == GATES["lstm"] else [states]
    if not _fit(x, states, weights, gates * states[-1].shape[-1], biases):
        return None
    steps_first = x.transpose(0, 1) if batch_first else x
    hidden = x.new_empty((*steps_first.shape[:2], (2 if both_directions else 1) * states[0].shape[-1]))
    return hidden.transpose(0, 1) if batch_first else hidden, *(x.new_empty(state.shape) for state in states)


def _fit(x: Tensor, states: list[Tensor], weights: Any, rows: int, biases: bool) -> bool:
    return (
        x.dim() == 3
        and len(weights) >= (4 if biases else 2)
        and all(state.dim() == 3 for state in states)
        and all(t.dtype == x.dtype and t.device == x.device for t in (*states, *weights))
        and tuple(weights[0].shape) == (rows, x.shape[-1])
        and tuple(weights[1].shape) == (rows, states[0].shape[-1])
    )
