"""Relevance through a convolution for a block of targets, as the library's transposed convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp.aten.elementwise import combine

# Up to this many input channels a plain product and col2im beat oneDNN's transposed convolution (2 to 3 times for the
# first layers of VGG and ResNet, 2-core AVX-512 CPU).
_FEW_CHANNELS = 4

# Below this many elements a change of layout costs more than it wins (2-core AVX-512 CPU, 3x3 convolutions).
_CHANNELS_LAST_FROM = 1 << 10


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
    """``c = W^T(uF) + W+^T(vF)``, (B, K, Co, *S') -> (B, K, Ci, *S); see the reference's namesake."""
    targets = relevance.shape[:2]
    size_out = relevance.shape[3:]
    n = len(input_size)
    # What a transposed convolution must add at the far end so that it returns to exactly ``input_size``.
    missing = [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, s, p, d, k in zip(input_size, size_out, stride, padding, dilation, weight.shape[2:], strict=True)
    ]
    # oneDNN's channels-last kernels are 1.1 to 5 times faster here, see docs/performance.md.
    channels_last = n == 2 and relevance.device.type == "cpu" and relevance[:, :1].numel() >= _CHANNELS_LAST_FROM

    few_channels = (
        n == 2
        and relevance.device.type == "cpu"
        and not transposed
        and groups == 1
        and weight.shape[1] <= _FEW_CHANNELS
        and relevance.numel() > 0
        and min(missing) >= 0
        and all(extra < max(s, d) for extra, s, d in zip(missing, stride, dilation, strict=True))
        and relevance.dtype in (torch.float32, torch.float64)
    )

    def product(coefficient: Tensor, matrix: Tensor) -> Tensor:
        scaled = (relevance * coefficient.unsqueeze(1)).flatten(0, 1)
        if few_channels:
            kernel = list(matrix.shape[2:])
            result = torch.ops.aten.slow_conv_transpose2d(
                scaled, matrix, kernel, None, stride, padding, missing, dilation
            )
            return result.unflatten(0, targets)
        if channels_last:
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        if transposed:
            result = torch.convolution(scaled, matrix, None, stride, padding, dilation, False, [0] * n, groups)
            # The forward pass's output_padding can let a window start beyond the last input.
            for axis, size in enumerate(input_size):
                result = result.narrow(2 + axis, 0, size) if result.shape[2 + axis] > size else result
        elif any(extra < 0 for extra in missing):
            # The padding is wider than the kernel's reach: compute the padded map and cut it.
            zero = [0] * n
            result = torch.convolution(scaled, matrix, None, stride, zero, dilation, True, zero, groups)
            for axis, (size, p) in enumerate(zip(input_size, padding, strict=True)):
                lacking = p + size - result.shape[2 + axis]
                if lacking > 0:
                    result = torch.nn.functional.pad(result, [0, 0] * (n - 1 - axis) + [0, lacking])
                result = result.narrow(2 + axis, p, size)
        else:
            result = torch.convolution(scaled, matrix, None, stride, padding, dilation, True, missing, groups)
        return result.unflatten(0, targets)

    return combine(product, weight, u, v, input, weight_positive, signed, multiply, joint=few_channels)
