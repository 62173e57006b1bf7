"""The rules at the input: zB, w2 and flat. They emit relevance itself, not relevance per unit of activation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.dispatch import FUSED
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer, same_layout
from fastlrp.plan.narrow import in_float32
from fastlrp.plan.products.sparse_form import sparse_form
from fastlrp.plan.products.transposes import transpose
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply
from fastlrp.plan.ups import products_up, up_through
from fastlrp.stabilizer import Stabilizer

MOST_TERMS = 3

FEW_CHANNELS = 8
"""Up to this many the kernels for a network's input take: its pixels, not its features."""

Term = tuple[Tensor, int, int | None]
"""``m * W^T (u F)``: weight, slot of the coefficient u, slot of the multiplier m or None for 1."""


def is_fused_input(b: Builder, layer: AffineLayer) -> bool:
    """Whether one kernel makes the relevance of a network's input: a convolution of few channels that reads it."""
    node, x = layer.node, layer.x
    if node.kind != "conv" or x.producer is not None or not 3 <= len(x.shape) <= 5:
        return False
    plain = layer.geometry.is_plain and x.sizes[0] <= FEW_CHANNELS
    return plain and b.backend_of("input_relevance") in FUSED


def split_terms(b: Builder, layer: AffineLayer, weight: Tensor, positive: Tensor, v: int) -> list[Term]:
    """``x+ * W+^T (v F) + x- * W-^T (v F)``."""
    x = layer.x
    above = b.cache(lambda x: x.clamp(min=0), [x.index], x.numel, key=("above", x))
    below = b.cache(lambda x: x.clamp(max=0), [x.index], x.numel, key=("below", x))
    return [(positive, v, above), (weight - positive, v, below)]


def send_from_input(b: Builder, layer: AffineLayer, flow: Flow, terms: Sequence[Term], form: Any) -> None:
    """Relevance of the network's input as a sum of terms, in one kernel; with its channels summed up where asked."""
    x = layer.x
    relevance = b.operation("input_relevance")
    stride, padding, dilation, _, _, groups = layer.geometry.arguments
    geometry = (list(x.sizes[1:]), stride, padding, dilation, groups)
    # Also what the sparse form reads, which may take this step's place: a record keeps what its steps name.
    read = [slot for _, u, m in terms for slot in (u, m) if slot is not None]
    slots = list(dict.fromkeys([*read, *(() if form is None else form.slots)]))
    # A kernel takes up to three terms; alpha-beta on an input of both signs has four.
    chunks = [terms] if len(terms) <= MOST_TERMS else [terms[:2], terms[2:]]

    def relevance_of_input(reduce: bool, flow: Tensor, *tensors: Tensor) -> Tensor:
        of = dict(zip(slots, tensors, strict=True))
        total: Tensor | None = None
        for chunk in chunks:
            weights, us, ms = zip(*chunk, strict=True)
            multipliers = [None if m is None else of[m] for m in ms]
            part = relevance(flow, list(weights), [of[u] for u in us], multipliers, *geometry, reduce)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def up(t: Tensor, *tensors: Tensor) -> Tensor:
        of, total = dict(zip(slots, tensors, strict=True)), None
        for weight, u, m in terms:
            product = products_up(layer, weight, None, signed=False)
            part = product(t if m is None else multiply(t, of[m]), of[u], None, None)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    work, reduced = len(terms) * layer.work, partial(relevance_of_input, True)
    run = partial(relevance_of_input, False)
    register = b.step(run, [flow.register], slots, x.numel, work, form, reduced=reduced, up=up)
    b.send(x, Flow(register))


def send_flat(b: Builder, layer: AffineLayer, flow: Flow, u: int) -> None:
    """Relevance of the network's input under the flat rule, in one kernel."""
    x = layer.x
    relevance = b.operation("input_flat_relevance")
    stride, padding, dilation, *_ = layer.geometry.arguments
    kernel, size = list(layer.weight.shape[2:]), list(x.sizes[1:])

    def relevance_of_input(reduce: bool, flow: Tensor, u: Tensor) -> Tensor:
        result: Tensor = relevance(flow, u, x.sizes[0], kernel, size, stride, padding, dilation, reduce)
        return result

    box = products_up(layer, torch.ones_like(layer.weight[:1, :1]), None, signed=False)

    def up(t: Tensor, u: Tensor) -> Tensor:
        summed = t.sum(2, keepdim=True)
        return multiply(box(summed, torch.ones_like(u[:, :1]), None, None), u)

    run, reduced = partial(relevance_of_input, False), partial(relevance_of_input, True)
    b.send(x, Flow(b.step(run, [flow.register], [u], x.numel, reduced=reduced, up=up)))


def constant_shares(
    b: Builder,
    layer: AffineLayer,
    flow: Flow,
    stabilizer: Stabilizer,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | float = 1.0,
    exact: bool = False,
) -> int:
    """Slot of ``factor / st(sum_i w_ij + b_j)``: denominators that do not depend on the input are constants of a plan.

    Weight and bias in float32 or wider, :func:`~fastlrp.plan.narrow.wide`, in which the shares stay if ``exact``.
    """
    ones = layer.of_each_input(torch.ones((), dtype=weight.dtype, device=weight.device)).contiguous()
    inverse = scale * stabilizer.reciprocal(layer.apply(ones, weight, bias))
    inverse = inverse if exact else inverse.to(layer.weight.dtype)
    factor = b.slot_of(flow.factor)

    def shares(read: Tensor) -> Tensor | None:
        return same_layout(layer, inverse.expand_as(read) if factor is None else read * inverse)

    ins = [layer.y.index if factor is None else factor]
    return b.cache(shares, ins, layer.y.numel, itemsize=weight.dtype.itemsize if exact else None)


def forms_shares_in_float32(b: Builder) -> bool:
    """Whether shares that do not depend on the input are formed in float32, as are products with them.

    Among hundreds of inputs each gets less of relevance than float16 holds, and all outputs together what it does.
    """
    return b.dtype == torch.float16


def send_product(b: Builder, layer: AffineLayer, flow: Flow, weight: Tensor, u: int, exact: bool = False) -> None:
    """``R_in = W^T(u F)``, not times the input; ``exact``: in float32."""
    product = transpose(b, layer, weight, None, signed=False, multiply=False)
    pads = "own_padding" in layer.node.attributes

    def to_inputs(*given: Any) -> Tensor:
        return layer.to_inputs(product(*given))

    transposed = to_inputs if pads else product
    form = None if exact or pads else sparse_form(b, layer, [(weight, u, False)])
    through, slots = up_through(b, layer, weight, None, signed=False), [u, None, None]

    def of_inputs(t: Tensor, *given: Any) -> Tensor:
        return through(layer.to_inputs(t), *given)

    up = of_inputs if pads else through
    if exact:
        transposed, up = in_float32(transposed, b.dtype), in_float32(up, b.dtype)
    place = [flow.register], slots, layer.x.numel, layer.work, form
    b.send(layer.x, Flow(b.step(transposed, *place, takes_bf16=layer.choice.is_reduced, up=up)))
