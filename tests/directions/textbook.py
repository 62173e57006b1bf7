"""The reference walk begun at any value of a graph: relevance of the inputs, and what biases and stabilizers keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.plan.plan import Plan
from fastlrp.run import runner
from fastlrp.run.record import ForwardRecord
from fastlrp.verify.walk import Walker


@dataclass
class Found:
    """Relevance by value ``(B, K, …)``, and shares ``(B, K)`` of everything below where it began."""

    relevance: dict[Value, Tensor]
    bias: Tensor
    stabilizer: Tensor
    dead: Tensor


class Textbook:
    """Textbook steps of a record's plan, in float64."""

    def __init__(self, record: ForwardRecord) -> None:
        self.plan: Plan = record.plan
        graph = self.plan.graph
        values = [v for node in graph.nodes for v in (node.output, *node.inputs)]
        state = runner.complete(self.plan, record.state(), frozenset(v.index for v in values))
        doubles = {
            v: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t
            for v in values
            for t in (state[v.index],)
        }
        self.walker = Walker(self.plan.rules, self.plan.composite.max_pool, doubles)
        self.rows = [row.node for row in self.plan.rows]

    @property
    def has_sums_of_zero(self) -> bool:
        """Whether a sum is exactly 0, through which ``c`` goes on in the limit of epsilon to 0, and ``R`` not."""
        return any(bool((self.walker.values[n.output] == 0).any()) for n in self.rows if n.kind == "add")

    def down(self, start: Value, R: Tensor) -> Found:
        """From relevance ``(B, K, …)`` of one value on."""
        whole = {start: R}
        zero = torch.zeros(R.shape[:2], dtype=torch.float64)
        found = Found(whole, zero, zero, zero)
        for node in self.rows:
            if node.output not in whole:
                continue
            share = self.walker.through(node, whole[node.output])
            assert share is not None
            for value, part in share.relevance.items():
                whole[value] = whole[value] + part if value in whole else part
            if share.ledger is not None:
                found.bias = found.bias + share.ledger.bias
                found.stabilizer = found.stabilizer + share.ledger.stabilizer
                found.dead = found.dead + share.ledger.dead
        return found

    def neurons(self, value: Value) -> Found:
        """Of each neuron with its own activation; ``K`` are the neurons."""
        activation = self.walker.values[value].flatten(1)
        return self.down(value, torch.diag_embed(activation).unflatten(2, value.sizes))
