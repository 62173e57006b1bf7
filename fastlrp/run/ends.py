"""Which steps bring something to one value, where the values of several have one register.

Chained relevance of a sum is also that of each summand: ``c`` passes as it is, and sum and summands have the same
register. On the way up all that comes to that register is the sum's; a summand's is what comes by the steps below its
own node. The steps of a node are known by it; the sum of what several readers send to a value knows who sent what.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.capture.graph import Node, Value
from fastlrp.plan.plan import Plan
from fastlrp.plan.steps import BackwardStep

Operand = tuple[BackwardStep, int]
"""A step and the position of one of its operands."""


@dataclass(frozen=True, eq=False)
class Below:
    """What is below a value.

    Attributes:
        nodes: those that relevance of the value's register passes first. operands: the steps' operands that it is.
        whole: whether that is all that reads the register.
    """

    nodes: frozenset[Node]
    operands: frozenset[Operand]
    whole: bool


def below(plan: Plan, value: Value, ends: frozenset[int]) -> Below:
    """Of a value that gets relevance. ``ends``: registers that are asked for, which decide what steps there are."""
    steps = plan.program.steps_down(ends | {plan.flows[start].register for start in plan.explained_inputs()})
    merged = {a.step: {step.node for step in a.replaces} for a in plan.program.alternatives}
    register = plan.flows[value].register
    nodes: set[Node] = set()
    operands: set[Operand] = set()
    totals = {step.out: step for step in steps if step.senders}
    waiting = [value.producer]
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        for source in node.sources:
            flow = plan.flows.get(source)
            if flow is None:
                continue
            total = totals.get(flow.register)
            if total is not None and total.node is source.producer:
                sent = zip(total.ins, total.senders, strict=True)
                operands.update((total, i) for i, (r, sender) in enumerate(sent) if r == register and sender is node)
            elif flow.register == register:  # Its only reader passes it on as it is.
                waiting.append(source.producer)
    readers = {(step, i) for step in steps for i, r in enumerate(step.ins) if r == register}
    own = ((step, i) for step, i in readers if not step.senders)
    operands.update((step, i) for step, i in own if not nodes.isdisjoint(merged.get(step, {step.node})))
    return Below(frozenset(nodes), frozenset(operands), operands >= readers)
