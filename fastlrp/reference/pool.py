"""Relevance through max and average pools in one to three dimensions.

``F`` is what flows down, ``scale`` an optional factor per output neuron. ``S`` and ``S'`` are one to three spatial
sizes of input and output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from types import EllipsisType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from fastlrp.reference.redistribution import ordinary

Index: TypeAlias = tuple[EllipsisType | slice, ...]


def pool_max_relevance(relevance: Tensor, index: Tensor, scale: Tensor | None, input_size: list[int]) -> Tensor:
    """Winner takes all: ``out[b, k, c, index[b, c, j]] += F[b, k, c, j] scale[b, c, j]``.

    Args:
        relevance: ``F``, ``(B, K, C, *S')``.
        index: ``(B, C, *S')`` int64, flat position of each window's winner in ``S``. Windows may overlap.
        scale: ``(B, C, *S')`` or None.
        input_size: ``S``.

    Returns:
        ``(B, K, C, *S)`` in the dtype of ``relevance``; computed in float64.

    Source: Bach et al. 2015, section "Multilayer networks"; gradient of ``max``.
    """
    flow = _scaled(relevance, scale).flatten(3)
    batch, targets, channels = flow.shape[:3]
    out = torch.zeros(batch, targets, channels, prod(input_size), dtype=torch.float64, device=flow.device)
    for k in range(targets):
        out[:, k].scatter_add_(2, index.flatten(2), flow[:, k])
    return out.reshape(batch, targets, channels, *input_size).to(relevance.dtype)


def pool_ties_relevance(
    relevance: Tensor,
    input: Tensor,
    output: Tensor,
    scale: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Each window's ``F scale`` in equal shares to all of its entries that equal its maximum.

    Args:
        relevance: ``F``, ``(B, K, C, *S')``.
        input: ``(B, C, *S)``.
        output: ``(B, C, *S')``, the maximum of each window.
        scale: ``(B, C, *S')`` or None.
        kernel_size, stride, padding, dilation: one number per spatial axis. Padding never wins.

    Returns:
        ``(B, K, C, *S)`` in the dtype of ``relevance``; computed in float64.

    Source: RelevancePropagation.jl and iNNvestigate split ties; the paper (Bach et al. 2015) leaves them open.
    """
    flow = _scaled(relevance, scale)
    inside = torch.ones_like(input, dtype=torch.bool)
    geometry = (kernel_size, stride, padding, dilation)
    size = list(output.shape[2:])
    winners = [
        (entry == output) & valid
        for (_, entry), (_, valid) in zip(
            windows(input, *geometry, size), windows(inside, *geometry, size), strict=True
        )
    ]
    count = torch.stack([winner.double() for winner in winners]).sum(dim=0)
    share = flow / count.clamp(min=1).unsqueeze(1)
    spatial = padded_size(list(input.shape[2:]), *geometry, size)
    out = torch.zeros(*flow.shape[:3], *spatial, dtype=torch.float64, device=flow.device)
    for winner, (position, _) in zip(winners, windows(input, *geometry, size), strict=True):
        out[position] += share * winner.unsqueeze(1)
    return out[_inside(list(input.shape[2:]), padding)].to(relevance.dtype)


def pool_avg_relevance(
    relevance: Tensor,
    scale: Tensor | None,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """The transpose of ``avg_pool`` applied to ``F scale``.

    Args:
        relevance: ``F``, ``(B, K, C, *S')``.
        scale: ``(B, C, *S')`` or None.
        input_size: ``S``.
        kernel_size, stride, padding: one number per spatial axis.
        ceil_mode, count_include_pad, divisor_override: as in ``torch.nn.functional.avg_pool2d``, in every dimension.

    Returns:
        ``(B, K, C, *S)`` in the dtype of ``relevance``; computed in float64.

    Source: Bach et al. 2015, eq. 56 with the pool as a linear layer.
    """
    flow = _scaled(relevance, scale)
    one_dimensional = len(input_size) == 1

    def forward(images: Tensor) -> Tensor:
        options = (ceil_mode, count_include_pad, divisor_override)
        if one_dimensional:  # avg_pool1d has no divisor_override
            kernel, step, pad = [1, *kernel_size], [1, *stride], [0, *padding]
            return functional.avg_pool2d(images.unsqueeze(2), kernel, step, pad, *options).squeeze(2)
        pool = functional.avg_pool2d if len(input_size) == 2 else functional.avg_pool3d
        return pool(images, kernel_size, stride, padding, *options)

    return _transpose(forward, flow, input_size).to(relevance.dtype)


def pool_adaptive_avg_relevance(relevance: Tensor, scale: Tensor | None, input_size: list[int]) -> Tensor:
    """The transpose of ``adaptive_avg_pool`` (output size ``S'``) applied to ``F scale``.

    Args:
        relevance: ``F``, ``(B, K, C, *S')``.
        scale: ``(B, C, *S')`` or None.
        input_size: ``S``.

    Returns:
        ``(B, K, C, *S)`` in the dtype of ``relevance``; computed in float64.

    Source: Bach et al. 2015, eq. 56 with the pool as a linear layer.
    """
    flow = _scaled(relevance, scale)
    adaptive: dict[int, Callable[..., Tensor]] = {
        1: functional.adaptive_avg_pool1d,
        2: functional.adaptive_avg_pool2d,
        3: functional.adaptive_avg_pool3d,
    }

    def forward(images: Tensor) -> Tensor:
        return adaptive[len(input_size)](images, flow.shape[3:])

    return _transpose(forward, flow, input_size).to(relevance.dtype)


def padded_size(
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_size: list[int],
) -> list[int]:
    """Input size with padding on the left, and on the right as much as padding or the last window needs."""
    sizes = []
    for s, k, step, p, d, o in zip(input_size, kernel_size, stride, padding, dilation, output_size, strict=True):
        sizes.append(max(s + 2 * p, (o - 1) * step + d * (k - 1) + 1))
    return sizes


def windows(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_size: list[int],
) -> Iterator[tuple[Index, Tensor]]:
    """For each place in the kernel: its index into the padded input, and the entries ``(B, C, *S')`` of ``x`` there.

    Padding reads 0 (False for a boolean ``x``). The output size is given: ``ceil_mode`` needs no case of its own.
    """
    spatial = list(x.shape[2:])
    padded = x.new_zeros(*x.shape[:2], *padded_size(spatial, kernel_size, stride, padding, dilation, output_size))
    padded[_inside(spatial, padding)] = x
    for place in product(*(range(k) for k in kernel_size)):
        strided = [
            slice(i * d, i * d + (o - 1) * step + 1, step)
            for i, d, o, step in zip(place, dilation, output_size, stride, strict=True)
        ]
        position: Index = (Ellipsis, *strided)
        yield position, padded[position]


def _inside(input_size: list[int], padding: list[int]) -> Index:
    return (Ellipsis, *(slice(p, p + s) for p, s in zip(padding, input_size, strict=True)))


def _scaled(relevance: Tensor, scale: Tensor | None) -> Tensor:
    flow = relevance.double()
    return flow if scale is None else flow * scale.double().unsqueeze(1)


def _transpose(forward: Callable[[Tensor], Tensor], flow: Tensor, input_size: list[int]) -> Tensor:
    batch, targets, channels = flow.shape[:3]
    with torch.inference_mode(False), torch.enable_grad():
        images = torch.zeros(batch * targets, channels, *input_size, dtype=torch.float64, device=flow.device)
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(forward(images), images, ordinary(flow).flatten(0, 1))
    return gradient.reshape(batch, targets, *gradient.shape[1:])
