"""``torch.vmap`` in an exported program: each mapped function becomes one operation of what it is given.

``torch.export`` writes the operations of a mapped function as they are for one entry of the mapped axes, between a call
that opens a level and one that closes it. Models compute attention masks so (``transformers`` 4). A mask is a
condition: nothing needs to know what is inside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._C import _functorch
from torch._functorch import predispatch

OPENS, CLOSES = predispatch._vmap_increment_nesting, predispatch._vmap_decrement_nesting
SPLITS, JOINS = predispatch._add_batch_dim, predispatch._remove_batch_dim
_LEVELS = {SPLITS: 2, JOINS: 1}
"""At which place of its arguments an operation names the level."""


def join_mapped(program: torch.export.ExportedProgram) -> None:
    """Put one call of a :class:`Mapped` in the place of all that a mapped function does."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is predispatch.lazy_load_decompositions:
            graph.erase_node(node)
    while True:
        inside = _first_region([n for n in graph.nodes if n.op == "call_function"])
        if not inside:
            return
        _join(program.graph_module, inside)


def _first_region(nodes: list[fx.Node]) -> list[fx.Node]:
    """From the first call that opens a level to the one that closes it; none if there is no such call."""
    depth, found = 0, []
    for node in nodes:
        depth += node.target is OPENS
        if depth:
            found.append(node)
        depth -= node.target is CLOSES
        if found and not depth:
            return found
    return []


def _join(owner: fx.GraphModule, inside: list[fx.Node]) -> None:
    graph = owner.graph
    members = set(inside)
    given = [n for n in dict.fromkeys(a for node in inside for a in node.all_input_nodes) if n not in members]
    tensors = [n for n in given if n.op != "get_attr"]
    outputs = [n for n in inside if any(user not in members for user in n.users)]
    for output in outputs:
        call = Mapped(owner, inside, tensors, output)
        with graph.inserting_after(inside[-1]):
            joined = graph.call_function(call, tuple(tensors))
        joined.meta = dict(output.meta)
        output.replace_all_uses_with(joined, delete_user_cb=lambda user: user not in members)
    for node in reversed(inside):
        graph.erase_node(node)


class Mapped:
    """A mapped function, as a function of what it reads: tensors and sizes in the order of the graph."""

    __name__ = "vmap"

    def __init__(self, owner: fx.GraphModule, inside: list[fx.Node], given: list[fx.Node], output: fx.Node) -> None:
        graph, levels = fx.Graph(), []
        copies: dict[fx.Node, fx.Node] = {}
        for node in given:
            copies[node] = graph.placeholder(node.name)
        for node in dict.fromkeys(a for n in inside for a in n.all_input_nodes if a.op == "get_attr"):
            copies[node] = graph.node_copy(node)
        for node in inside:
            if not node.users and node.target not in (OPENS, CLOSES):
                continue
            copy = copies[node] = graph.node_copy(node, lambda n: copies[n])
            if node.target is OPENS:
                levels.append(copy)
            elif node.target is CLOSES:
                levels.pop()
            elif node.target in _LEVELS:
                # The number of a level depends on how many others are open where it is called.
                copy.update_arg(_LEVELS[node.target], levels[-1])
        graph.output(copies[output])
        self.run = fx.GraphModule(owner, graph)

    def __call__(self, *given: Any) -> Any:
        depth = _functorch.get_dynamic_layer_stack_depth()
        try:
            return self.run(*given)
        finally:
            _functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
