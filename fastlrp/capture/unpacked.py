"""Models that cut unpacked sequences to the longest of their batch, which a captured graph cannot.

``pad_packed_sequence`` without ``total_length`` gives as many steps as the longest sequence has; the graph gives as
many as the input. Steps in between are padding, which makes no difference to sums, last valid steps and masked means,
but does to a mean or maximum over all steps. Where a batch has such steps, the model's own output decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Graph, Node, Value
from fastlrp.capture.packed import VALID
from fastlrp.capture.probe import ancestors, called

Run = Callable[[tuple[Any, ...], dict[str, Any]], Sequence[Tensor]]


class Unpacked:
    """What a graph unpacks.

    Args:
        run: the model itself, from arguments to all its outputs as the graph has them.
    """

    def __init__(self, graph: Graph, run: Run) -> None:
        self._graph, self._run = graph, run
        self._nodes = [n for n in graph.nodes if n.operation == VALID and n.args[2]]

    def check(self, tensors: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], found: Tensor) -> None:
        """Raise ValueError if the model cuts these sequences and its output is not ``found``, that of the graph."""
        for node in self._nodes:
            lengths, steps = self._lengths(node, tensors), int(node.args[1])
            longest = int(lengths.max()) if lengths.numel() else steps
            if longest < steps:
                self._compare((longest, steps), tensors, args, kwargs, found)
                return

    def _lengths(self, node: Node, tensors: Sequence[Tensor]) -> Tensor:
        lengths = node.args[0]
        if isinstance(lengths, Constant):
            return lengths.tensor()
        wanted = ancestors(self._graph, lengths)
        state: dict[Value, Any] = dict(zip(self._graph.inputs, tensors, strict=True))
        for made in self._graph.nodes:
            if made.output in wanted:
                state[made.output] = called(made, state, lambda t: t)
        found: Tensor = state[lengths]
        return found

    def _compare(
        self, sizes: tuple[int, int], tensors: Sequence[Tensor], args: Any, kwargs: Any, found: Tensor
    ) -> None:
        longest, steps = sizes
        reason = (
            f"the longest sequence of this batch has {longest} steps, the input {steps}. The model cuts the rest off "
            "(pad_packed_sequence without total_length)"
        )
        ways = f"Pass total_length=x.shape[1] to pad_packed_sequence, or cut the input to the longest, x[:, :{longest}]"
        given = iter(tensors)  # The arguments may be those of more samples.
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, lambda _: next(given), (args, kwargs))
        try:
            with torch.no_grad():
                own = self._run(args, kwargs)[self._graph.outputs.index(self._graph.output)]
        except Exception as error:
            raise ValueError(f"{reason}, and fails on it: {type(error).__name__}: {error}. {ways}") from error
        same = own.shape == found.shape
        tolerance = torch.finfo(found.dtype).eps ** 0.5
        if not same or bool((own - found).abs().max() > tolerance * own.abs().max()):
            raise ValueError(f"{reason}, and its output depends on how many there are. {ways}")
