"""Parts of a graph that relevance is asked for: edges, and walks through the layers of a graph network."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.canonizers import canonize
from fastlrp.capture.graph import Constant, Graph, Node, Value
from fastlrp.capture.lift.lifter import rows_reshaped
from fastlrp.eager import eager
from fastlrp.explainer import Explainer
from fastlrp.plan.paths.choose import Chooser
from fastlrp.plan.steps import BLOCK, Emission, Steps
from fastlrp.run import runner
from fastlrp.run.descent import Descent
from fastlrp.run.plans import Plans
from fastlrp.run.record import ForwardRecord
from fastlrp.targets.initial import Initial

_AGGREGATES = ("aggregate", "aggregate_max")
_ROWS = 256
"""Walks that go down at once."""


@dataclass(frozen=True)
class Edges:
    """Relevance of the messages of one layer.

    Attributes:
        source, target: nodes that each edge leads from and to, ``(E,)``; self-loops that the layer adds are edges too.
        relevance: ``(1, K, E)``, of the message summed over its channels.
    """

    source: Tensor
    target: Tensor
    relevance: Tensor


def edge_relevance(
    record: ForwardRecord, targets: Any, at: Any = None, initial: Initial = "output"
) -> dict[str, Edges]:
    """Relevance of each edge in each layer of message passing, from the first layer to the last.

    The relevance of an edge is that of the message which the layer's target node adds up or takes the largest of.

    Args:
        record: of a :class:`fastlrp.GraphExplainer`. targets, at, initial: see :meth:`ForwardRecord.relevance`.

    Returns:
        for the path of each layer its :class:`Edges`; a second message of the same module is ``path@1``.

    Raises:
        ValueError: if the model passes no messages along constant edges, as those of a dense adjacency matrix.
    """
    plan, state = record.plan, record.state()
    found: dict[str, tuple[Value, Tensor, Tensor]] = {}
    for node in plan.graph.nodes:
        if node.operation not in _AGGREGATES or node.sources[0] not in plan.flows:
            continue
        target = node.args[2].tensor()
        source = _source(node, target)
        if source is not None:
            path = node.path.removesuffix(".aggr_module") or "(model)"
            again = sum(name.split("@")[0] == path for name in found)
            found[f"{path}@{again}" if again else path] = (node.sources[0], source, target)
    if not found:
        raise ValueError(
            "no layer passes messages along constant edges: edge_relevance needs the record of a GraphExplainer, and "
            "layers that copy nodes to edges and put the messages together by edge_index. The relevance of a dense "
            "adjacency matrix is that of an input"
        )
    asked = record.asked(targets, initial, at)
    schedule = plan.schedule(tuple(value for value, _, _ in found.values()))
    state = runner.complete(plan, state, schedule.slots)
    relevance = {
        value: torch.zeros(record.batch, asked.count, len(target), dtype=plan.dtype, device=plan.device)
        for value, _, target in found.values()
    }

    def sink(value: Value, first: int, register: Tensor, factors: tuple[Tensor, ...]) -> None:
        relevance[value][:, first : first + register.shape[1]] = _by_node(register, factors)

    for first in range(0, asked.count, BLOCK):
        start = asked.block(first, min(BLOCK, asked.count - first))
        runner.propagate(plan, state, start, schedule.steps, sink, first)
    return {path: Edges(source, target, relevance[value]) for path, (value, source, target) in found.items()}


def _by_node(register: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    """Relevance summed over channels, ``(B, K, N)``."""
    for factor in factors:
        register = register * factor.unsqueeze(1)
    return register.flatten(3).sum(3) if register.dim() > 3 else register


def _source(node: Node, target: Tensor) -> Tensor | None:
    """The nodes that messages come from: where what the aggregation reads was copied from nodes."""
    todo, seen, fallback = [node.sources[0]], set(), None
    while todo:
        value = todo.pop(0)
        maker = value.producer
        if maker is None or maker in seen or maker.operation in (*_AGGREGATES, "segment_softmax"):
            continue
        seen.add(maker)
        index = _copied_by(maker)
        if index is None:
            todo += maker.sources
        elif index.shape == target.shape:
            if not torch.equal(index, target):
                return index
            fallback = index
    return fallback


def _copied_by(node: Node) -> Tensor | None:
    if node.operation == "index_select" and isinstance(node.args[2], Constant):
        return node.args[2].tensor() if node.args[1] % len(node.output.shape) == 1 else None
    if node.operation == "index" and len(node.args[1]) == 2 and isinstance(node.args[1][1], Constant):
        index = node.args[1][1].tensor()
        return index if index.dim() == 1 else None
    return None


def all_walks(edge_index: Tensor, length: int, nodes: int | None = None, self_loops: bool = True) -> Tensor:
    """Every walk ``(v0, …, vL)`` along edges, ``(W, L + 1)``.

    Args:
        edge_index: ``(2, E)``, sources and targets. length: L, the number of layers. nodes: how many there are.
        self_loops: whether a walk may stay at a node, which layers that add self-loops or the node's own state allow.

    Example::

        edges = torch.tensor([[0, 1], [1, 0]])
        assert fastlrp.all_walks(edges, 2).shape == (8, 3)
    """
    count = int(edge_index.max()) + 1 if nodes is None else nodes
    edges = edge_index.T
    if self_loops:
        loops = torch.arange(count, device=edge_index.device)
        edges = torch.cat([edges, torch.stack([loops, loops], 1)])
    edges = edges.unique(dim=0)
    walks = torch.arange(count, device=edge_index.device).unsqueeze(1)
    for _ in range(length):
        here, there = (walks[:, -1:] == edges[:, 0]).nonzero(as_tuple=True)
        walks = torch.cat([walks[here], edges[there, 1:]], 1)
    return walks


@eager
def walk_relevance(
    explainer: Explainer,
    x: Any,
    targets: Any,
    walks: Any,
    layers: Sequence[str],
    at: Any = None,
    initial: Initial = "output",
) -> Tensor:
    """Relevance of walks through a graph network, one node for each layer (GNN-LRP).

    The relevance of ``(v0, v1, …, vL)`` is what goes from the output through node ``vL`` of the last layer's output,
    then through ``v(L-1)`` of the layer before it, …, to node ``v0`` of the input. Walks that differ in ``v0`` alone
    go down together. Summed over ``v1, …, vL`` it is the relevance of ``v0``, where no path leads around a layer.

    Args:
        explainer: a :class:`fastlrp.GraphExplainer`, or an :class:`~fastlrp.Explainer` of inputs ``(B, N, F)``.
        x, targets, at, initial: see :meth:`fastlrp.Explainer.__call__`.
        walks: sequences of L + 1 nodes, or an integer tensor ``(W, L + 1)``; :func:`all_walks` lists all.
        layers: paths of L modules from the input to the output, whose outputs are ``(N, D)``.

    Returns:
        ``(B, K, W)``.

    Raises:
        KeyError: for a module without an output. ValueError: for walks of another length, layers whose output has no
        nodes as its first axis, or rules that are not linear in relevance. IndexError: for a node that is not there.

    Source: Schnake et al. 2021 (GNN-LRP), with the rules of the explainer's composite in each layer.
    """
    steps = _walks(walks, len(layers))
    plans = _marked(explainer, tuple(layers))
    inputs = plans.inputs(x)
    with ForwardRecord(plans.of(inputs), inputs, True, explainer.max_memory) as record:
        plan = record.plan
        source = plan.explained_inputs()[0]
        marked = [_mark_of(plan.graph, path) for path in layers]
        nodes = source.sizes[0]
        for path, node in zip(layers, marked, strict=True):
            if not node.output.sizes or node.output.sizes[0] != nodes:
                raise ValueError(
                    f"layer {path!r} gives {node.output.sizes} for each sample, and the input has {nodes} nodes: name "
                    "modules whose outputs are (nodes, channels)"
                )
        if steps.numel() and (int(steps.min()) < 0 or int(steps.max()) >= nodes):
            raise IndexError(f"walks name nodes from 0 to {nodes - 1}, got {int(steps.min())} to {int(steps.max())}")
        asked = record.asked(targets, initial, at)
        above, which = steps[:, 1:].unique(dim=0, return_inverse=True)
        schedule = plan.schedule((source,), False)
        state = runner.complete(plan, record.state(), schedule.slots)
        result = torch.zeros(record.batch, asked.count, len(steps), dtype=plan.dtype, device=plan.device)
        for first in range(0, len(above), _ROWS):
            rows = above[first : first + _ROWS]
            here = ((which >= first) & (which < first + len(rows))).nonzero()[:, 0]
            masks = {
                node: torch.nn.functional.one_hot(rows[:, i], nodes).to(plan.dtype) for i, node in enumerate(marked)
            }
            for k in range(asked.count):
                start = asked.block(k, 1)
                assert isinstance(start, Tensor)
                start = start.expand(-1, len(rows), *start.shape[2:])
                found = _descend(record, state, _with_masks(schedule.steps, masks), start)  # (B, rows, N)
                result[:, k, here] = found[:, which[here] - first, steps[here, 0]]
        return result


def _walks(walks: Any, layers: int) -> Tensor:
    steps = torch.as_tensor(walks)
    if steps.dim() != 2 or steps.shape[1] != layers + 1 or steps.is_floating_point() or steps.dtype == torch.bool:
        raise ValueError(
            f"walks must be sequences of {layers + 1} nodes, one of the input and one for each of the {layers} layers, "
            f"(W, {layers + 1}) integers, got {tuple(steps.shape)} {steps.dtype}"
        )
    return steps.long()


def _descend(record: ForwardRecord, state: list[Any], steps: Steps, start: Tensor) -> Tensor:
    found: list[Tensor] = []

    def sink(value: Value, first: int, register: Tensor, factors: tuple[Tensor, ...]) -> None:
        found.append(_by_node(register, factors))

    plan = record.plan
    whole = 2**62  # The masks are those of all walks of the block, which is not cut into smaller ones.
    way_down = Descent(state, sink, record.batch, plan.dtype.itemsize, whole)
    way_down.descend(steps, 0, runner.registers_with(plan, start), 0, start.shape[1])
    return found[0]


def _with_masks(steps: Steps, masks: dict[Node, Tensor]) -> Steps:
    """The same steps, of which those of the marks let one node of each walk through."""

    def through(mask: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda f: f * mask.view(1, *mask.shape, *[1] * (f.dim() - 3))

    made: Steps = []
    for step, frees in steps:
        mask = None if type(step) is Emission or step.node is None else masks.get(step.node)
        if mask is not None:
            step = replace(step, run=through(mask), by_position=False, embeds=None, accepts_one_hot=False,
                           keeps_one_hot=False, overwrites={})  # fmt: skip
        made.append((step, frees))
    return made


_MARKED: weakref.WeakKeyDictionary[Explainer, dict[tuple[str, ...], Plans]] = weakref.WeakKeyDictionary()


def _marked(explainer: Explainer, layers: tuple[str, ...]) -> Plans:
    """Plans of the explainer's model with a step of its own below each of the layers' outputs."""
    known = _MARKED.setdefault(explainer, {})
    if layers not in known:
        output, chooser = explainer._options["output"], Chooser(explainer._options["paths"])
        how = (explainer.model, explainer.composite, explainer.backend, output, chooser)
        known[layers] = explainer._plans_of(*how, canonize=lambda graph: _mark(canonize(graph), layers))
    return known[layers]


def _mark(graph: Graph, layers: Sequence[str]) -> None:
    for path in layers:
        value = graph.modules.get(path)
        if value is None or value.producer is None:
            known = ", ".join(list(graph.modules)[:12])
            raise KeyError(f"no module {path!r} with an output of its own. Known: {known}")
        maker = value.producer
        raw = graph.new_value(f"{value.name}_before", value.shape, value.dtype, maker)
        raw.depends, raw.carries, maker.output = value.depends, value.carries, raw
        mark = Node("move", "view", rows_reshaped, (raw, value.sizes), {}, (raw,), value, path)
        mark.attributes.update(unread=(), mark=True)
        value.producer = mark
        graph.nodes.insert(graph.nodes.index(maker) + 1, mark)


def _mark_of(graph: Graph, path: str) -> Node:
    return next(node for node in _marks(graph) if graph.modules.get(path) is node.output)


def _marks(graph: Graph) -> Iterator[Node]:
    return (node for node in graph.nodes if node.attributes.get("mark"))
