"""Coefficients of a wide last layer, made of its output when targets come, and not kept.

A language model's scores are ``(B, S, V)`` with V of 50,000 and more, and a target is one of them. There the
coefficient ``1 / st(z)`` is computed at the targets' own places; a record that kept it for all would hold as much again
as the scores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products.transposes import transpose
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.ups import up_through
from fastlrp.targets.one_hot import OneHot


def is_late(b: Builder, layer: AffineLayer, flow: Flow, u: int | None, v: int | None) -> bool:
    """True for a dense layer with positions at the top whose one coefficient is made of its output, entry by entry."""
    made = _maker(b, u)
    if v is not None or made is None or layer.node.kind != "linear" or len(layer.x.shape) < 3:
        return False
    by_entry = made.part is not None and made.part.arguments[0] == "epsilon"
    return by_entry and made.ins == (layer.y.index,) and flow.register in _hot(b)


def send_late(b: Builder, layer: AffineLayer, flow: Flow, u: int) -> None:
    """One product with the weight, or rows of it; the cached coefficient is not read, and so not made."""
    made = _maker(b, u)
    assert made is not None
    coefficients, weight = made.run, layer.weight
    product = transpose(b, layer, weight, None, False, multiply=False)
    rows = b.operation("linear_one_hot_relevance")

    forward = up_through(b, layer, weight, None, False)

    def up(t: Tensor, z: Tensor) -> Tensor:
        return forward(t, coefficients(z)[0], None, False)

    def up_at(positions: Tensor, t: Tensor, z: Tensor) -> Tensor:
        own = t.flatten(2, -2).index_select(2, positions)
        return up(own, z.flatten(1, -2).index_select(1, positions))

    def rows_or_product(relevance: Tensor | OneHot, z: Tensor) -> Any:
        if not isinstance(relevance, OneHot):
            return product(relevance, coefficients(z)[0], None, False)
        batch, places = relevance.index.shape[0], relevance.index.flatten(1)
        found = coefficients(z.flatten(1).gather(1, places))[0].view(relevance.index.shape)
        ones: Any = torch.ones((), dtype=z.dtype, device=z.device).expand(batch, *relevance.sizes)
        return replace(relevance, value=relevance.value * found).through(rows, weight, ones)

    b.slot_bytes[u] = 0
    register = b.step(
        rows_or_product, [flow.register], [layer.y.index], layer.x.numel, layer.work, accepts_one_hot=True, fresh=True,
        by_position=True, takes_bf16=layer.choice.is_reduced, up=up, up_at=up_at,
    )  # fmt: skip
    b.send(layer.x, Flow(register, Factor(layer.x)))


def _maker(b: Builder, slot: int | None) -> Any:
    """The step that fills a slot."""
    return next((step for step in reversed(b.forward) if slot in step.outs), None)


def _hot(b: Builder) -> set[int]:
    """Registers that may hold targets as they came in."""
    hot = {b.top}
    for step in b.backward:
        if step.keeps_one_hot and not hot.isdisjoint(step.ins):
            hot.update(step.outs)
    return hot
