"""Models that pack sequences: whether the graph, which keeps them padded, gives what the model itself gives.

``pad_packed_sequence`` without ``total_length`` gives as many steps as the longest sequence has; the graph gives as
many as the input. Steps in between are padding, which makes no difference to sums, last valid steps and masked means,
but does to a mean or maximum over all steps. Where a batch has such steps, the model's own output decides. And it is
compared once for each graph, on the batch that this was captured with: no size of a packed sequence may have been taken
for that of the padded one. A graph for one batch size may hold such a size in a branch that other lengths do not take,
and is compared each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Graph, Value
from fastlrp.capture.lift.probe import ancestors, called
from fastlrp.capture.trace.packed import MAY
from fastlrp.capture.trace.padded import VALID
from fastlrp.capture.trace.recurrent import Layer, refuse_lengths
from fastlrp.errors import CaptureError

Run = Callable[[tuple[Any, ...], dict[str, Any]], Sequence[Tensor]]
Lengths = Value | Constant


class Unpacked:
    """What a graph unpacks.

    Args:
        run: the model itself, from arguments to all its outputs as the graph has them.
        always: whether to compare each batch with the model itself.
    """

    def __init__(self, graph: Graph, run: Run, always: bool) -> None:
        self._graph, self._run, self._always = graph, run, always
        valid = [n for n in graph.nodes if n.operation == VALID]
        self._valid: list[tuple[Lengths, int, bool]] = [(n.args[0], int(n.args[1]), bool(n.args[2])) for n in valid]
        ordered: list[Lengths] = [n.args[0] for n in valid if n.args[3]]
        ordered += [n.args[8] for n in graph.nodes if isinstance(n.call, Layer) and n.call.ordered]
        self._ordered = list({id(lengths): lengths for lengths in ordered}.values())

    def check(self, tensors: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], found: Tensor) -> None:
        """Raise if the model refuses these lengths, or if its output is not ``found``, that of the graph.

        Raises:
            ValueError: for lengths that the model refuses, and for an output that depends on the longest.
            CaptureError: for another output of the model otherwise.
        """
        self._check(tensors, args, kwargs, found, False)
        if self._always:
            self.compare(tensors, args, kwargs)

    def compare(self, tensors: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The same, of the graph's output in the model's own precision; the model itself is run in any case."""
        state: dict[Value, Any] = dict(zip(self._graph.inputs, tensors, strict=True))
        for node in self._graph.nodes:
            state[node.output] = called(node, state, lambda t: t)
        self._check(tensors, args, kwargs, state[self._graph.output], True)

    def _check(self, tensors: Sequence[Tensor], args: Any, kwargs: Any, found: Tensor, compared: bool) -> None:
        self._refuse_unordered(tensors)
        for of_node, steps, cut in self._valid:
            lengths = self._lengths(of_node, tensors)
            refuse_lengths(lengths, steps)
            longest = int(lengths.max()) if lengths.numel() else steps
            if cut and longest < steps:
                self._compare_cut((longest, steps), tensors, args, kwargs, found)
                return
        if compared and len(found):
            try:
                own = self._own(tensors, args, kwargs)
            except Exception as error:
                raise CaptureError(
                    f"the model could not be captured: it fails on this input itself: {type(error).__name__}: {error}"
                ) from error
            if differ(own, found):
                raise CaptureError(
                    "the model could not be captured: it packs sequences, and gives another output on this batch than "
                    "the graph in which they stay padded. It reads something of a packed sequence that depends on all "
                    f"lengths, as the number of its rows does. {MAY}"
                )

    def _refuse_unordered(self, tensors: Sequence[Tensor]) -> None:
        for of_node in self._ordered:
            lengths = self._lengths(of_node, tensors).flatten()
            if bool((lengths[1:] > lengths[:-1]).any()):
                raise ValueError(
                    f"lengths must be in decreasing order, got {lengths.tolist()}: the model packs its sequences with "
                    "enforce_sorted=True, the default. Sort the samples before the model, or pass enforce_sorted=False"
                )

    def _lengths(self, lengths: Lengths, tensors: Sequence[Tensor]) -> Tensor:
        if isinstance(lengths, Constant):
            return lengths.tensor()
        wanted = ancestors(self._graph, lengths)
        state: dict[Value, Any] = dict(zip(self._graph.inputs, tensors, strict=True))
        for made in self._graph.nodes:
            if made.output in wanted:
                state[made.output] = called(made, state, lambda t: t)
        found: Tensor = state[lengths]
        return found

    def _own(self, tensors: Sequence[Tensor], args: Any, kwargs: Any) -> Tensor:
        given = iter(tensors)  # The arguments may be those of more samples.
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, lambda _: next(given), (args, kwargs))
        with torch.no_grad():
            return self._run(args, kwargs)[self._graph.outputs.index(self._graph.output)]

    def _compare_cut(
        self, sizes: tuple[int, int], tensors: Sequence[Tensor], args: Any, kwargs: Any, found: Tensor
    ) -> None:
        longest, steps = sizes
        reason = (
            f"the longest sequence of this batch has {longest} steps, the input {steps}. The model cuts the rest off "
            "(pad_packed_sequence without total_length)"
        )
        ways = f"Pass total_length=x.shape[1] to pad_packed_sequence, or cut the input to the longest, x[:, :{longest}]"
        try:
            own = self._own(tensors, args, kwargs)
        except Exception as error:
            raise ValueError(f"{reason}, and fails on it: {type(error).__name__}: {error}. {ways}") from error
        if differ(own, found):
            raise ValueError(f"{reason}, and its output depends on how many there are. {ways}")


def differ(own: Tensor, found: Tensor) -> bool:
    if own.shape != found.shape:
        return True
    largest = own[own.isfinite()].abs().max() if own.isfinite().any() else 0.0
    tolerance = torch.finfo(found.dtype).eps ** 0.5 * float(largest)
    return not torch.allclose(found, own, rtol=0.0, atol=tolerance, equal_nan=True)
