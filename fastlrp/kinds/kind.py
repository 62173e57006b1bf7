"""What fastlrp knows of one kind of operation, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastlrp.capture.graph import Node
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.rules import Rule

Read = Callable[[Node, dict[str, Any]], "str | None"]
Lower = Callable[[Builder, Node, Any, Flow], None]
Textbook = Callable[[Walk, Node, Any, Tensor], Share]


def nothing_to_read(node: Node, bound: dict[str, Any]) -> str | None:
    """For kinds whose attributes are empty."""
    return None


def own_forward_step(b: Builder, node: Node) -> None:
    """The forward step is the operation itself."""
    b.add_forward(node)


def rule_itself(b: Builder, rule: Rule | None) -> Rule | str:
    """What a plan's table has in its column of rules: the rule itself."""
    return "" if rule is None else rule


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of operation. A kind is a file of this folder and its place in :mod:`fastlrp.kinds.registry`.

    Attributes:
        name: as composites name it.
        operations: ATen names without overload, separated by blanks.
        lower: appends the steps that send what flows at the output to the inputs, ``(builder, node, rule, flow)``.
        textbook: the same for one node alone in float64, ``(walk, node, rule, R)``, from the definition and not from
            what ``lower`` does: :mod:`fastlrp.verify` compares them.
        read: fills ``node.attributes`` from the arguments by name; the name of another kind if the operation is used
            in a form that this kind does not treat.
        forward: appends the forward step, where that is more than the operation itself.
        title: what plans call the rule.
        preset: the rule that the LRP presets give it, from the preset's own rule for sums; None if they give it none.
        fallback: the rule where a composite has none.
        weighted: has a weight: convolution, linear, batch norm.
        needs_rule: False for what only carries entries from one place to another.
        keeps: whether what arrives is kept, as a bias does, where no input takes it, and stands in the ledger.
        keeps_batch: whether all its tensors must have the batch as axis 0; a kind that need not checks for itself.
        modules: for functional calls, the module type that does the same: entries of composites for it match.
    """

    name: str
    operations: str
    lower: Lower
    textbook: Textbook
    read: Read = nothing_to_read
    forward: Callable[[Builder, Node], None] = own_forward_step
    title: Callable[[Builder, Rule | None], Rule | str] = rule_itself
    preset: Callable[[Rule], Rule] | None = None
    fallback: Rule | None = None
    weighted: bool = False
    needs_rule: bool = True
    keeps: bool = False
    keeps_batch: bool = True
    modules: Mapping[str, type[nn.Module]] = field(default_factory=dict)
