"""Coefficients of the affine rules, and how their two terms make relevance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_MAX_POOLS: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    3: functional.max_pool1d_with_indices,
    4: functional.max_pool2d_with_indices,
    5: functional.max_pool3d_with_indices,
}
"""By the number of axes of (B, C, *S)."""


def combine(
    product: Callable[[Any, Tensor], Tensor],
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    signed: bool,
    multiply: bool,
    joint: bool = False,
) -> Tensor:
    """``c = W^T(uF) + 1[x>0] W+^T(vF) + 1[x<0] W-^T(vF)``, times ``x`` if ``multiply``.

    ``product(coefficient, weight)`` is the layer's transposed product with the scaled relevance; with None, where
    neither u nor v is given, that with the relevance as it is. ``joint``: W+ and W- go through
    one product side by side along axis 1 of the weight (input channels) and axis 2 of the result.
    """
    result = product(u, weight) if u is not None or v is None else None
    if v is not None:
        positive = weight.clamp(min=0) if weight_positive is None else weight_positive
        if signed:
            assert input is not None, "a signed layer needs its input"
            sign = input.unsqueeze(1)
            if joint:
                above, below = product(v, torch.cat([positive, weight - positive], 1)).chunk(2, 2)
            else:
                above, below = product(v, positive), product(v, weight - positive)
            term = torch.where(sign > 0, above, below).masked_fill_(sign == 0, 0)
        else:
            term = product(v, positive)
        result = term if result is None else result.add_(term)
    assert result is not None
    if multiply:
        assert input is not None, "multiply needs the layer's input"
        result.mul_(input.unsqueeze(1))
    return result


def _reciprocal(z: Tensor, epsilon: float) -> Tensor:
    """``1 / (z + epsilon * sgn z)``; ``1/0 := 0`` when ``epsilon`` is 0."""
    if epsilon == 0:
        return torch.where(z == 0, 0.0, z.reciprocal())
    return torch.where(z < 0, z - epsilon, z + epsilon).reciprocal_()


def elementwise_coefficients(
    z: Tensor,
    positive: Tensor | None,
    negative: Tensor | None,
    factor: Tensor | None,
    rule: str,
    alpha: float,
    epsilon: float,
) -> tuple[Tensor | None, Tensor | None]:
    """The two coefficients of a rule; see :func:`fastlrp.reference.elementwise.elementwise_coefficients`."""
    if z.dtype in (torch.float16, torch.bfloat16):  # 1 / epsilon is infinite in float16: only the quotient need fit.
        p, n, f = (None if t is None else t.float() for t in (positive, negative, factor))
        found = elementwise_coefficients(z.float(), p, n, f, rule, alpha, epsilon)
        u, v = (None if t is None else t.to(z.dtype) for t in found)
        return u, v

    def scaled(value: Tensor) -> Tensor:
        # A zero factor silences the neuron even where 1/z overflows.
        return value if factor is None else torch.where(factor == 0, 0.0, value * factor)

    if rule == "epsilon":
        return scaled(_reciprocal(z, epsilon)), None
    if rule == "zplus":
        assert positive is not None
        inverse = _reciprocal(positive, epsilon)
        return None, scaled(inverse if alpha == 1 else inverse.mul_(alpha))
    if rule == "gamma":
        assert positive is not None
        assert negative is not None
        gamma = alpha
        inverse = scaled(_reciprocal(z + gamma * torch.where(z > 0, positive, negative), epsilon))
        inverse.masked_fill_(z == 0, 0)
        below = z < 0
        share = gamma * inverse
        return torch.where(below, (1 + gamma) * inverse, inverse), torch.where(below, -share, share)
    raise ValueError(f"unknown rule {rule!r}: expected epsilon, zplus or gamma")


def elementwise_pooled_coefficients(
    z: Tensor,
    positive: Tensor | None,
    negative: Tensor | None,
    rule: str,
    alpha: float,
    epsilon: float,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """See :func:`fastlrp.reference.elementwise.elementwise_pooled_coefficients`."""
    a = z.clamp(min=0)
    u, v = elementwise_coefficients(z, positive, negative, a, rule, alpha, epsilon)
    images = a if len(a) else a.new_zeros(1, *a.shape[1:])  # max_pool1d takes no empty batch
    pooled, index = _MAX_POOLS[z.dim()](images, kernel_size, stride, padding, dilation, ceil_mode)
    return pooled[: len(a)], index[: len(a)], u, v
