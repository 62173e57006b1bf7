"""The way up through a layer with a weight: ``u (W t) + v (W+ t)``, by kernels that multiply while they write.

That is the way down with input and output exchanged: ``x W^T F`` with the weight read the other way, where the
coefficient takes the place of the input. So the same kernels compute it, with the same tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten import _product
from fastlrp.aten._zeros import leading_zeros
from fastlrp.backends.dispatch import FUSED
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products import reduced
from fastlrp.plan.products.channels_last import channels_last


class TurnedWeight:
    """A weight as the way up reads it: a copy, made when it is first read and kept.

    Attributes:
        nbytes: of the copy; 0 where the weight itself will do.
    """

    def __init__(self, layer: AffineLayer, weight: Tensor, positive: bool = False) -> None:
        self._layer, self._weight, self._positive = layer, weight, positive
        self._made: Tensor | None = None
        self.nbytes = weight.nbytes if positive or layer.node.kind == "conv" else 0

    def __call__(self) -> Tensor:
        if self._made is None:
            with torch.no_grad():
                turned = _inputs_innermost(self._layer, self._weight)
                self._made = turned.clamp(min=0) if self._positive else turned
        return self._made


def up_through(
    b: Builder, layer: AffineLayer, weight: Tensor, weight_positive: Tensor | None, signed: bool
) -> Callable[..., Tensor]:
    """:func:`products_up`, by the selected backend where its kernels do all of it in one step."""
    composed = products_up(layer, weight, weight_positive, signed)
    scaled = None if layer.choice.is_reduced else _scaled_product(b, layer)
    if scaled is None:
        return composed
    whole = TurnedWeight(layer, weight)
    part = TurnedWeight(layer, weight, True) if weight_positive is None else TurnedWeight(layer, weight_positive)
    b.up_copies.setdefault(layer.node, []).extend((whole, part))

    def up(t: Tensor, u: Tensor | None, v: Tensor | None, x: Any) -> Tensor:
        if v is not None and signed and isinstance(x, Tensor):
            return composed(t, u, v, x)  # The sign of the input chooses the weight, before the sum.
        total = None if u is None else scaled(t, whole(), u)
        if v is None:
            assert total is not None, "u or v must be given"
            return total
        of_part = scaled(t, part(), v)
        return of_part if total is None else total.add_(of_part)

    return up


def products_up(
    layer: AffineLayer, weight: Tensor, weight_positive: Tensor | None, signed: bool
) -> Callable[..., Tensor]:
    """``(cotangent of c, u, v, input) -> cotangent of the register``: the transpose of :meth:`AffineLayer.transpose`.

    ``u (W t) + v (W+ t)``, with a signed input ``v (W+ (t where x > 0) + W- (t where x < 0))``: products as the
    layer's own, for all groups at once.
    """

    def full_product(t: Tensor, matrix: Tensor) -> Tensor:
        if layer.node.kind == "linear":
            return linear_of_groups(t, matrix)
        return layer.apply(channels_last(t.flatten(0, 1)), matrix, None).unflatten(0, t.shape[:2])

    def reduced_product(t: Tensor, matrix: Tensor) -> Tensor:
        return full_product(t.to(reduced.DTYPE), matrix).to(t.dtype)

    product = reduced_product if layer.choice.is_reduced else full_product
    if layer.choice.is_reduced:
        weight = layer.layouts.narrow(weight)
        weight_positive = None if weight_positive is None else layer.layouts.narrow(weight_positive)

    def up(t: Tensor, u: Tensor | None, v: Tensor | None, x: Any) -> Tensor:
        total = None if u is None else product(t, weight).mul_(u.unsqueeze(1))
        if v is None:
            assert total is not None, "u or v must be given"
            return total
        positive = weight.clamp(min=0) if weight_positive is None else weight_positive
        if x is False or x is None or not signed:
            part = product(t, positive)
        else:
            sign = x.unsqueeze(1)
            part = product(torch.where(sign > 0, t, 0), positive)
            part.add_(product(torch.where(sign < 0, t, 0), weight - positive))
        return part.mul_(v.unsqueeze(1)) if total is None else total.addcmul_(part, v.unsqueeze(1))

    return up


def linear_of_groups(t: Tensor, weight: Tensor) -> Tensor:
    """``t W^T``, ``(B, G, *L, I) -> (B, G, *L, O)``, without the first positions where all groups are zero.

    Under causal order a token's cotangent begins at its own position: half of all products.
    """
    before = leading_zeros(t, 2) if t.dim() > 3 and len(weight) >= LEAST_OUTPUTS else 0
    if before == 0:
        return _product.linear(t, weight, None)
    found = _product.linear(t.narrow(2, before, t.shape[2] - before), weight, None)
    return torch.nn.functional.pad(found, [0, 0] * (t.dim() - 3) + [before, 0])


LEAST_OUTPUTS = 32
"""With fewer outputs a look at the positions costs as much as the product."""


def _scaled_product(b: Builder, layer: AffineLayer) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """``(t, W, u) -> u (W t)``, or None where kernels do not multiply and sum in one step."""
    name = {"linear": "linear_relevance", "conv": "conv_relevance"}.get(layer.node.kind)
    if name is None or b.backend_of(name) not in FUSED:
        return None
    product = b.operation(name)
    if layer.node.kind == "linear":
        return lambda t, weight, u: product(t, weight.t(), None, None, u, None, False, True)
    stride, padding, dilation, transposed, _, groups = layer.geometry.arguments
    above, below, kernel = list(layer.y.sizes[1:]), layer.x.sizes[1:], layer.weight.shape[2:]
    # What windows leave over at the end of an input is the output padding of the transposed layer.
    axes = zip(below, above, stride, padding, dilation, kernel, strict=True)
    left = [0 if transposed else i - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for i, o, s, p, d, k in axes]
    turned = above, stride, padding, dilation, not transposed, left, groups
    return lambda t, weight, u: product(t, weight, None, None, u, None, *turned, False, True)


def _inputs_innermost(layer: AffineLayer, weight: Tensor) -> Tensor:
    """A convolution's weight with its inputs side by side in memory, over which this product sums."""
    if layer.node.kind != "conv":
        return weight
    inputs = 0 if layer.geometry.transposed else 1
    return weight.movedim(inputs, -1).contiguous().movedim(-1, inputs)
