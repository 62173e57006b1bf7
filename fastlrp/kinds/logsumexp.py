"""``log(sum(exp(x)))``, a soft maximum: in proportion to the summands, or the gradient, which are the same shares.

``R_i = exp(x_i) / sum_j exp(x_j) R`` conserves relevance. A soft minimum is ``-logsumexp(-x)``. ``logcumsumexp``
gives the soft maximum of the entries so far, among which each of its results shares.

Source: Kauffmann et al. 2020 and 2022 (neuralized kernels and clusterings, min- and max-pooling).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node
from fastlrp.kinds.jacobian import transpose_at, vjp
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk, nothing_kept
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """The axes, or the one along which it runs."""
    node.attributes["dims"] = bound["dim"]
    return None


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """The derivative is ``exp(x_i) / sum(exp(x))``, whose denominator is positive: no epsilon is read."""
    if not isinstance(rule, (rules.Norm, rules.Gradient)):
        raise TypeError(f"{rule} is not defined for {node}: use Norm or Gradient")
    if node.operation == "logcumsumexp":
        _lower_running(b, node, flow)
    else:
        transpose_at(b, node, flow)


def _lower_running(b: Builder, node: Node, flow: Flow) -> None:
    """The way down by PyTorch's derivative, which has no derivative itself: the way up by the shares."""
    (x,), axis = node.sources, node.attributes["dims"] % len(node.output.shape)
    forward = bind_forward(node)

    def down(f: Tensor, s: Tensor | None, value: Tensor) -> Tensor:
        return vjp(forward, (value,), f if s is None else multiply(f, s))[0]

    def up(t: Tensor, s: Tensor | None, value: Tensor) -> Tensor:
        shares = _running_shares(value, axis).transpose(-1, -2).unsqueeze(1)
        result = (t.movedim(axis + 1, -1).unsqueeze(-2) @ shares).squeeze(-2).movedim(-1, axis + 1)
        return result if s is None else multiply(result, s)

    b.send(x, Flow(b.step(down, [flow.register], [b.slot_of(flow.factor), x.index], x.numel, up=up)))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    (x,) = node.sources
    value = walk.values[x]
    ledger = None if isinstance(rule, rules.Gradient) else nothing_kept(R)
    if node.operation == "logcumsumexp":
        return Share({x: _through_running(value, node.attributes["dims"] % value.dim(), R)}, ledger)
    summands = (value - value.amax(node.attributes["dims"], keepdim=True)).exp()
    total = summands.sum(node.attributes["dims"], keepdim=True)
    arrived = R.reshape(*R.shape[:2], *total.shape[1:])
    shares = (summands / total).unsqueeze(1) * arrived
    return Share({x: shares}, ledger)


def _through_running(value: Tensor, axis: int, R: Tensor) -> Tensor:
    """Entry i gets its share of each result from i on."""
    shares = _running_shares(value, axis).unsqueeze(1)
    return (R.movedim(axis + 1, -1).unsqueeze(-2) @ shares).squeeze(-2).movedim(-1, axis + 1)


def _running_shares(value: Tensor, axis: int) -> Tensor:
    """Behind the other axes: of each result the shares of the entries."""
    x = value.movedim(axis, -1)
    earlier = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril()  # Result, entry.
    return x.unsqueeze(-2).masked_fill(~earlier, -torch.inf).softmax(-1)


KIND = Kind(
    name="logsumexp",
    operations="logsumexp logcumsumexp",
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: rules.Norm(),
)
