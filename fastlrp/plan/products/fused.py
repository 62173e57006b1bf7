"""Layers whose backend makes coefficient, product and factor in one pass, as kernels of a GPU do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastlrp.backends.dispatch import FUSED
from fastlrp.plan.builder import Builder
from fastlrp.plan.geometry import PoolGeometry
from fastlrp.plan.layer import AffineLayer


def is_fused(b: Builder, layer: AffineLayer) -> bool:
    """Whether the layer's relevance goes down by such a kernel."""
    return b.backend_of("linear_relevance" if layer.node.kind == "linear" else "conv_relevance") in FUSED


def for_kernel(b: Builder, layer: AffineLayer, weight: Any) -> Any:
    """A convolution's weight with its outputs innermost, as tensor cores want float32: a product sums over them."""
    if weight is None or layer.node.kind != "conv" or not is_fused(b, layer):
        return weight
    outputs = 1 if layer.geometry.transposed else 0
    return weight.movedim(outputs, -1).contiguous().movedim(-1, outputs)


def unpooled_transpose(
    b: Builder, layer: AffineLayer, weight: Tensor, weight_positive: Tensor | None, signed: bool
) -> Callable[..., Tensor] | None:
    """``(pooled register, index, pool's geometry, u, v, input) -> c`` below a max-pool, if a kernel does both."""
    fits = layer.node.kind == "conv" and not layer.geometry.transposed
    if not fits or b.backend_of("conv_unpooled_relevance") not in FUSED:
        return None
    relevance = b.operation("conv_unpooled_relevance")
    stride, padding, dilation, _, _, groups = layer.geometry.arguments
    sizes = list(layer.y.sizes[1:]), list(layer.x.sizes[1:])
    weight, part = for_kernel(b, layer, weight), for_kernel(b, layer, weight_positive)

    def unpooled_transposed(
        flow: Tensor, index: Tensor, pool: PoolGeometry, u: Tensor | None, v: Tensor | None, x: Any
    ) -> Tensor:
        given, split = (None, False) if x is False else (x, signed)
        positive = None if u is not None else part
        result: Tensor = relevance(
            flow, index, weight, u, v, given, positive, sizes[0], *pool.arguments, sizes[1], stride, padding,
            dilation, groups, split, False,
        )  # fmt: skip
        return result

    return unpooled_transposed
