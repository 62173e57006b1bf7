"""``grid_sample``: linear in the image, which takes all in proportion; where it is sampled is a condition.

``R_x = x (dy/dx)^T (R / st(y))`` for the image ``x``. The grid (of a spatial transformer, of optical flow) gets no
relevance; its gradient it gets from the gradient rule, as everything does. Where the image does not depend on the input
there is no rule.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.kinds import textbook
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.shares import send_shares, shares_through
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.stabilizer import Stabilizer


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """A grid alone, over a constant image, has no rule."""
    image = node.args[0]
    return None if isinstance(image, Value) and image.is_differentiable else "unknown"


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """In proportion to the image's entries, or the gradient of both."""
    if isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
    elif isinstance(rule, (rules.Norm, rules.Epsilon)):
        send_shares(b, node, flow, Stabilizer.ensure(rule.stabilizer), [node.args[0]])
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Norm, Epsilon or Gradient")


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    assert isinstance(rule, (rules.Norm, rules.Epsilon))
    return shares_through(walk, node, R, Stabilizer.ensure(rule.stabilizer), [node.args[0]])


KIND = Kind(
    name="grid_sample",
    operations="grid_sampler grid_sampler_2d grid_sampler_3d",
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: sums,
)
