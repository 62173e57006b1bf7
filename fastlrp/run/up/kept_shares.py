"""What biases and stabilizers keep of every neuron's activation, on the way up beside the parts of the input.

A layer keeps a share of the relevance that arrives at each of its outputs; it is linear in that relevance, and the
textbook step says what it is. Seen from the input a bias is a part that begins at its own layer: its share, per unit of
the layer's register, is added there to what comes up from the biases below.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Node
from fastlrp.plan.plan import Plan
from fastlrp.run import runner
from fastlrp.run.up.ascent import Ascent, Cotangent, Take
from fastlrp.verify.walk import Walker

KEPT = ("bias", "stabilizer")
"""In the place of groups."""


def kept_shares(ascent: Ascent, batch: int, take: Take) -> None:
    """Move both shares up; at the route's ends ``take(register, 0, (B, 2, …))`` gets them."""
    plan, route = ascent.plan, ascent.route
    # A layer through which relevance passes as it is has the register of its input, which no step may read.
    registers = {register for step in route.steps for register in (*step.ins, *step.outs)} | route.ends
    nodes = [
        row.node
        for row in plan.rows
        if row.node.output in plan.flows and plan.flows[row.node.output].register in registers
    ]
    values = frozenset(v.index for node in nodes for v in (node.output, *node.inputs))
    factors = frozenset(slot for node in nodes for slot in plan.flows[node.output].factor.slots)
    state = runner.complete(plan, ascent.state, values | factors)
    doubles = {
        v: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t
        for node in nodes
        for v in (node.output, *node.inputs)
        for t in (state[v.index],)
    }
    walker = Walker(plan.rules, plan.composite.max_pool, doubles)
    found: dict[int, Cotangent] = {}
    for node in nodes:
        share = _share(plan, walker, node, batch, state)
        if share is not None:
            register = plan.flows[node.output].register
            found[register] = found[register] + share if register in found else share  # type: ignore[operator]
    for end in route.ends - ascent.last.keys():
        if end in found:
            take(end, 0, found[end])
    for value in route.starts:  # Nothing of the input itself, so that every step is gone through.
        register = plan.flows[value].register
        if register not in found:
            like = {"dtype": plan.dtype, "device": plan.device}
            found[register] = torch.zeros((batch, len(KEPT), *value.sizes), **like)  # type: ignore[call-overload]
    whole = replace(ascent, state=state, boxes={}, tails=None, alive={})
    whole.ascend(range(len(route.steps)), found, 0, take)


def _share(plan: Plan, walker: Walker, node: Node, batch: int, state: list[Any]) -> Tensor | None:
    """``(B, 2, …)`` of one layer, per unit of its output's register; None where it keeps nothing."""
    y = node.output
    with torch.inference_mode(False), torch.enable_grad():
        R = torch.ones((batch, 1, *y.sizes), dtype=torch.float64, device=plan.device, requires_grad=True)
        share = walker.through(node, R)
        if share is None or share.ledger is None:
            return None
        parts = []
        for name in KEPT:
            kept: Tensor = getattr(share.ledger, name)
            own = torch.autograd.grad(kept.sum(), R, retain_graph=True, allow_unused=True) if kept.requires_grad else ()
            parts.append(torch.zeros_like(R) if not own or own[0] is None else own[0])
    found = torch.cat(parts, 1)
    if not bool(found.any()):
        return None
    for slot in plan.flows[y].factor.slots:
        found = found * state[slot].double().unsqueeze(1)
    return found.to(plan.dtype)
