"""``torch.vmap`` over the samples of a batch: each operation of the mapped function in its form for many samples.

A mapped function is written for one sample; so are the lifted forms of :mod:`fastlrp.capture.lift.moves` and its
neighbours, which give what an operation does for each sample behind a batch axis. What is mapped over another axis, or
by a function that maps again, stays one operation without a rule (:mod:`fastlrp.capture.translate.mapped`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from fastlrp.capture.graph import Constant, Graph, Node, Value
from fastlrp.capture.lift.graphs import twin_of
from fastlrp.capture.lift.lifter import Lifter, UnliftableError
from fastlrp.capture.translate.calls import operation
from fastlrp.capture.translate.emit import Call, Emitter
from fastlrp.capture.translate.mapped import CLOSES, JOINS, OPENS, SPLITS, Mapped


def write_out_mapped(graph: Graph) -> None:
    """Replace each mapped function that carries relevance, where it maps over samples alone."""
    for node in list(graph.nodes):
        if not isinstance(node.call, Mapped) or not node.output.is_differentiable:
            continue
        values = graph.values
        try:
            with torch.no_grad():
                writer = _Writer(graph, node)
                made, result = writer.write()
        except Exception:  # Whatever stands inside: the operation is refused by its name, or takes a user's rule.
            graph.values = values
            continue
        at = graph.nodes.index(node)
        graph.nodes[at : at + 1] = made
        graph.written += writer.inner.written
        graph.replace(node.output, result)


class _Writer:
    """Writes one mapped function out: its operations for many samples, as nodes of the graph around it."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node
        inner = Graph([node], graph.inputs, [], node.output, {}, graph.values)
        self.inner, self.emitter = inner, Emitter(inner, None)
        self.shapes: dict[Value, tuple[int, ...]] = {}
        self.lifter = Lifter(inner, self.shapes, {}, graph_device(graph))
        self.env: dict[torch.fx.Node, Any] = {}

    def write(self) -> tuple[list[Node], Value]:
        """The nodes, and the value that stands for the function's result."""
        assert isinstance(self.node.call, Mapped)
        run = self.node.call.run
        given = iter(self.node.args)
        for fx in run.graph.nodes:
            if fx.op == "placeholder":
                self.env[fx] = next(given)
            elif fx.op == "get_attr":
                self.env[fx] = Constant(str(fx.target), getattr(run, str(fx.target)))
            elif fx.op == "call_function":
                self._call(fx)
            else:
                result = self.env[fx.args[0]]
        self.graph.values = self.inner.values
        return self.lifter.made, result

    def _call(self, fx: torch.fx.Node) -> None:
        args = tree_map(lambda leaf: self.env[leaf] if isinstance(leaf, torch.fx.Node) else leaf, fx.args)
        if fx.target in (OPENS, CLOSES):
            self.env[fx] = None
        elif fx.target is SPLITS:
            self.env[fx] = self._of_one_sample(fx, args[0], args[1])
        elif fx.target is JOINS:
            if args[-1] != 0:
                raise UnliftableError("puts the batch elsewhere")
            self.env[fx] = self.lifter.twins[args[0]]
        else:
            self.env[fx] = self._emitted(fx, args)

    def _of_one_sample(self, fx: torch.fx.Node, x: Any, axis: int) -> Value:
        if not isinstance(x, Value) or axis != 0 or not x.has_batch_first or not x.is_tensor:
            raise UnliftableError("maps over another axis than the batch")
        one = self.inner.new_value(fx.name, x.sizes, x.dtype)
        one.depends, one.carries = x.depends, x.carries
        self.shapes[one], self.lifter.twins[one] = x.sizes, x
        return one

    def _emitted(self, fx: torch.fx.Node, args: Any) -> Any:
        name, call, in_place = operation(fx.target)
        kwargs = tree_map(lambda leaf: self.env[leaf] if isinstance(leaf, torch.fx.Node) else leaf, fx.kwargs)
        if in_place:
            raise UnliftableError("writes in place")
        before = len(self.inner.nodes)
        node = self.node
        made = self.emitter.emit(Call(fx, name, call, args, kwargs, fx.target, node.path, node.module_type))
        for own in self.inner.nodes[before:]:
            y = own.output
            if not y.is_tensor:
                continue  # Several results, of which parts are taken.
            if not all(isinstance(n, int) for n in y.shape):
                raise UnliftableError("has a size of the batch")
            self.shapes[y] = tuple(int(n) for n in y.shape if isinstance(n, int))
            self.lifter.node = own
            if y.depends:
                self.lifter.twins[y] = twin_of(self.lifter, own)
            else:
                self.lifter.evaluate(own)
        return made


def graph_device(graph: Graph) -> torch.device:
    """Where the model's constants are, as far as is seen; forms make small tensors there."""
    found = (leaf for node in graph.nodes for leaf in node.args if isinstance(leaf, Constant))
    first = next(found, None)
    return torch.device("cpu") if first is None else first.tensor().device
