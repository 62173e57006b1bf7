"""LRP-flat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.input_terms import (
    constant_shares,
    forms_shares_in_float32,
    is_fused_input,
    send_flat,
    send_product,
)
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.narrow import in_float32, wide
from fastlrp.plan.products.transposes import transpose
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply
from fastlrp.plan.ups import products_up
from fastlrp.reference.redistribution import Affine, Ledger, Stabilize, part_of, redistribute
from fastlrp.rules.rule import PoolShares, WeightRule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Flat(WeightRule):
    """LRP-flat: each output's relevance in equal shares to all inputs it sees, ``R_i = sum_j 1 / st(sum_i 1) R_j``.

    Args:
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.

    Example::

        relevance = record.under(composites.uniform(rules.Flat())).relevance("top1")

    Source: Lapuschkin et al. 2019.
    """

    stabilizer: float | Stabilizer = 1e-6

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        return textbook(layer, x, R, Stabilizer.ensure(self.stabilizer))

    def at_pools(self) -> PoolShares:
        return "equal"

    def lower(self, b: Builder, layer: AffineLayer, flow: Flow) -> None:
        weight, fused = torch.ones_like(layer.weight), is_fused_input(b, layer)
        exact = forms_shares_in_float32(b) and not fused
        u = constant_shares(b, layer, flow, Stabilizer.ensure(self.stabilizer), wide(weight), None, exact=exact)
        weight = wide(weight) if exact else weight
        if fused:
            send_flat(b, layer, flow, u)
        elif layer.node.kind == "conv" and layer.geometry.groups == 1:
            _send_box_filter(b, layer, flow, weight, u, exact)
        elif layer.node.kind == "linear":
            _send_sum(b, layer, flow, u, exact)
        else:
            send_product(b, layer, flow, weight, u, exact)


def textbook(layer: Affine, x: Tensor, R: Tensor, st: Stabilize) -> tuple[Tensor, Ledger]:
    """LRP-flat: ``R_i = sum_j 1 / st(sum_i 1) R_j`` over the inputs that output ``j`` sees (not padding); no bias.

    Source: Lapuschkin et al. 2019.
    """
    part = part_of(layer, torch.ones_like(layer.weight), torch.ones_like(x))
    return redistribute([part], None, R, st)


def _send_box_filter(b: Builder, layer: AffineLayer, flow: Flow, weight: Tensor, u: int, exact: bool) -> None:
    """All input channels get the same: the sum over output channels comes first, then one box filter."""
    x = layer.x
    narrow = transpose(b, layer, weight[:1, :1], None, signed=False, multiply=False)

    def box_filter(flow: Tensor, u: Tensor) -> Tensor:
        summed = (flow * u.unsqueeze(1)).sum(2, keepdim=True)
        unit = summed.new_ones(1).expand(summed.shape[0], *summed.shape[2:])
        return layer.to_inputs(narrow(summed, unit, None, None)).expand(-1, -1, x.sizes[0], *x.sizes[1:])

    through_box = products_up(layer, weight[:1, :1], None, signed=False)

    def up(t: Tensor, u: Tensor) -> Tensor:
        summed = layer.to_inputs(t).sum(2, keepdim=True)
        unit = summed.new_ones(1).expand(summed.shape[0], 1, *layer.y.sizes[1:])
        return multiply(through_box(summed, unit, None, None), u)

    run, back = (in_float32(box_filter, b.dtype), in_float32(up, b.dtype)) if exact else (box_filter, up)
    b.send(x, Flow(b.step(run, [flow.register], [u], x.numel, up=back)))


def _send_sum(b: Builder, layer: AffineLayer, flow: Flow, u: int, exact: bool) -> None:
    """All inputs of a linear layer get the same, one sum over its outputs: relevance of both signs, which cancels."""

    def summed(flow: Tensor, u: Tensor) -> Tensor:
        return multiply(flow, u).sum(-1, keepdim=True).expand(*flow.shape[:-1], layer.x.sizes[-1])

    def up(t: Tensor, u: Tensor) -> Tensor:
        return multiply(t.sum(-1, keepdim=True), u)

    run, back = (in_float32(summed, b.dtype), in_float32(up, b.dtype)) if exact else (summed, up)
    b.send(layer.x, Flow(b.step(run, [flow.register], [u], layer.x.numel, up=back)))
