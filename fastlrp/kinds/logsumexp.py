"""``log(sum(exp(x)))``, a soft maximum: in proportion to the summands, or the gradient, which are the same shares.

``R_i = exp(x_i) / sum_j exp(x_j) R`` conserves relevance. A soft minimum is ``-logsumexp(-x)``.

Source: Kauffmann et al. 2020 and 2022 (neuralized kernels and clusterings, min- and max-pooling).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk, nothing_kept
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """The axes."""
    node.attributes["dims"] = bound["dim"]
    return None


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """The derivative is ``exp(x_i) / sum(exp(x))``."""
    if not isinstance(rule, (rules.Norm, rules.Epsilon, rules.Gradient)):
        raise TypeError(f"{rule} is not defined for {node}: use Norm or Gradient")
    transpose_at(b, node, flow)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    (x,) = node.sources
    value = walk.values[x]
    summands = (value - value.amax(node.attributes["dims"], keepdim=True)).exp()
    total = summands.sum(node.attributes["dims"], keepdim=True)
    arrived = R.reshape(*R.shape[:2], *total.shape[1:])
    shares = (summands / total).unsqueeze(1) * arrived
    return Share({x: shares}, None if isinstance(rule, rules.Gradient) else nothing_kept(R))


KIND = Kind(
    name="logsumexp",
    operations="logsumexp",
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: rules.Norm(),
)
