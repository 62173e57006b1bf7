"""One recurrent layer and direction, as a node of the graph has it: its sizes, weights, lengths and states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.capture.trace.recurrent import Layer, in_order
from fastlrp.kinds.recurrent_coefficients import States, states_of
from fastlrp.plan.narrow import wide


@dataclass(frozen=True)
class RecurrentLayer:
    """One layer and direction with its sizes: ``T``, ``P`` of hidden states, ``H`` of the memory.

    Where each sample has several sequences, ``(B, N, T, C)``, they are computed as ``(B N, T, C)``.
    """

    node: Node

    @property
    def layer(self) -> Layer:
        """What the node calls: mode, direction, and whether the memory is a result too."""
        call = self.node.call
        assert isinstance(call, Layer)
        return call

    @property
    def operands(self) -> list[Value | Constant | None]:
        """Input, first hidden state, first memory."""
        return list(self.node.args[:3])

    @property
    def input(self) -> Value:
        """The sequences, ``(B, T, C)`` or ``(B, N, T, C)``."""
        x = self.node.args[0]
        assert isinstance(x, Value)
        return x

    @property
    def steps(self) -> int:
        """T, how many steps the sequences have."""
        return self.input.sizes[-2]

    @property
    def several(self) -> int | None:
        """Sequences of each sample, where that is an axis."""
        return self.input.sizes[0] if len(self.input.sizes) == 3 else None

    def folded(self, t: Tensor) -> Tensor:
        """``(B, N, …)`` to ``(B N, …)``."""
        return t if self.several is None else t.flatten(0, 1)

    def unfolded(self, t: Tensor) -> Tensor:
        """``(B N, …)`` to ``(B, N, …)``."""
        return t if self.several is None else t.unflatten(0, (t.shape[0] // self.several, self.several))

    def folded_targets(self, t: Tensor) -> Tensor:
        """``(B, K, N, …)`` to ``(B N, K, …)``."""
        return t if self.several is None else t.transpose(1, 2).flatten(0, 1)

    def unfolded_targets(self, t: Tensor) -> Tensor:
        """``(B N, K, …)`` to ``(B, K, N, …)``."""
        return t if self.several is None else self.unfolded(t).transpose(1, 2)

    @property
    def hidden(self) -> int:
        """P, the size of a hidden state, which a projection makes smaller than the memory."""
        return int(self.weights()[1].shape[1])

    @property
    def size(self) -> int:
        """H, the size of the memory."""
        return int(self.weights()[0].shape[0]) // self.count

    @property
    def count(self) -> int:
        """How many blocks of rows a weight has: one for each gate, and one for the candidate."""
        return {"lstm": 4, "gru": 3}.get(self.layer.mode, 1)

    @property
    def projected(self) -> bool:
        """Whether hidden states are projected."""
        return self.node.args[7] is not None

    def weights(self) -> tuple[Any, ...]:
        """Of input and hidden states, their biases, and the projection's, as they are now."""
        return tuple(None if w is None else w.tensor() for w in self.node.args[3:8])

    @property
    def given_lengths(self) -> Value | Constant | None:
        """Of sequences that the model packs, ``(B)``."""
        return self.node.args[8] if len(self.node.args) > 8 else None

    def lengths(self, *read: Tensor) -> Tensor | None:
        """The lengths, ``(B N)``, which are ``read`` where they are an activation."""
        given = self.given_lengths
        if given is None:
            return None
        return self.folded(read[0] if isinstance(given, Value) else given.tensor())

    def lengths_among(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """The lengths, from the activations that the node reads."""
        given = self.given_lengths
        return self.lengths(*([inputs[self.node.inputs.index(given)]] if isinstance(given, Value) else []))

    def chosen(self, weight: Tensor, gates: str) -> Tensor:
        """The rows of a weight whose sums get relevance: those of the candidate alone if gates get nothing."""
        if gates == "uniform" or self.count == 1:
            return weight
        return weight.chunk(self.count, 0)[2]

    def parts(self, y: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        """Hidden states and the last memory, which stand side by side where both are results."""
        if not self.layer.with_cell:
            return y, None
        end = self.steps * self.hidden
        return y.narrow(axis, 0, end).unflatten(axis, (self.steps, self.hidden)), y.narrow(axis, end, self.size)

    def ordered(self, t: Tensor, axis: int, lengths: Tensor | None) -> Tensor:
        """As the layer reads the sequence, and back."""
        return in_order(t, axis, lengths) if self.layer.reverse else t

    def states(self, y: Tensor, *inputs: Tensor) -> States:
        """From the output and the activations among the operands."""
        table = dict(zip(self.node.inputs, inputs, strict=True))
        x, h0, c0 = (self.folded(wide(table[v])) if isinstance(v, Value) else _tensor(v) for v in self.operands)
        h, _ = self.parts(self.folded(wide(y)), 1)
        assert x is not None
        lengths, weights = self.lengths_among(inputs), tuple(map(wide, self.weights()))
        ordered_x, ordered_h = self.ordered(x, 1, lengths), self.ordered(h, 1, lengths)
        return states_of(self.layer.mode, ordered_x, ordered_h, h0, c0, weights, lengths)


def _tensor(operand: Any) -> Any:
    return wide(operand.tensor() if isinstance(operand, Constant) else operand)
