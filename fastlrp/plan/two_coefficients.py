"""The steps of rules in two-coefficient form, for layers with a weight: convolution, linear, batch norm.

``R_in = x * W^T(uR) + x+ * W+^T(vR) + x- * W-^T(vR)`` with the coefficients that :mod:`fastlrp.plan.coefficients`
makes; what leaves is ``c = R_in / x``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten import _product
from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import Coefficients, goes_in_float32
from fastlrp.plan.input_terms import Term, is_fused_input, send_from_input, split_terms
from fastlrp.plan.late import is_late, send_late
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.narrow import in_float32, wide
from fastlrp.plan.products import point
from fastlrp.plan.products.fused import unpooled_transpose
from fastlrp.plan.products.sparse_form import sparse_form
from fastlrp.plan.products.transposes import plain_products, transpose
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.ups import up_through
from fastlrp.targets.one_hot import AtPositions, OneHot


def send_two_coefficients(b: Builder, layer: AffineLayer, flow: Flow, found: Coefficients, signed: bool) -> None:
    """One or two products with the weight, for a block of targets at once. ``signed``: the input may be negative."""
    x = layer.x
    u, v, weight = found.u, found.v, found.weight
    if u is None and v is None:
        if layer.node.kind == "linear":
            _send_plain(b, layer, flow, weight)
            return
        u = b.cache(torch.ones_like, [layer.y.index], layer.y.numel, key=("ones", layer.node))
    if u is not None and weight is layer.weight and is_late(b, layer, flow, u, v):
        send_late(b, layer, flow, u)
        return
    split = found.splits and signed
    positive = None
    if v is not None:
        positive = layer.positive if weight is layer.weight else weight.clamp(min=0)
    exact = goes_in_float32(b, layer, flow)
    for_product = (wide(weight), wide(positive)) if exact else (weight, positive)
    product = transpose(b, layer, for_product[0], for_product[1], split, multiply=False, bounded=found.bounded)
    in_full = point.in_full(product)
    # Without positions two coefficients are the sparse kernels' matter.
    one_hot = layer.node.kind == "linear" and (v is None or len(x.shape) > 2)
    if one_hot:
        product = _rows_or(b, product, for_product[0])
    up = up_through(b, layer, for_product[0], for_product[1], split)
    at = _at_positions(up) if one_hot and len(x.shape) > 2 else None
    product, up = (in_float32(product, b.dtype), in_float32(up, b.dtype)) if exact else (product, up)
    sign = b.sign_slot(x) if split else None
    products = [(weight, slot, splits) for slot, splits in ((u, False), (v, True)) if slot is not None]
    gamma = found.gamma if len(products) == 2 else None
    form = None if exact else sparse_form(b, layer, products, sign, gamma=gamma, bounded=found.bounded)
    if is_fused_input(b, layer):
        terms: list[Term] = [] if u is None else [(weight, u, x.index)]
        if v is not None:
            assert positive is not None
            terms += split_terms(b, layer, weight, positive, v) if split else [(positive, v, x.index)]
        # Without the sparse form, which makes c and not relevance itself.
        send_from_input(b, layer, flow, terms, None)
        return
    unpooled = None if exact else unpooled_transpose(b, layer, weight, positive, split)
    slots = [u, v, sign]
    times = layer.factor_of(found.bounded, split)
    if times is not None:
        slots, up, unpooled = [*slots, times], without_last(up), unpooled and without_last(unpooled)
    full = not exact and not layer.choice.is_reduced
    over = _writing_over(product, weight) if layer.node.kind == "linear" and v is None and full else {}
    register = b.step(
        product, [flow.register], slots, x.numel, layer.work * len(products), form, unpooled=unpooled,
        accepts_one_hot=one_hot, fresh=layer.node.kind == "linear", overwrites=over,
        by_position=layer.node.kind == "linear" and len(x.shape) > 2, up=up, up_at=None if exact else at,
        takes_bf16=layer.choice.takes_bf16 and not layer.goes_filtered(found.bounded, split), in_full=in_full,
    )  # fmt: skip
    b.send(x, Flow(register, Factor(x)))


def _send_plain(b: Builder, layer: AffineLayer, flow: Flow, weight: Tensor) -> None:
    """The product of a linear layer alone, where nothing is to be multiplied."""
    product, up = plain_products(layer, weight)
    register = b.step(
        product, [flow.register], [], layer.x.numel, layer.work, fresh=True,
        by_position=len(layer.x.shape) > 2, takes_bf16=layer.choice.is_reduced, up=up,
    )  # fmt: skip
    b.send(layer.x, Flow(register, Factor(layer.x)))


def send_gradient(b: Builder, layer: AffineLayer, flow: Flow) -> None:
    """The layer's own gradient, ``W^T`` alone."""
    x, y = layer.x, layer.y
    factor = b.slot_of(flow.factor)
    if layer.node.kind == "batch_norm":
        scale = layer.weight
        if factor is None:
            slot = b.cache(lambda y: scale.expand(y.shape), [y.index], x.numel)
        else:
            slot = b.cache(lambda f: f * scale, [factor], x.numel)
        b.send(x, Flow(flow.register, Factor(None, slot)))
        return
    ones = b.cache(torch.ones_like, [y.index], y.numel) if factor is None else factor
    even = y not in b.uneven
    transposed = transpose(b, layer, layer.weight, None, signed=False, multiply=False, bounded=even)
    one_hot = layer.node.kind == "linear"
    if one_hot:
        transposed = _rows_or(b, transposed, layer.weight)
    form = sparse_form(b, layer, [(layer.weight, ones, False)], bounded=even)
    slots = [ones, None, None]
    up = up_through(b, layer, layer.weight, None, signed=False)
    at = _at_positions(up) if one_hot and len(x.shape) > 2 else None
    register = b.step(
        transposed,
        [flow.register],
        slots,
        x.numel,
        layer.work,
        form,
        accepts_one_hot=one_hot,
        up=up,
        up_at=at,
        takes_bf16=layer.choice.takes_bf16 and not layer.goes_filtered(even, signed=False),
    )
    b.send(x, Flow(register))


def scale_batch_norm(b: Builder, layer: AffineLayer, flow: Flow, found: Coefficients) -> None:
    """A batch norm that stands alone: each output has one input, so the whole rule is a cached factor."""
    u, v, weight = found.u, found.v, found.weight
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)

    def scale_of(x: Tensor, u: Tensor | None, v: Tensor | None) -> Tensor:
        result = (weight.expand_as(x) if v is None else 0.0) if u is None else u * weight
        if v is not None:
            result = result + v * torch.where(x > 0, positive, torch.where(x < 0, negative, 0.0))
        assert isinstance(result, Tensor)
        return result

    present = [slot for slot in (u, v) if slot is not None]

    def scales(x: Tensor, *rest: Tensor) -> Tensor:
        tensors = iter(rest)
        return scale_of(x, None if u is None else next(tensors), None if v is None else next(tensors))

    scale = b.cache(scales, [layer.x.index, *present], layer.x.numel)
    b.send(layer.x, Flow(flow.register, Factor(layer.x, scale)))


def without_last(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for an operand more, which is not read."""
    return lambda *operands: call(*operands[:-1])


def _at_positions(up: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of a linear layer ``(B, *L, I) -> (B, *L, O)`` the way up at some positions alone."""

    def up_at(positions: Tensor, t: Tensor, u: Tensor | None, v: Tensor | None, x: Any) -> Tensor:
        own = t.flatten(2, -2).index_select(2, positions)
        chosen = [
            tensor.flatten(1, -2).index_select(1, positions) if isinstance(tensor, Tensor) else tensor
            for tensor in (u, v, x)
        ]
        return up(own, *chosen)

    return up_at


def _writing_over(product: Callable[..., Tensor], weight: Tensor) -> dict[int, Callable[..., Tensor]]:
    """``product`` with one coefficient, which on a CPU is multiplied into the register where nobody else reads that."""

    def scaled_in_place(flow: Tensor | OneHot, u: Tensor, v: Tensor | None, x: Any) -> Any:
        if isinstance(flow, OneHot) or flow.device.type != "cpu" or flow.dtype != u.dtype:
            return product(flow, u, v, x)
        return _product.product(flow.mul_(u.unsqueeze(1)), weight)

    return {0: scaled_in_place}


def _rows_or(b: Builder, product: Callable[..., Tensor], weight: Tensor) -> Callable[..., Any]:
    """A one-hot target selects a row of W instead of multiplying by all of them.

    An input that is not None is one whose sign decides, False one that is known to be >= 0.
    """
    rows = b.operation("linear_one_hot_relevance")

    def rows_or_product(flow: Tensor | OneHot, u: Tensor | None, v: Tensor | None, x: Any) -> Tensor | AtPositions:
        if isinstance(flow, OneHot):
            return flow.through(rows, weight, u, v, None if x is False else x)
        return product(flow, u, v, x)

    return rows_or_product
