"""Products of two activations, as in attention: half to each factor, all to the values, or the gradient.

A convolution whose kernel is computed from the input is one: the kernel stands for the weights, its input for values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node, Value, leaves
from fastlrp.kinds import textbook
from fastlrp.kinds.heads import lower_each, through_each
from fastlrp.kinds.jacobian import transpose_at, vjp
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.reference.redistribution import divide
from fastlrp.reference.redistribution import vjp as vjp_of_one
from fastlrp.stabilizer import Stabilizer


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """``c_A = s B^T / 2`` and ``c_B = A^T s / 2`` with ``s`` the relevance per output, by one step for both.

    ``ValueOnly``: all of it to the factor that is no attention weight, and no kernel.
    """
    if isinstance(rule, rules.Heads):
        lower_each(b, node, rule, flow, lower)
        return
    if isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
        return
    if not isinstance(rule, (rules.Uniform, rules.ValueOnly)):
        raise TypeError(f"{rule} is not defined for {node}: use Uniform, ValueOnly, Heads or Gradient")
    y = node.output
    share = b.share(flow, y.index, y.numel, Stabilizer.ensure(rule.stabilizer))
    parts = _parts(node, rule)
    if _is_plain_matmul(node):
        _send_through_matmul(b, node, parts, share, flow)
        return
    operands, forward = node.sources, bind_forward(node)
    shares = [parts.get(x, 0.0) for x in operands]

    def halves(f: Tensor, s: Tensor | None, *values: Tensor) -> tuple[Tensor, ...]:
        found = vjp(forward, values, f if s is None else multiply(f, s))
        return tuple(c * part for c, part in zip(found, shares, strict=True))

    slots, numels = [share, *(x.index for x in operands)], [x.numel for x in operands]
    for x, register in zip(operands, b.step_with_results(halves, [flow.register], slots, numels), strict=True):
        if x in parts:
            b.send(x, Flow(register, Factor(x)))


def _send_through_matmul(b: Builder, node: Node, parts: dict[Value, float], share: int | None, flow: Flow) -> None:
    """Without autograd: relevance times the other factor's transpose, for all factors that take a part in one step."""
    first, second = node.args[:2]
    others = {first: second, second: first}

    def transposed(f: Tensor, s: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        arriving, found = f if s is None else multiply(f, s), []
        for (x, part), other in zip(parts.items(), tensors, strict=True):
            given = (other if part == 1 else other * part).transpose(-1, -2).unsqueeze(1)
            found.append(arriving @ given if x is first else _times_all(given, arriving))
        return tuple(found)

    def product(*operands: Any) -> Tensor:
        """The product with one factor's own value and the other's cotangent, added up."""
        arriving, (s, *tensors) = operands[: len(parts)], operands[len(parts) :]
        total: Any = None
        for (x, part), t, other in zip(parts.items(), arriving, tensors, strict=True):
            if t is not None:
                given = (other if part == 1 else other * part).unsqueeze(1)
                found = t @ given if x is first else given @ t
                total = found if total is None else total.add_(found)
        return total if s is None else multiply(total, s)

    slots, numels = [share, *(others[x].index for x in parts)], [x.numel for x in parts]
    work = 2 * len(parts) * node.output.numel * first.sizes[-1]
    registers = b.step_with_results(transposed, [flow.register], slots, numels, work, up=product)
    for x, register in zip(parts, registers, strict=True):
        b.send(x, Flow(register, Factor(x)))


def _times_all(given: Tensor, arriving: Tensor) -> Tensor:
    """``(B, 1, …, T, S) @ (B, K, …, S, E)``: targets stand side by side, so that one product takes them all and no
    copy of the matrix is made for each."""
    if arriving.shape[1] == 1:
        return given @ arriving
    columns = arriving.movedim(1, -2)  # (B, …, S, K, E)
    found = given.squeeze(1) @ columns.flatten(-2)
    return found.unflatten(-1, columns.shape[-2:]).movedim(-2, 1)


def _parts(node: Node, rule: rules.Uniform | rules.ValueOnly) -> dict[Value, float]:
    """What each factor takes of the product's relevance; factors that take nothing are left out."""
    if isinstance(rule, rules.HeldSelection):
        selects = node.attributes.get("selection", ())
        signals = [x for x in node.sources if x not in selects]
        # A factor that stands there twice gets its part twice.
        factors = [x for x in leaves((node.args, node.kwargs)) if isinstance(x, Value) and x in signals]
        return dict.fromkeys(signals, 1 / len(factors))
    weights = node.args[1] if node.operation.startswith("conv") else node.attributes.get("weights")
    values = [x for x in node.sources if x is not weights]
    if isinstance(rule, rules.ValueOnly) and weights is not None and len(values) == 1:
        return {values[0]: 1.0}
    return dict.fromkeys(node.sources, 0.5)


def _is_plain_matmul(node: Node) -> bool:
    """A product of two stacks of matrices of the same sizes, each with the batch in front."""
    operands = node.args[:2]
    if node.operation not in ("matmul", "bmm") or len(node.sources) != 2 or len(node.inputs) != 2:
        return False
    shapes = [v.shape for v in operands]
    return len(shapes[0]) == len(shapes[1]) >= 3 and shapes[0][:-2] == shapes[1][:-2]


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, rules.Heads):
        return through_each(walk, node, rule, R, through)
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    assert isinstance(rule, (rules.Uniform, rules.ValueOnly))
    y = walk.values[node.output]
    s, ledger = divide(R, y, torch.zeros_like(y), Stabilizer.ensure(rule.stabilizer))
    found = {}
    for x, part in _parts(node, rule).items():
        value = walk.values[x]
        found[x] = part * value.unsqueeze(1) * vjp_of_one(walk.alone(node, x), value, s)
    return Share(found, ledger)


KIND = Kind(
    name="product",
    operations="",  # It has the names of products with a weight, which send what is none here.
    lower=lower,
    textbook=through,
    preset=lambda sums: rules.Uniform(textbook.stabilizer_of(sums)),
)
