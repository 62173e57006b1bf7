"""Sums and differences: in proportion to the summands, of which constants keep their share; or the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.kinds import textbook
from fastlrp.kinds.broadcasting import sum_to_shape
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow, SweepPart
from fastlrp.plan.total import multiply
from fastlrp.reference import weightless
from fastlrp.stabilizer import Stabilizer


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """The summands with their coefficients, and the smaller coefficient, for proofs of sign."""
    alpha = bound.get("alpha", 1)
    first, second = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[node.operation]
    node.attributes.update(alpha=min(first, second), terms=((node.args[0], first), (node.args[1], second)))
    return None


def forward(b: Builder, node: Node) -> None:
    """The sum of two maps may become one step with the ReLU that follows it."""
    terms, y = node.attributes["terms"], node.output
    maps = len(node.inputs) == 2 and all(isinstance(v, Value) and v.shape == y.shape and c == 1 for v, c in terms)
    b.add_forward(node, part=SweepPart("sum") if maps else None)


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Sums: in proportion to the summands (constants keep their share), or the gradient."""
    y = node.output
    terms = [(v, c) for v, c in node.attributes["terms"] if isinstance(v, Value) and v.is_differentiable]
    if isinstance(rule, rules.Gradient):
        for x, coefficient in terms:
            _send_scaled(b, x, coefficient, flow, y, Factor())
        return
    if isinstance(rule, rules.Pass) and len(terms) == 1 and terms[0][0].shape == y.shape:
        b.send(terms[0][0], flow)
        return
    if not isinstance(rule, (rules.Norm, rules.Epsilon)):
        raise TypeError(f"{rule} is not defined for {node}: use Norm, Epsilon or Gradient")
    stabilizer, z = Stabilizer.ensure(rule.stabilizer), y.index
    if leaves_out_constant(node, rule):
        ((x, c),) = terms
        if c != 1 or x.shape != y.shape:
            z = b.cache(lambda x, y: (x * c).expand_as(y), [x.index, y.index], y.numel)
        else:
            z = x.index
    if not stabilizer.in_limit:
        flow = b.finite_flow(y, flow)
    if b.dtype == torch.float16 and flow.factor == Factor() and all(x.shape == y.shape for x, _ in terms):
        for x, coefficient in terms:
            transpose = lambda f, s, c=coefficient: multiply(f, s * c)  # noqa: E731
            b.send_shares(x, z, y.numel, flow, stabilizer, transpose)
        return
    share = b.share(flow, z, y.numel, stabilizer)
    for x, coefficient in terms:
        _send_scaled(b, x, coefficient, Flow(flow.register, Factor(None, share)), y, Factor(x))


def leaves_out_constant(node: Node, rule: rules.Rule | None) -> bool:
    """Whether the denominator of a sum has no part of its constant summand, as under ``Epsilon(zero_bias=True)``."""
    if node.kind != "add" or not isinstance(rule, rules.Epsilon) or not rule.zero_bias:
        return False
    return not all(isinstance(v, Value) and v.is_differentiable for v, _ in node.attributes["terms"])


def _send_scaled(b: Builder, x: Value, coefficient: Any, flow: Flow, y: Value, left: Factor) -> None:
    """Send ``coefficient * relevance``, read with the factor ``left`` on top of the flow's own."""
    scale = b.slot_of(flow.factor)
    if coefficient != 1:
        old = scale
        if old is None:
            scale = b.cache(lambda y: torch.full_like(y, float(coefficient)), [y.index], y.numel)
        else:
            scale = b.cache(lambda s: s * coefficient, [old], y.numel)
    if x.shape != y.shape:
        summed = sum_to_shape(b, Flow(flow.register, Factor(None, scale)), y, x)
        b.send(x, Flow(summed.register, left))
    else:
        b.send(x, Flow(flow.register, Factor(left.value, scale)))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    if isinstance(rule, rules.Pass):
        return textbook.unchanged(node, R)
    assert isinstance(rule, (rules.Norm, rules.Epsilon))
    terms, sources = [], []
    for operand, coefficient in node.attributes["terms"]:
        term = walk.values[operand] if isinstance(operand, Value) else textbook.double(operand)
        if not isinstance(term, Tensor):
            term = torch.full((1,) * R[:, 0].dim(), float(term), dtype=torch.float64, device=R.device)
        # Masked scores are minus infinity, and no relevance is there; or the lowest number, see verify/masked.py.
        left_out = leaves_out_constant(node, rule) and not (isinstance(operand, Value) and operand.is_differentiable)
        terms.append(textbook.moderate(torch.where(term.isinf(), 0.0, term)) * (0.0 if left_out else coefficient))
        sources.append(operand)
    parts, ledger = weightless.norm_sum(terms, R, Stabilizer.ensure(rule.stabilizer))
    found: dict[Value, Tensor] = {}
    for operand, part in zip(sources, parts, strict=True):
        if isinstance(operand, Value) and operand.is_differentiable:
            found[operand] = found[operand] + part if operand in found else part
        else:
            # A constant summand keeps its share as a bias does.
            ledger.bias = ledger.bias + part.unsqueeze(-1).flatten(2).sum(2)
    return Share(found, ledger)


KIND = Kind(
    name="add",
    operations="add sub rsub",
    lower=lower,
    textbook=through,
    read=read,
    forward=forward,
    preset=lambda sums: sums,
)
