"""Attention whose heads have rules of their own: what arrives at each head goes on by that head's rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.kinds.head_numbers import heads_of
from fastlrp.kinds.textbook import Share, Walk, nothing_kept
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.reference.redistribution import Ledger, total


def lower_each(b: Builder, node: Node, rule: rules.Heads, flow: Flow, lower: Callable[..., None]) -> None:
    """One masked register for each rule, which ``lower`` sends on as if it came to all heads."""
    for own, heads in _parts(node, rule):
        mask = _mask(node, heads)

        def of_these_heads(f: Tensor, mask: Tensor = mask) -> Tensor:
            return f * mask.to(device=f.device, dtype=f.dtype)

        register = b.step(of_these_heads, [flow.register], [], node.output.numel, fresh=True, up=of_these_heads)
        lower(b, node, own, Flow(register, flow.factor))


def through_each(
    walk: Walk, node: Node, rule: rules.Heads, R: Tensor, through: Callable[[Walk, Node, Any, Tensor], Share]
) -> Share:
    """The textbook step: the sum over the rules of their heads' share; heads without a rule keep theirs."""
    found: dict[Value, Tensor] = {}
    ledger: Ledger | None = nothing_kept(R)
    left = R
    for own, heads in _parts(node, rule):
        part = torch.where(_mask(node, heads).to(R.device) > 0, R, 0.0)
        left = left - part
        share = through(walk, node, own, part)
        for x, relevance in share.relevance.items():
            found[x] = found[x] + relevance if x in found else relevance
        ledger = _sum(ledger, share.ledger)
    if ledger is not None:
        ledger.dead = ledger.dead + total(left)
    return Share(found, ledger)


def _sum(first: Ledger | None, second: Ledger | None) -> Ledger | None:
    """None where what flows through one of the heads is no relevance."""
    if first is None or second is None:
        return None
    return Ledger(first.bias + second.bias, first.stabilizer + second.stabilizer, first.dead + second.dead)


def _parts(node: Node, rule: rules.Heads) -> Iterator[tuple[rules.Rule, tuple[int, ...]]]:
    sizes = node.output.sizes
    if len(sizes) < 3:
        raise TypeError(
            f"{rule} at {node}: its result has the sizes {tuple(sizes)} of one sample, without an axis of heads before "
            "positions and channels"
        )
    try:
        yield from rule.parts(int(heads_of(node).max()) + 1)
    except ValueError as error:
        raise ValueError(f"{rule} at {node}: {error}") from None


def _mask(node: Node, heads: tuple[int, ...]) -> Tensor:
    """1 at entries of these heads, ``(H, 1, 1)`` or as the layout wants it."""
    return torch.isin(heads_of(node), torch.tensor(heads, dtype=torch.long)).float()
