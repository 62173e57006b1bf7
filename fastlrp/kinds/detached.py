"""What a model cuts off from its own gradient, by ``detach`` or under ``torch.no_grad``: passed on, or nothing.

The function that the model computes is the same with and without, so that relevance is passed on in the LRP presets.
A gradient ends there. What was written over another tensor, unseen by autograd, is the node's first operand, and that
tensor the second one, to which its gradient goes.
"""

from __future__ import annotations

from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds import textbook
from fastlrp.kinds.chained import pass_on
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.rules.gradient import GRADIENTS

_STOPS = (*GRADIENTS, rules.InputGradient)


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Relevance goes on to what was cut off; a gradient ends, but for what was written over, to which it goes."""
    if isinstance(rule, _STOPS):
        for old in node.args[1:]:
            b.send(old, flow)
        return
    x = node.args[0]
    if x in node.sources:
        pass_on(b, flow, node.output, x)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    return textbook.all_to(node, node.args[1:] if isinstance(rule, _STOPS) else node.args[:1], R)


KIND = Kind(
    name="detached",
    operations="detach detach_copy",
    lower=lower,
    textbook=through,
    preset=lambda sums: rules.Pass(),
    fallback=rules.Pass(),
)
