"""Relevance of a network's input: sums of transposed convolutions, each times something known of the input.

``F`` is what flows down, ``S`` and ``S'`` are one to three spatial sizes of input and output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp.reference.conv import conv_relevance


def input_relevance(
    relevance: Tensor,
    weights: list[Tensor],
    coefficients: list[Tensor],
    multipliers: list[Tensor | None],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    reduce: bool,
) -> Tensor:
    """``R = sum_j m_j W_j^T (u_j F)``, and with ``reduce`` its sum over channels; a multiplier of None is 1.

    ==============  =====================================  ==========================================
    rule            terms ``(W_j, u_j, m_j)``              coefficients
    ==============  =====================================  ==========================================
    zB              ``(W+, u, x - l), (W-, u, x - h)``     ``u = 1 / st(W+ (x - l) + W- (x - h))``
    w2              ``(W^2, u, None)``                     ``u = 1 / st(sum_i W_i^2 + b^2)``
    epsilon         ``(W, u, x)``                          ``u = 1 / st(W x + b)``
    z+, signed      ``(W+, v, x+), (W-, v, x-)``           ``v = 1 / st(W+ x+ + W- x- + b+)``
    ==============  =====================================  ==========================================

    Args:
        relevance: ``F``, ``(B, K, Co, *S')``.
        weights: ``W_j``, each ``(Co, Ci / groups, *k)``; one to three.
        coefficients: ``u_j``, each ``(B, Co, *S')``; one for each weight.
        multipliers: ``m_j``, each ``(B, Ci, *S)`` or None; one for each weight.
        input_size: ``S``.
        stride, padding, dilation: one number per spatial axis, of the layer's own convolution.
        groups: number of groups.
        reduce: sum over the channels of the input.

    Returns:
        ``(B, K, Ci, *S)``, with ``reduce`` ``(B, K, 1, *S)``, in the dtype of ``relevance``; computed in float64.

    Source: Montavon et al. 2017, eq. 12 (w2) and 13 (zB); Bach et al. 2015, eq. 58 and 60.
    """
    flow = relevance.double()
    geometry = (input_size, stride, padding, dilation, False, [0] * len(input_size), groups)
    channels = weights[0].shape[1] * groups
    total = torch.zeros(*flow.shape[:2], channels, *input_size, dtype=torch.float64, device=flow.device)
    for weight, u, m in zip(weights, coefficients, multipliers, strict=True):
        c = conv_relevance(flow, weight, u, None, None, None, *geometry, False, False)
        total = total + (c if m is None else m.double().unsqueeze(1) * c)
    if reduce:
        total = total.sum(dim=2, keepdim=True)
    return total.to(relevance.dtype)


def input_flat_relevance(
    relevance: Tensor,
    u: Tensor,
    channels: int,
    kernel_size: list[int],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    reduce: bool,
) -> Tensor:
    """``R = 1^T (u F)``, and with ``reduce`` its sum over channels: the transposed convolution with weights of one.

    All channels of the input get the same.

    Args:
        relevance: ``F``, ``(B, K, Co, *S')``.
        u: ``(B, Co, *S')``; for the flat rule one by the number of inputs that the output sees.
        channels: ``Ci``.
        kernel_size, stride, padding, dilation: one number per spatial axis, of the layer's own convolution.
        input_size: ``S``.
        reduce: sum over the channels of the input.

    Returns:
        ``(B, K, Ci, *S)``, with ``reduce`` ``(B, K, 1, *S)``, in the dtype of ``relevance``; computed in float64.

    Source: Lapuschkin et al. 2019, flat weights.
    """
    ones = torch.ones(relevance.shape[2], channels, *kernel_size, dtype=torch.float64, device=relevance.device)
    geometry = (input_size, stride, padding, dilation, 1)
    return input_relevance(relevance, [ones], [u], [None], *geometry, reduce)
