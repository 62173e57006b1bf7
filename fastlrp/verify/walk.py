"""The reference walk: one node at a time, relevance in textbook steps, float64.

Shares with the fast path what a layer *is* (graph, merged batch norm, which operand of a product is the signal) and
nothing of how its relevance is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.kinds.registry import KIND
from fastlrp.kinds.shares import shares_through
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.kinds.weighted import merged_layer
from fastlrp.reference.weightless import MaxPoolMode
from fastlrp.stabilizer import LimitAt, Stabilizer


class Walker:
    """Relevance through single nodes, given float64 activations."""

    def __init__(
        self, assigned: dict[Node, rules.Rule | None], max_pool: MaxPoolMode, values: Mapping[Value, Any]
    ) -> None:
        self.rules, self.walk = assigned, Walk(values, max_pool)

    @property
    def values(self) -> Mapping[Value, Any]:
        """All activations, float64."""
        return self.walk.values

    def through(self, node: Node, R: Tensor, quotient: Tensor | None = None) -> Share | None:
        """Relevance ``(B, K, …)`` of the node's output to its inputs; None without a reference (a user's rule).

        ``quotient``: relevance per unit of the output, which in the limit of epsilon to 0 goes on where that is 0.
        """
        rule: Any = self.rules.get(node)
        if quotient is not None:
            rule = _with_quotient(rule, LimitAt(quotient))
        if isinstance(rule, rules.InputGradient) and node.kind != "detached":
            return shares_through(self.walk, node, R, Stabilizer.ensure(rule.stabilizer), node.sources)
        return None if isinstance(rule, rules.Custom) else KIND[node.kind].textbook(self.walk, node, rule, R)

    def alone(self, node: Node, free: Value) -> Callable[[Tensor], Tensor]:
        """The node's forward as a function of one input, the others at their values; batch norms folded in."""
        if KIND[node.kind].weighted:
            layer = merged_layer(node)
            return lambda x: layer.apply(x, layer.weight, layer.bias)
        return self.walk.alone(node, free)


def _with_quotient(rule: Any, known: LimitAt) -> Any:
    """The rule with ``known`` in the place of a stabilizer in the limit; the rule itself if it has none."""
    values = {field.name: getattr(rule, field.name) for field in fields(rule)} if is_dataclass(rule) else {}
    in_limit = [name for name, value in values.items() if isinstance(value, Stabilizer) and value.in_limit]
    return replace(rule, **dict.fromkeys(in_limit, known)) if in_limit else rule
