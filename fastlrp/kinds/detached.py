"""What a model cuts off from its own gradient, by ``detach`` or under ``torch.no_grad``: passed on, or nothing.

The function that the model computes is the same with and without, so that relevance is passed on in the LRP presets.
A gradient ends there.
"""

from __future__ import annotations

from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds import textbook
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk, unchanged
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.reference.redistribution import total

_STOPS = (rules.Gradient, rules.InputGradient, rules.Deconvnet, rules.GuidedBackprop)


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """What arrives, or nothing."""
    if isinstance(rule, _STOPS):
        return
    x = node.sources[0]
    b.send(x, Flow(flow.register, Factor(x, flow.factor.scale)) if flow.factor.value is node.output else flow)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if not isinstance(rule, _STOPS):
        return unchanged(node, R)
    kept = textbook.nothing_kept(R)
    kept.bias = total(R)
    return Share({}, kept)


KIND = Kind(
    name="detached",
    operations="detach detach_copy",
    lower=lower,
    textbook=through,
    preset=lambda sums: rules.Pass(),
    fallback=rules.Pass(),
)
