"""Relevance through a convolution, standard or transposed, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastlrp.reference.linear import check_input
from fastlrp.reference.pool import pool_max_relevance
from fastlrp.reference.redistribution import ordinary

_CONV: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def conv_relevance(
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """``c = W^T (u F) + W+^T (v F)``, and ``x c`` when ``multiply``; ``W^T`` is the transpose of the convolution.

    With ``signed`` the second term knows the sign of the input: ``[x > 0] W+^T (v F) + [x < 0] W-^T (v F)``.
    A term whose coefficient is None is left out. ``S`` and ``S'`` are one to three spatial sizes.

    Args:
        relevance: ``F``, what flows down, ``(B, K, Co, *S')``.
        weight: ``W``, ``(Co, Ci / groups, *k)``; transposed: ``(Ci, Co / groups, *k)``.
        u, v: coefficients ``(B, Co, *S')`` or None; at least one is given.
        input: ``x``, ``(B, Ci, *S)``; needed by ``signed`` (where ``v`` is given) and by ``multiply``.
        weight_positive: ``max(W, 0)`` for backends that keep it; the definition makes its own.
        input_size: ``S``.
        stride, padding, dilation, output_padding: one number per spatial axis, as in ``torch.nn.functional``;
            ``output_padding`` is used by transposed convolutions only.
        transposed: whether the layer is a transposed convolution.
        groups: number of groups.
        signed: whether the input may be negative.
        multiply: return ``x c`` (relevance) instead of ``c`` (relevance per unit of activation).

    Returns:
        ``(B, K, Ci, *S)`` in the dtype of ``relevance``; computed in float64.

    Raises:
        ValueError: if ``u`` and ``v`` are both None, or ``input`` is needed and None.

    Source: DESIGN.md, section 3.1; Bach et al. 2015, eq. 56 to 60.
    """
    check_input(v, input, signed, multiply)
    flow = relevance.double()
    kernel = weight.double()
    batch, targets = flow.shape[:2]
    channels = kernel.shape[0] if transposed else kernel.shape[1] * groups
    x = None if input is None else input.double().unsqueeze(1)

    def forward(images: Tensor, w: Tensor) -> Tensor:
        if transposed:
            apply = _CONV_TRANSPOSE[len(input_size)]
            return apply(images, w, None, stride, padding, output_padding, groups, dilation)
        return _CONV[len(input_size)](images, w, None, stride, padding, dilation, groups)

    def transpose(w: Tensor, s: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.zeros(batch * targets, channels, *input_size, dtype=torch.float64, device=flow.device)
            images.requires_grad_(True)
            (gradient,) = torch.autograd.grad(forward(images, ordinary(w)), images, ordinary(s).flatten(0, 1))
        return gradient.reshape(batch, targets, *gradient.shape[1:])

    c = torch.zeros(batch, targets, channels, *input_size, dtype=torch.float64, device=flow.device)
    if u is not None or v is None:
        c = c + transpose(kernel, flow if u is None else u.double().unsqueeze(1) * flow)
    if v is not None:
        s = v.double().unsqueeze(1) * flow
        positive = transpose(kernel.clamp(min=0), s)
        if signed and x is not None:
            negative = transpose(kernel.clamp(max=0), s)
            c = c + torch.where(x > 0, positive, 0.0) + torch.where(x < 0, negative, 0.0)
        else:
            c = c + positive
    if multiply and x is not None:
        c = x * c
    return c.to(relevance.dtype)


def conv_unpooled_relevance(
    relevance: Tensor,
    index: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    unpooled_size: list[int],
    pool_kernel: list[int],
    pool_stride: list[int],
    pool_padding: list[int],
    pool_dilation: list[int],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """Relevance through a convolution and the max-pool after it: :func:`conv_relevance` of ``pool_max_relevance``.

    What arrives at the convolution is what each window gives to its winner,
    ``F[b, k, c, index[b, c, j]] += R[b, k, c, j]``.

    Args:
        relevance: ``R``, what flows into the pool from above, ``(B, K, Co, *P)``.
        index: ``(B, Co, *P)`` int64, flat position of each window's winner in ``S'``; it lies inside the window.
        weight: ``W``, ``(Co, Ci / groups, *k)``.
        u, v: coefficients ``(B, Co, *S')`` or None; at least one is given.
        input: ``x``, ``(B, Ci, *S)``; needed by ``signed`` (where ``v`` is given) and by ``multiply``.
        weight_positive: ``max(W, 0)`` for backends that keep it.
        unpooled_size: ``S'``, output size of the convolution and input size of the pool.
        pool_kernel, pool_stride, pool_padding, pool_dilation: of the pool, one number per spatial axis; backends that
            do not make the map of size ``S'`` find the windows of a position with them.
        input_size: ``S``.
        stride, padding, dilation, groups, signed, multiply: as in :func:`conv_relevance`.

    Returns:
        ``(B, K, Ci, *S)`` in the dtype of ``relevance``; computed in float64.

    Raises:
        ValueError: if ``u`` and ``v`` are both None, or ``input`` is needed and None.

    Source: as of its two parts.
    """
    unpooled = pool_max_relevance(relevance.double(), index, None, unpooled_size)
    geometry = (input_size, stride, padding, dilation, False, [0] * len(input_size), groups)
    result = conv_relevance(unpooled, weight, u, v, input, weight_positive, *geometry, signed, multiply)
    return result.to(relevance.dtype)
