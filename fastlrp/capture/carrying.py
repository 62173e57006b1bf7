"""Which values carry relevance: floats that come from a float input or an embedding, and the ids that it looks up.

A float input carries relevance, and so does a float result of an operation that reads a value that does. Integers do
not pass it on: masks, positions and what is computed from them (``ids.float()``, ``cos(position)``, ``ids != pad``) are
fixed numbers of the sample, conditions under which it is explained. The one exception is an embedding. Its result
carries relevance, which goes to the ids that choose its rows, and from there back to the model's input through
operations that only move ids: slices, ``view``, ``cat``, ``where``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fastlrp.capture.arguments import bind
from fastlrp.capture.graph import LOOKUPS, Graph, Node, Value, leaves

_ID_TYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_MOVES = ("move", "write", "cat")
_MOVED = {"self", "input", "src", "source", "value", "values", "other", "tensors"}
"""Arguments that such operations copy entries from, by name. Indices and masks only say where to."""


def carries(node: Node, read: Iterable[Value]) -> bool:
    """Whether the node's result carries relevance, of which integers learn later, by :func:`mark_ids`.

    Args:
        read: the activations whose entries it reads.
    """
    if not node.output.is_float:
        return not node.output.is_tensor and any(v.carries for v in read)
    if node.operation in LOOKUPS:
        return any(v.depends for v in read)
    return any(v.carries for v in read)


def mark_ids(graph: Graph) -> None:
    """Let those integers carry relevance that come from an input by moves alone and choose rows of an embedding."""
    ids = {v for v in graph.inputs if v.dtype in _ID_TYPES}
    for node in graph.nodes:
        if node.output.dtype in _ID_TYPES:
            node.output.carries = False
            if node.kind in _MOVES and any(v in ids for v in moved(node)):
                ids.add(node.output)
    for value in graph.inputs:
        value.carries = value.is_float
    for node in reversed(graph.nodes):
        if node.kind in LOOKUPS:
            chosen = node.inputs
        elif node.output in ids and node.output.carries:
            chosen = tuple(moved(node))
        else:
            continue
        for value in chosen:
            value.carries = value.carries or value in ids


def chosen_by_floats(graph: Graph) -> bool:
    """Whether a table's rows are to be chosen by floats, which PyTorch 2.11 traces though it cannot compute it."""
    chosen = (leaf for node in graph.nodes if node.operation in LOOKUPS for leaf in leaves(node.args[1]))
    return any(isinstance(ids, Value) and ids.is_float for ids in chosen)


def moved(node: Node) -> Iterator[Value]:
    """The values whose entries the operation copies."""
    target = getattr(node.call, "whole", node.call)
    named = bind(target, node.args, node.kwargs)
    operands = [v for name, v in named.items() if name in _MOVED] if named else node.args[:2]
    return (leaf for leaf in leaves(operands) if isinstance(leaf, Value))
