"""Relevance in proportion to input times gradient, ``R_x = x (dy/dx)^T (R / (n st(y)))``, for any operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node, Value
from fastlrp.kinds.jacobian import vjp, vjp_each
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.reference.redistribution import Ledger, divide, total
from fastlrp.reference.redistribution import vjp as vjp_of_one
from fastlrp.stabilizer import Stabilizer

Degree = int | tuple[float, ...]
"""``n``: by how much ``sum_x x dy/dx`` exceeds ``y``; one number, or one for each entry of a sample's output."""


def send_shares(
    b: Builder, node: Node, flow: Flow, stabilizer: Stabilizer, sources: Sequence[Value], degree: Degree = 1
) -> None:
    """Send each of the sources ``c = (dy/dx)^T (F factor / (n st(y)))`` and the factor ``x``."""
    y, inputs, forward = node.output, node.inputs, bind_forward(node)
    share = b.share(flow, y.index, y.numel, stabilizer)
    if degree != 1:
        divisor = degree_tensor(degree, y, b.device)
        if share is None:
            share = b.cache(lambda y: (1 / divisor.to(y)).expand_as(y), [y.index], y.numel)
        else:
            share = b.cache(lambda s: s / divisor.to(s), [share], y.numel)
    slots = [share, *(v.index for v in inputs)]
    wanted = [inputs.index(x) for x in sources]
    together = len(node.sources) == len(inputs) and b.graph.batch is None

    def transposed(f: Tensor, s: Tensor | None, *values: Any) -> tuple[Tensor, ...]:
        arrived = f if s is None else multiply(f, s)
        if together:
            found = vjp(forward, values, arrived)
            return tuple(found[i] for i in wanted)
        return tuple(vjp_each(forward, values, i, arrived) for i in wanted)

    registers = b.step_with_results(transposed, [flow.register], slots, [x.numel for x in sources])
    for x, register in zip(sources, registers, strict=True):
        b.send(x, Flow(register, Factor(x)))


def degree_tensor(degree: Degree, y: Value, device: torch.device) -> Tensor:
    """The degree as it broadcasts against ``(B, *y)``."""
    numbers = torch.tensor(degree, dtype=torch.float64, device=device)
    return numbers.reshape(1, *y.sizes) if isinstance(degree, tuple) else numbers


def shares_through(
    walk: Walk, node: Node, R: Tensor, stabilizer: Stabilizer, sources: Sequence[Value], degree: Degree = 1
) -> Share:
    """The textbook step. What is neither sent nor absorbed by the stabilizer is what constants keep."""
    y = walk.values[node.output]
    s, ledger = divide(R, y, torch.zeros_like(y), stabilizer)
    divisor = degree_tensor(degree, node.output, y.device)
    s = s / (divisor.unsqueeze(1) if divisor.dim() else divisor)
    sent = {}
    for x in sources:
        value = walk.values[x]
        sent[x] = value.unsqueeze(1) * vjp_of_one(walk.alone(node, x), value, s)
    kept = total(R) - ledger.dead - ledger.stabilizer - sum(total(r) for r in sent.values())
    return Share(sent, Ledger(bias=kept, stabilizer=ledger.stabilizer, dead=ledger.dead))
