"""A captured model in the form that Captum's rules are defined for: by modules, not by operations.

Captum hooks tensors at the edges of modules. What is between modules is the plain gradient, and the tensor that enters
a layer with a rule multiplies all that arrives there, from whomever. Four changes of the graph say the same:

* A module of several operations becomes one node.
* Behind max-pools and modules that only move entries stands a :data:`PART`: ``R y / st(y)``, the part of relevance
  that :class:`EpsilonRule` keeps there.
* Activation modules in a row pass relevance and take their derivative in turns, see :func:`_take_turns`.
* Where functional code reads a tensor that a layer reads, too, it does so through a :data:`TIMES`: ``R x``.

Nothing here depends on rules, so that a graph serves every assignment of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastlrp.capture.canonizers import split_same_padding
from fastlrp.capture.graph import Graph, Node, Value, substitute, with_tensors
from fastlrp.errors import UnsupportedOperationError

PART = "kept_part"
TIMES = "times_input"
_INTO, _AND = "into ", ", "
"""The path of a :data:`TIMES` names the layers that read the tensor."""

_MOVES = ("move", "cat")
_DERIVATIVE = ".derivative"
"""What the path of an activation module ends with where it is treated as functional code is."""


def canonize(graph: Graph, layers: Mapping[str, nn.Module], hooked: Sequence[type[nn.Module]]) -> Graph:
    """All changes, in order.

    Args:
        layers: the model's layers by path. hooked: types of activations that Captum has a hook for.

    Raises:
        UnsupportedOperationError: for a module of several operations that cannot be taken as one.
    """
    known = set(layers)
    for nodes in _calls(graph, known):
        working = [node for node in nodes if node.kind not in _MOVES]
        if len(working) > 1:
            _fuse(graph, nodes)
        elif not working or working[0].kind == "max_pool":
            _insert_part(graph, nodes[-1])
    _take_turns(graph, layers, hooked)
    _insert_times(graph, known)
    split_same_padding(graph)
    graph.drop_dead()
    return graph


def _calls(graph: Graph, known: set[str]) -> list[list[Node]]:
    """The operations of each call of each layer, in order. Sizes of tensors are not operations."""
    ends = {value for path, value in graph.modules.items() if path.split("@")[0] in known}
    calls: list[list[Node]] = []
    last: Node | None = None
    for node in graph.nodes:
        if node.path not in known or not node.output.is_tensor:
            continue
        if last is None or last.path != node.path or last.output in ends:
            calls.append([])
        calls[-1].append(node)
        last = node
    return calls


def _outside(nodes: list[Node]) -> list[Value]:
    """What a run of nodes reads from elsewhere, in order."""
    own = {node.output for node in nodes}
    return list(dict.fromkeys(v for node in nodes for v in node.inputs if v not in own))


def _fuse(graph: Graph, nodes: list[Node]) -> None:
    """One node in the place of a module's operations."""
    last, own = nodes[-1], {node.output for node in nodes}
    where = f"module {last.path!r} of type {getattr(last.module_type, '__name__', '?')}"
    inputs = [v for v in _outside(nodes) if v.is_tensor]
    batch = [v for v in _outside(nodes) if not v.is_tensor]
    if any(not v.is_differentiable for v in inputs) or any(not _is_batch_size(v) for v in batch):
        raise UnsupportedOperationError(f"{where} reads more than float tensors, and cannot be taken as one layer")
    inner = own - {last.output}
    read = {v for node in graph.nodes if node not in nodes for v in node.inputs} | set(graph.outputs)
    if inner & read:
        raise UnsupportedOperationError(f"{where} has more than one output, and cannot be taken as one layer")
    call = _composed(nodes, inputs, batch)
    fused = Node("unknown", "module", call, tuple(inputs), {}, tuple(inputs), last.output, last.path, last.module_type)
    last.output.producer = fused
    gone = set(nodes[:-1])
    graph.nodes = [fused if node is last else node for node in graph.nodes if node not in gone]
    graph.modules = {path: v for path, v in graph.modules.items() if v not in inner}


def _is_batch_size(value: Value) -> bool:
    node = value.producer
    return node is not None and node.operation == "sym_size" and node.args[1] == 0 and node.args[0].shape[0] is None


def _composed(nodes: list[Node], inputs: list[Value], batch: list[Value]) -> Callable[..., Tensor]:
    """The forward function of a run of nodes, of its input tensors alone."""

    def forward(*tensors: Tensor) -> Tensor:
        known: dict[Value, Any] = dict(zip(inputs, tensors, strict=True))
        known.update((value, tensors[0].shape[0]) for value in batch)
        for node in nodes:
            args, kwargs = substitute(node.args, known), substitute(node.kwargs, known)
            known[node.output] = node.call(*with_tensors(args), **with_tensors(kwargs))
        result: Tensor = known[nodes[-1].output]
        return result

    return forward


def _insert_part(graph: Graph, after: Node) -> None:
    """A sum of one summand: a proportional rule on it keeps ``y / st(y)``."""
    y = after.output
    if not y.is_differentiable:
        return
    kept = graph.new_value(f"{y.name}_{PART}", y.shape, y.dtype)
    for node in graph.nodes:
        _reread(node, y, kept)
    graph.outputs = [kept if v is y else v for v in graph.outputs]
    graph.output = kept if graph.output is y else graph.output
    graph.modules = {path: kept if v is y else v for path, v in graph.modules.items()}
    kept.producer = Node(
        "add", PART, _same, (y,), {}, (y,), kept, after.path, after.module_type, {"alpha": 1, "terms": ((y, 1),)}
    )
    graph.nodes.insert(graph.nodes.index(after) + 1, kept.producer)


def _take_turns(graph: Graph, layers: Mapping[str, nn.Module], hooked: Sequence[type[nn.Module]]) -> None:
    """In a row of activation modules every other one is functional code.

    Captum's hook lets an activation's input have the gradient of its output as it is before other hooks on that tensor.
    Where another activation reads it, that is the gradient behind the other one's own derivative. A module that
    reads its own output sees its earlier call's gradient, so that it takes its derivative in each call but the first.
    """
    ends: dict[Value, list[str]] = {}
    for name, value in graph.modules.items():
        path = name.split("@")[0]
        if path in layers:
            ends.setdefault(value, []).append(path)
    latest: dict[Value, tuple[nn.Module, bool]] = {}
    """The activation that a tensor comes from, and whether relevance passes it."""

    def passes(module: nn.Module, x: Value | None) -> bool:
        above = None if x is None else latest.get(x)
        return above is None or not (above[1] or above[0] is module)

    def follow(value: Value, paths: list[str]) -> None:
        for path in paths:  # Dropouts that compute nothing, and other layers.
            if type(layers[path]) in hooked:
                latest[value] = layers[path], passes(layers[path], value)
            else:
                latest.pop(value, None)

    for value in graph.inputs:
        follow(value, ends.get(value, []))
    for node in graph.nodes:
        value, further = node.output, ends.get(node.output, []).copy()
        if node.path in layers and type(layers[node.path]) in hooked and len(node.inputs) == 1:
            latest[value] = layers[node.path], passes(layers[node.path], node.inputs[0])
            if node.path in further:
                further.remove(node.path)
            if not latest[value][1]:
                node.path += _DERIVATIVE
        follow(value, further)


def _insert_times(graph: Graph, known: set[str]) -> None:
    for value, readers in graph.consumers().items():
        layers = list(dict.fromkeys(node.path for node in readers if node.path in known and node.operation != PART))
        others = [node for node in readers if node.path not in known and node.output.is_differentiable]
        if not (layers and others and value.is_differentiable):
            continue
        times = graph.new_value(f"{value.name}_{TIMES}", value.shape, value.dtype)
        times.producer = Node("unknown", TIMES, _same, (value,), {}, (value,), times, _INTO + _AND.join(layers))
        for node in others:
            _reread(node, value, times)
        at = 0 if value.producer is None else graph.nodes.index(value.producer) + 1
        graph.nodes.insert(at, times.producer)


def layer_of(node: Node) -> str:
    """The path of the module that a node stands in, treated as functional code or not."""
    return node.path.removesuffix(_DERIVATIVE)


def layers_behind(path: str) -> list[str]:
    """The layers that the path of a :data:`TIMES` names."""
    return path.removeprefix(_INTO).split(_AND)


def _reread(node: Node, old: Value, new: Value) -> None:
    """Let one node read another value."""
    if old in node.inputs:
        table = {old: new}
        node.inputs = tuple(table.get(v, v) for v in node.inputs)
        node.args, node.kwargs = substitute(node.args, table), substitute(node.kwargs, table)
        node.attributes = substitute(node.attributes, table)


def _same(x: Tensor) -> Tensor:
    return x


# Tensors at the edges of modules


def outputs_of(graph: Graph, path: str) -> list[Value]:
    """The output of each call of a module, in order."""
    return [value for name, value in graph.modules.items() if name.split("@")[0] == path]


def inputs_of(graph: Graph, path: str) -> list[Value]:
    """The float tensors that a module reads from outside, in order."""
    nodes = [node for node in graph.nodes if node.operation != TIMES and _stands_in(node.path, path)]
    found = [before(value) for value in _outside(nodes) if value.is_differentiable]
    return list(dict.fromkeys(found))


def _stands_in(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def before(value: Value) -> Value:
    """The tensor itself, not what stands between it and functional code."""
    while value.producer is not None and value.producer.operation == TIMES:
        value = value.producer.inputs[0]
    return value
