"""Layer, group, instance and RMS norm: pass, or the gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds import textbook
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """All arguments by name."""
    node.attributes.update(bound)
    return None


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Layer, group, instance norm: Pass (the identity rule of AttnLRP, Achtibat et al. 2024, prop. 3.4) or gradient."""
    if isinstance(rule, rules.Pass):
        b.send(node.inputs[0], flow)
    elif isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Pass or Gradient")


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    return textbook.unchanged(node, R) if isinstance(rule, rules.Pass) else textbook.gradient(walk, node, R)


KIND = Kind(
    name="normalization",
    operations="layer_norm group_norm instance_norm rms_norm",
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: rules.Pass(),
    modules={"layer_norm": nn.LayerNorm, "group_norm": nn.GroupNorm},
)
