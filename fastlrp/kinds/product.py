"""Matrix products of two activations, as in attention: each factor gets half, or the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds import textbook
from fastlrp.kinds.jacobian import transpose_at, vjp
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder, bind_forward, multiply
from fastlrp.plan.steps import Factor, Flow
from fastlrp.reference.redistribution import divide
from fastlrp.reference.redistribution import vjp as vjp_of_one
from fastlrp.stabilizer import Stabilizer


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """``c_A = s B^T / 2`` and ``c_B = A^T s / 2`` with ``s`` the relevance per output, by one step for both."""
    if isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
        return
    if not isinstance(rule, rules.Uniform):
        raise TypeError(f"{rule} is not defined for {node}: use Uniform or Gradient")
    y, operands, forward = node.output, node.sources, bind_forward(node)
    share = b.share(flow, y.index, y.numel, Stabilizer.ensure(rule.stabilizer))

    def halves(f: Tensor, s: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return vjp(forward, values, multiply(f, s * 0.5))

    slots, numels = [share, *(x.index for x in operands)], [x.numel for x in operands]
    for x, register in zip(operands, b.step_with_results(halves, [flow.register], slots, numels), strict=True):
        b.send(x, Flow(register, Factor(x)))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    assert isinstance(rule, rules.Uniform)
    y = walk.values[node.output]
    s, ledger = divide(R, y, torch.zeros_like(y), Stabilizer.ensure(rule.stabilizer))
    halves = {}
    for x in node.sources:
        value = walk.values[x]
        halves[x] = value.unsqueeze(1) * vjp_of_one(walk.alone(node, x), value, s) / 2
    return Share(halves, ledger)


KIND = Kind(
    name="product",
    operations="",  # It has the names of products with a weight, which send what is none here.
    lower=lower,
    textbook=through,
)
