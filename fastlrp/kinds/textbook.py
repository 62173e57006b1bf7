"""What the textbook steps of all kinds have in common: float64 values, and an operation as a function of one input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Constant, Node, Value, substitute
from fastlrp.kinds import id_moves
from fastlrp.reference import weightless
from fastlrp.reference.redistribution import Ledger, total
from fastlrp.reference.weightless import MaxPoolMode
from fastlrp.stabilizer import Stabilizer


@dataclass(eq=False)
class Share:
    """What one node sends down: relevance per input, and what it keeps; no ledger where what flows is no relevance."""

    relevance: dict[Value, Tensor]
    ledger: Ledger | None


@dataclass(eq=False)
class Walk:
    """Where a textbook step stands.

    Attributes:
        values: all activations, float64. max_pool: who takes the relevance of a max-pool's output.
    """

    values: Mapping[Value, Any]
    max_pool: MaxPoolMode

    def alone(self, node: Node, free: Value) -> Callable[[Tensor], Tensor]:
        """The node's operation as a function of one input, the others at their values."""
        args, kwargs = double(node.args), double(node.kwargs)
        fixed = {v: self.values[v] for v in node.inputs if v is not free}
        call = node.call

        def forward(x: Tensor) -> Tensor:
            table = {**fixed, free: x}
            result: Tensor = call(*substitute(args, table), **substitute(kwargs, table))
            return result

        return forward


def double(tree: Any) -> Any:
    """Constants as tensors; every floating-point tensor in float64, and as one that autograd takes."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Constant):
            leaf = leaf.tensor()
        if isinstance(leaf, Tensor) and leaf.is_inference():
            leaf = leaf.clone()
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return torch.utils._pytree.tree_map(convert, tree)


MASKED = 1e30
"""From here on a number is the lowest of its dtype, which masks, and no result of a model."""

MODERATE = 1e6
"""What stands for it: far from all scores, and near enough that sums of relevance lose no digits that count."""


def moderate(leaf: Any) -> Any:
    """A tensor with entries beyond :data:`MASKED` at :data:`MODERATE`; infinite ones, and all else, as they are."""
    if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
        return leaf
    huge = (leaf.abs() >= MASKED) & leaf.isfinite()
    return torch.where(huge, leaf.sign() * MODERATE, leaf)


def nothing_kept(R: Tensor) -> Ledger:
    """The ledger of a step that sends on all that arrives."""
    zero = R.new_zeros(R.shape[:2])
    return Ledger(bias=zero, stabilizer=zero.clone(), dead=zero.clone())


def gradient(walk: Walk, node: Node, R: Tensor) -> Share:
    """The derivative of the operation by each of its inputs: of the gradient rule, where what flows is no relevance."""
    return Share({v: weightless.gradient(walk.alone(node, v), walk.values[v], R) for v in node.sources}, None)


def in_proportion(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """For linear operations of one input: the rules of sums, or the gradient."""
    if isinstance(rule, rules.Gradient):
        return gradient(walk, node, R)
    assert isinstance(rule, (rules.Norm, rules.Epsilon))
    x = node.sources[0]
    stabilizer = Stabilizer.ensure(rule.stabilizer)
    relevance, ledger = weightless.norm(walk.alone(node, x), walk.values[x], R, stabilizer)
    return Share({x: relevance}, ledger)


def carry_back(walk: Walk, node: Node, rule: None, R: Tensor) -> Share:
    """For operations that copy entries: the derivative is the copy's inverse; what constants filled in, they keep."""
    if not node.output.is_float:
        return Share(id_moves.through(walk.values, node, R), nothing_kept(R))
    sent, ledger = gradient(walk, node, R).relevance, nothing_kept(R)
    ledger.bias = total(R) - torch.stack([total(r) for r in sent.values()]).sum(0)
    return Share(sent, ledger)


def unchanged(node: Node, R: Tensor) -> Share:
    """For the rule that passes relevance on as it is."""
    return Share({node.sources[0]: R}, nothing_kept(R))


def all_to(node: Node, operands: Sequence[Any], R: Tensor) -> Share:
    """For an operand that gets all of it as it is: the first of these, if there is one and it depends on the input.

    Otherwise the ledger has it, among the biases.
    """
    kept = nothing_kept(R)
    if operands and operands[0] in node.sources:
        return Share({operands[0]: R}, kept)
    kept.bias = total(R)
    return Share({}, kept)


def stabilizer_of(sums: rules.Rule) -> float | Stabilizer:
    """The stabilizer of a preset's rule for sums."""
    found: float | Stabilizer = getattr(sums, "stabilizer", 1e-6)
    return found
