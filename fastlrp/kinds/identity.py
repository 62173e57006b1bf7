"""Operations that give back what they get: dropped from the graph."""

from __future__ import annotations

from torch import Tensor

from fastlrp.capture.graph import Node
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk, unchanged
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow


def lower(b: Builder, node: Node, rule: None, flow: Flow) -> None:
    """What flows on is what arrives."""
    b.send(node.sources[0], flow)


def through(walk: Walk, node: Node, rule: None, R: Tensor) -> Share:
    """The textbook step."""
    return unchanged(node, R)


KIND = Kind(
    name="identity",
    operations=(
        "dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d contiguous "
        "clone alias lift_fresh lift_fresh_copy to _to_copy type_as identity native_dropout "
        "resolve_conj resolve_neg positive"
    ),
    lower=lower,
    textbook=through,
    needs_rule=False,
)
