"""Which convolutions stay float32 because roundings to bfloat16 would add up: in networks with linear bottlenecks.

After a ReLU relevance is even and sums are long, and what one layer rounds averages out in the layers below. A
convolution that reads plain sums, without an activation between, as the expansions of an inverted residual do, gets
inputs of both signs. Under a rule that shares by terms of both signs relevance cancels there just as what rounding adds
does, and nothing averages out: a layer makes an error of 3.3e-3 of the whole explanation (operand, weight and result
are rounded to 8 bits each, by 1.7e-3 on average), a layer within a residual branch the branch's share of that, and the
squares add up (docs/bfloat16.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastlrp import rules
from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.plan.builder import Builder

LEAST_SHARE = 1 / 8
"""Of the convolutions, how many have to read plain sums: a few, as where a pyramid of maps begins, do little."""

_OF_ONE_SIGN = (rules.ZPlus, rules.WSquare, rules.Flat, rules.ZBox, rules.Pass)
_STILL_SUMS = ("batch_norm", "identity", "move", "add", "cat", "detached")


def kept_full(b: Builder, assigned: Mapping[Node, rules.Rule | None]) -> frozenset[Node]:
    """The convolutions whose products stay float32 under these rules, beside those that do under any.

    Under alpha-beta all of them, whose errors add up within branches, too; under other rules that share by terms of
    both signs those that no residual connection leads past.
    """
    convolutions = [node for node in b.graph.nodes if node.kind == "conv" and node.output.gets_relevance]
    if not b.products.convolutions or not has_linear_bottlenecks(convolutions):
        return frozenset()
    trunk = on_all_ways(b.graph)
    return frozenset(node for node in convolutions if _adds_up(assigned.get(node), node in trunk))


def has_linear_bottlenecks(convolutions: Sequence[Node]) -> bool:
    """Whether a good part of a network's convolutions read what others made, without an activation between."""
    reading = sum(any(_is_sum(value) for value in node.sources) for node in convolutions)
    return reading > 0 and reading >= LEAST_SHARE * len(convolutions)


def on_all_ways(graph: Graph) -> frozenset[Node]:
    """The nodes that no connection leads past, as a residual one does. One that ends in a ``cat`` brings other channels
    than they do, so that it leads past nothing."""
    place = {node: position for position, node in enumerate(graph.nodes)}
    change, joined_on = [0] * (len(place) + 1), _joined_on(graph)
    for node in graph.nodes:
        for value in node.sources if node not in joined_on else ():
            change[0 if value.producer is None else place[value.producer] + 1] += 1
            change[place[node]] -= 1
    found, past = set(), 0
    for node, more in zip(graph.nodes, change, strict=False):
        past += more
        if not past:
            found.add(node)
    return frozenset(found)


def _joined_on(graph: Graph) -> set[Node]:
    """The nodes ``cat``, and moves of what nothing but these reads."""
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for value in node.sources:
            readers.setdefault(value, []).append(node)
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        own = readers.get(node.output, [])
        if node.kind == "cat" or (node.kind == "move" and own and all(reader in found for reader in own)):
            found.add(node)
    return found


def _is_sum(value: Value) -> bool:
    """Whether a convolution made the value, or part of it, and no activation came after that."""
    todo, seen = [value], set()
    while todo:
        node = todo.pop().producer
        if node is None or node in seen:
            continue
        if node.kind == "conv":
            return True
        seen.add(node)
        todo += node.sources if node.kind in _STILL_SUMS else ()
    return False


def _adds_up(rule: rules.Rule | None, in_trunk: bool) -> bool:
    if isinstance(rule, rules.AlphaBeta):
        return rule.beta != 0
    return in_trunk and not isinstance(rule, _OF_ONE_SIGN)
