"""Operations that fastlrp knows nothing of: a user's rule says what happens."""

from __future__ import annotations

from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds import textbook
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Pass or the gradient; a Custom rule is taken before this is asked."""
    if isinstance(rule, rules.Pass):
        send_unchanged(b, node, flow)
    elif isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
    else:
        raise UnsupportedOperationError(f"{rule} cannot be applied to {node}: use a Custom rule, Pass or Gradient")


def send_unchanged(b: Builder, node: Node, flow: Flow) -> None:
    """Relevance as it is, to the one input of the output's shape."""
    sources = node.sources
    if len(sources) != 1 or sources[0].shape != node.output.shape:
        raise UnsupportedOperationError(f"Pass needs one input of the output's shape, which {node} does not have")
    b.send(sources[0], flow)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    return textbook.unchanged(node, R) if isinstance(rule, rules.Pass) else textbook.gradient(walk, node, R)


KIND = Kind(name="unknown", operations="", lower=lower, textbook=through)


SCALAR = Kind(name="scalar", operations="", lower=lower, textbook=through, needs_rule=False)
"""Plain numbers, sizes above all, and operations with several results, of which parts are taken."""
