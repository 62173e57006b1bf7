"""A softmax whose result weighs others, as in attention: its Taylor expansion, pass, or the gradient.

Which softmax is one :mod:`fastlrp.capture.patterns.attention_weights` decides: one that a product of two activations
reads. A softmax at the end of a network, or one that gates a map, is an activation. The weights of a mixture of experts
are such weights too: a router's softmax, and the quotient that makes the chosen ones 1 in total,
``R_i - y_i sum_j R_j``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds import activation, mul, textbook
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.infinite import finite
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.stabilizer import Stabilizer


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """``c_s = p * (c_p - sum p c_p)``."""
    if not isinstance(rule, rules.Taylor):
        (mul if node.operation == "div" else activation).lower(b, node, rule, flow)
        return
    if node.operation == "div":
        _lower_normalised(b, node, flow)
        return
    s, p = node.inputs[0], node.output
    axis = _axis(node)
    share = b.share(flow, p.index, p.numel, Stabilizer.limit())
    dtype = s.dtype  # A softmax may compute in float32 whatever its scores are.

    def derivative(f: Tensor, share: Tensor | None, p: Tensor) -> Tensor:
        c = (f if share is None else multiply(f, share)) * p.unsqueeze(1)
        return (c - c.sum(axis + 1, keepdim=True) * p.unsqueeze(1)).to(dtype)

    def derivative_of_all(t: Tensor, share: Tensor | None, p: Tensor) -> Tensor:
        p = p.unsqueeze(1)
        t = p * (t - (t * p).sum(axis + 1, keepdim=True))
        return t if share is None else multiply(t, share)

    register = b.step(derivative, [flow.register], [share, p.index], s.numel, up=derivative_of_all)
    b.send(s, Flow(register, Factor(s)))
    b.finite[s] = b.cache(finite, [s.index], s.numel)


def _lower_normalised(b: Builder, node: Node, flow: Flow) -> None:
    """``c_x = (c_y - sum y c_y) / sum x`` for ``y = x / sum x``, along the last axis."""
    (x, total), y = node.args[:2], node.output
    share = b.share(flow, y.index, y.numel, Stabilizer.limit())

    def derivative(f: Tensor, share: Tensor | None, y: Tensor, total: Tensor) -> Tensor:
        c = f if share is None else multiply(f, share)
        return (c - (c * y.unsqueeze(1)).sum(-1, keepdim=True)) / total.unsqueeze(1)

    b.send(x, Flow(b.step(derivative, [flow.register], [share, y.index, total.index], x.numel), Factor(x)))


def _axis(node: Node) -> int:
    """The axis along which it is 1 in total, counted from 0."""
    axis: int = node.attributes["parameters"]["dim"]
    return axis % len(node.output.shape)


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """The attributes are those that an activation has."""
    return activation.read(node, bound)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step: ``R_i = s_i (R_i - p_i sum_j R_j)``; the expansion's constant keeps the rest."""
    if not isinstance(rule, rules.Taylor):
        return (mul if node.operation == "div" else activation).through(walk, node, rule, R)
    if node.operation == "div":
        y = walk.values[node.output].unsqueeze(1)
        return Share({node.args[0]: R - y * R.sum(-1, keepdim=True)}, textbook.nothing_kept(R))
    source = node.sources[0]
    s, p = walk.values[source], walk.values[node.output].unsqueeze(1)
    axis = _axis(node) + 1
    scores = torch.where(s.isfinite(), s, 0.0).unsqueeze(1)
    relevance = scores * (R - p * R.sum(axis, keepdim=True))
    ledger = textbook.nothing_kept(R)
    ledger.bias = (R - relevance).flatten(2).sum(2)
    return Share({source: relevance}, ledger)


KIND = Kind(
    name="attention_weights",
    operations="",  # Softmax is an activation until something multiplies with its result.
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: rules.Taylor(),
    modules={},
)
