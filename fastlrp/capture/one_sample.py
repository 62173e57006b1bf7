"""Models without a batch axis: everything that they are given is one sample, such as a graph with its nodes as axis 0.

The model is traced for the sizes of its input, and every value gets a batch axis of size 1 in front, by the same forms
that :mod:`fastlrp.capture.lift.graphs` has for a batch axis that travels. Tensors that say how the sample is built
(the edges of a graph) are fixed: the graph holds for them alone, see :mod:`fastlrp.capture.trace.fixed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture import structure as structures
from fastlrp.capture.carrying import mark_ids
from fastlrp.capture.chosen import Output
from fastlrp.capture.export import Captured, refuse_unreadable, tracing
from fastlrp.capture.failure import failure
from fastlrp.capture.graph import Graph, Node, Value, substitute
from fastlrp.capture.lift.check import as_it_is
from fastlrp.capture.lift.graphs import twin_of
from fastlrp.capture.lift.lifter import Lifter, UnliftableError
from fastlrp.capture.lift.probe import TOLERANCE, close
from fastlrp.capture.trace.attributes import unchanged
from fastlrp.capture.trace.fixed import Fixed
from fastlrp.capture.trace.traced import traced
from fastlrp.capture.translate.program import Translator
from fastlrp.capture.wrapper import Wrapper, choose_output
from fastlrp.errors import CaptureError, UnsupportedOperationError


class _OneSample(Wrapper):
    """Fills fixed tensors in where they stood among the arguments."""

    def __init__(self, model: nn.Module, output: Output, fixed: Mapping[int | str, Tensor]) -> None:
        super().__init__(model, output)
        # In a list: they are no state of the module, which torch.export would take for constants of the model.
        self._held = [dict(fixed)]

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        with Fixed(self._held[0].values()):
            return self.plain(args, kwargs)

    def plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """What the model gives, computed as it is."""
        held = self._held[0]
        filled = tuple(held.get(i, item) for i, item in enumerate(args))
        return super().forward(filled, {name: held.get(name, item) for name, item in kwargs.items()})


def capture_one(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    fixed: Sequence[int | str],
    output: Output,
    after: Callable[[], None] | None = None,
) -> Captured:
    """Trace ``model(*args, **kwargs)``, whose tensors have no batch axis, and give its graph one of size 1.

    Args:
        fixed: positions and names of the arguments that the graph is to hold for alone.
        output, after: see :func:`fastlrp.capture.export.capture`.

    Raises:
        CaptureError: if the model cannot be traced; an UnsupportedOperationError for an operation that has no form
            with a batch axis.
        ValueError: if ``output`` does not name one of the model's outputs.
    """
    refuse_unreadable(model)
    items: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    kept = {key: _copy(value) for key, value in items if key in fixed}
    wrapper = _OneSample(model, output, kept)
    training = model.training
    wrapper.training, wrapper.note.after = training, after
    args = tuple(None if i in kept else item for i, item in enumerate(args))
    kwargs = {name: None if name in kept else item for name, item in kwargs.items()}
    with tracing(wrapper):
        try:
            program = traced(wrapper, (args, kwargs))
        except Exception as error:
            chooser = wrapper.chosen_output
            mine = None if chooser is None else chooser.explained()
            if chooser is not None and mine is not None:
                raise mine from chooser.trouble
            raise failure(wrapper, args, kwargs, error) from error
    graph = Translator(program, model, False, 0).translate()
    graph.output = graph.outputs[-1 if callable(output) else choose_output(wrapper.note.structure, output)]
    examples = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with torch.no_grad():
        with unchanged(wrapper):
            own = wrapper.plain(args, kwargs)
        _lift(graph, examples, own)
    return Captured(graph, structures.without_batch(wrapper.note.structure), None)


def _copy(tensor: Tensor) -> Tensor:
    """The same numbers in memory of its own; of sparse layouts the one that torch.export knows."""
    return tensor.detach().clone() if tensor.layout == torch.strided else tensor.detach().to_sparse_coo().coalesce()


def _lift(graph: Graph, examples: Sequence[Tensor], own: Sequence[Tensor]) -> None:
    """A batch axis of size 1 in front of every value of the graph, in place; compared with what the model gives."""
    if any(not isinstance(n, int) for v in _values(graph) for n in v.shape):
        raise CaptureError(
            "the size of a tensor depends on the entries of an input that is no fixed part of the sample: "
            "integers and truth values are fixed unless ids= names them"
        )
    before = Graph(graph.nodes, graph.inputs, graph.outputs, graph.output, graph.modules, graph.values)
    given, graph.inputs = graph.inputs, [graph.new_value(v.name, (None, *v.shape), v.dtype) for v in graph.inputs]
    shapes: dict[Value, tuple[int, ...]] = {v: tuple(int(n or 0) for n in v.shape) for v in _values(before)}
    numbers: dict[Value, Any] = {}
    lifter = Lifter(graph, shapes, numbers, examples[0].device)
    lifter.twins.update(zip(given, graph.inputs, strict=True))
    for node in before.nodes:
        try:
            _lift_node(lifter, node, numbers)
        except UnliftableError as error:
            raise UnsupportedOperationError(
                f"{node} has no form with a batch axis in front, which one sample is given here: {error}"
            ) from error
    if any(v not in lifter.twins for v in graph.outputs):
        raise CaptureError(
            "an output of the model does not depend on its explained inputs: there is nothing to explain"
        )
    graph.nodes = lifter.made
    graph.outputs = [lifter.twins[v] for v in graph.outputs]
    graph.output = lifter.twins[graph.output]
    graph.modules = {path: lifter.twins[v] for path, v in graph.modules.items() if v in lifter.twins}
    graph.drop_dead()
    mark_ids(graph)
    found = _run(graph, [x.unsqueeze(0) for x in examples])
    for value, a, b in zip(graph.outputs, found, own, strict=True):
        if a.shape[1:] != b.shape or not close(a[0], b, TOLERANCE.get(b.dtype, 0.0)):
            raise UnsupportedOperationError(
                f"the model could not be written with a batch axis in front: its output '{value.name}' differs"
            )


def _lift_node(lifter: Lifter, node: Node, numbers: dict[Value, Any]) -> None:
    y, lifter.node = node.output, node
    if not y.is_tensor:
        if all(v in numbers for v in node.inputs):
            numbers[y] = node.call(*substitute(node.args, numbers), **substitute(node.kwargs, numbers))
    elif y.depends:
        lifter.twins[y] = twin_of(lifter, node)
    else:
        lifter.evaluate(node)


def _values(graph: Graph) -> list[Value]:
    return [v for v in (*graph.inputs, *(node.output for node in graph.nodes)) if v.is_tensor]


def _run(graph: Graph, samples: Sequence[Tensor]) -> list[Tensor]:
    state: dict[Value, Any] = dict(zip(graph.inputs, samples, strict=True))
    last = {v: node for node in graph.nodes for v in node.inputs if v not in graph.outputs}
    for node in graph.nodes:
        state[node.output] = as_it_is(node, {v: state[v] for v in node.inputs})
        for value in node.inputs:
            if last.get(value) is node:
                state.pop(value, None)
    return [state[v] for v in graph.outputs]
