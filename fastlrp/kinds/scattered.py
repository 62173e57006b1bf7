"""The largest or smallest of what is written to a place, ``scatter_reduce`` with ``amax`` or ``amin``: it takes all.

Equal entries share in equal parts, as PyTorch's own derivative does. What a place held before, and no value of it was
larger, keeps its relevance, or loses it where it is a constant. Where the values are written to is a condition.

Source: winner takes all, Bach et al. 2015; the same choice as at max-pools.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds import textbook, write
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.reference.redistribution import total


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """To the chosen entries; what flows per unit of activation stays as it is, since an entry is the result."""
    if not isinstance(rule, (rules.Pass, rules.Gradient)):
        raise TypeError(f"{rule} is not defined for {node}: use Pass (the chosen entry takes all) or Gradient")
    write.lower_places(b, node, flow)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step: the derivative of a choice is the choice; where a constant is chosen, it keeps all."""
    sent = textbook.gradient(walk, node, R).relevance
    if isinstance(rule, rules.Gradient):
        return Share(sent, None)
    ledger = textbook.nothing_kept(R)
    ledger.bias = total(R) - torch.stack([total(r) for r in sent.values()]).sum(0)
    return Share(sent, ledger)


KIND = Kind("scattered", "", lower, through, preset=lambda sums: rules.Pass())  # Its operation adds up, but for these.
