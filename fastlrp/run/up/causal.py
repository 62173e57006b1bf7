"""How many groups go up at once under causal order, and what is left of the work then.

A block of groups begins at the first position of all of them (:mod:`fastlrp.run.up.tails`): the fewer groups in a
block, the more is left out, and the smaller the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastlrp.aten._attention_up import hides_later
from fastlrp.capture.graph import Constant, Value
from fastlrp.groups import Resolved
from fastlrp.plan.steps import BackwardStep
from fastlrp.run.up.ascent import Route

BLOCKS = 8
"""So many blocks leave out all but 1/16 of what causal order can save."""

FEWEST_ROWS, MOST_ROWS = 512, 2048
"""Rows of one product, groups times positions, between which blocks are made that small. GPT-2, 128 tokens: 1,024 and
2,048 rows take the same time (AMD EPYC, 9.9 and 9.7 s of one core), with 512 the products are slower than what they
save."""

UNLIMITED = 1 << 30


def positions(step: BackwardStep) -> int:
    """Of a step that treats its operand position by position; 0 for others."""
    sizes = step.node.output.sizes if step.node is not None else ()
    if step.up_from is not None and len(sizes) > 1:
        return sizes[-2]
    return sizes[0] if step.by_position and step.up is not None and len(sizes) > 1 else 0


def at_once(path: Route, count: int) -> list[int]:
    """How many groups each step takes at most so that causal order saves what it can."""
    if not any(step.up_from is not None for step in path.steps):
        return [UNLIMITED] * len(path.steps)
    return [_size(positions(step), count) if step.work > step.numel else UNLIMITED for step in path.steps]


def _size(whole: int, count: int) -> int:
    if whole == 0:
        return UNLIMITED
    return max(-(-FEWEST_ROWS // whole), min(-(-MOST_ROWS // whole), -(-count // BLOCKS)))


def share_left(path: Route, resolved: Resolved, state: Sequence[Any]) -> float:
    """The part of the work over positions that is left where all attention is causal; 1 where it is not."""
    attention = [step for step in path.steps if step.up_from is not None]
    firsts: Tensor | None = resolved.firsts if attention else None
    if firsts is None or not all(_is_causal(step, state) for step in attention):
        return 1.0
    whole, size = positions(attention[0]), _size(positions(attention[0]), resolved.count)
    begins = firsts.sort()[0].clamp(max=whole)
    computed = sum((whole - int(block[0])) * len(block) for block in begins.split(size))
    return computed / max(1, whole * resolved.count)


def _is_causal(step: BackwardStep, state: Sequence[Any]) -> bool:
    """Whether no query sees a later key, by the node's own word or as its mask says."""
    if step.node is None:
        return False
    mask = step.node.attributes.get("mask")
    mask = state[mask.index] if isinstance(mask, Value) else mask.tensor() if isinstance(mask, Constant) else mask
    queries = positions(step)
    return bool(step.node.attributes.get("causal")) or hides_later(mask, queries, queries)
