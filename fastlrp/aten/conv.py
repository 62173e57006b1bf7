"""Relevance through a convolution for a block of targets, as the library's transposed convolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from fastlrp.aten.elementwise import combine
from fastlrp.aten.pool import pool_max_relevance

# Up to this many input channels both parts of a signed layer go through one product: oneDNN computes 16 at a time.
_JOINT_CHANNELS = 8

# Up to this many elements a plain product and col2im beat oneDNN's transposed convolution, whose calls cost more than
# their arithmetic there (21 against 56 microseconds for ten 16x8x8 maps to one channel, one AVX-512 core).
_SMALL = 1 << 16

_product_and_col2im = torch.ops.aten.slow_conv_transpose2d.default

# Below this many elements a change of layout costs more than it wins (2-core AVX-512 CPU, 3x3 convolutions).
_CHANNELS_LAST_FROM = 1 << 10


def channels_last(x: Tensor) -> Tensor:
    """Channels-last also by its strides: a batch of one can have any batch stride, which the convolution goes by."""
    x = x.contiguous(memory_format=torch.channels_last)
    n, c, h, w = x.shape
    if n == 1:
        strides = (c * h * w, 1, w * c, c)
        return x if x.stride() == strides else x.as_strided(x.shape, strides)
    return x


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """``torch.convolution``, in float32 where the library's own would read memory that is not the map's.

    oneDNN's convolutions of 16 bits (seen with bfloat16, PyTorch 2.13, AVX-512) read beyond a map that is shorter than
    the stride along some axis, which ends the process or gives wrong numbers. A model with such a layer meets this in
    its own forward pass; the relevance of a transposed layer is such a convolution although its forward pass is not.
    """
    half = x.dtype in (torch.bfloat16, torch.float16) and x.device.type == "cpu"
    if half and not transposed and any(size < step for size, step in zip(x.shape[2:], stride, strict=True)):
        wide = None if bias is None else bias.float()
        geometry = (stride, padding, dilation, transposed, output_padding, groups)
        return torch.convolution(x.float(), weight.float(), wide, *geometry).to(x.dtype)
    return torch.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


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
    few = few_channels(weight, transposed, groups)
    product = TransposedProduct(input_size, stride, padding, dilation, transposed, groups, few).of(relevance)
    return combine(product, weight, u, v, input, weight_positive, signed, multiply, joint=few)


def few_channels(weight: Tensor, transposed: bool, groups: int) -> bool:
    """Whether a layer has so few input channels that both parts of a signed one go through one product."""
    return not transposed and groups == 1 and weight.shape[1] <= _JOINT_CHANNELS


class TransposedProduct:
    """``W^T F``, (B, K, Co, *S') -> (B, K, Ci, *S), of one layer; what its sizes settle is settled once for all calls.

    Args:
        few: :func:`few_channels` of the layer, whose weight may be two of side by side.
    """

    def __init__(
        self,
        input_size: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        groups: int,
        few: bool = False,
    ) -> None:
        self._geometry = (input_size, stride, padding, dilation, groups)
        self._transposed, self._few, self._is_map = transposed, few, len(input_size) == 2
        self._missing: dict[tuple[torch.Size, torch.Size], tuple[list[int], bool, bool]] = {}

    def of(self, relevance: Tensor) -> Callable[[Tensor | None, Tensor], Tensor]:
        """``(coefficient, W) -> W^T (coefficient * relevance)``."""
        return lambda coefficient, matrix: self(relevance, coefficient, matrix)

    def __call__(self, relevance: Tensor, coefficient: Tensor | None, matrix: Tensor) -> Tensor:
        """``W^T (coefficient * relevance)``."""
        missing, small, last = self._way(relevance, matrix)
        if coefficient is None:
            scaled = relevance
        elif not last:
            scaled = relevance * coefficient.unsqueeze(1)
        elif relevance.shape[1] == 1:  # One target: no axis has to be put in and taken out.
            scaled = channels_last(coefficient * relevance.squeeze(1))
            return self._product(scaled, matrix, missing, small).unsqueeze(1)
        else:  # The first operand's order in memory is the product's, and coefficients lie channels-last.
            scaled = coefficient.unsqueeze(1) * relevance
        rows = scaled.flatten(0, 1)
        result = self._product(channels_last(rows) if last else rows, matrix, missing, small)
        return result.view(*relevance.shape[:2], *result.shape[1:])

    def _way(self, relevance: Tensor, matrix: Tensor) -> tuple[tuple[list[int], bool, bool], bool, bool]:
        """:meth:`_missing_for`; whether col2im is the fastest way; whether operands are to lie channels-last."""
        missing = self._missing_for(relevance.shape[3:], matrix.shape[2:])
        numel, on_cpu = relevance.numel(), self._is_map and relevance.is_cpu
        small = self._few and on_cpu and missing[1] and 0 < numel <= _SMALL and relevance.dtype in _FULL
        # oneDNN's channels-last kernels are 1.1 to 5 times faster here, see docs/performance.md.
        return missing, small, on_cpu and not small and numel >= _CHANNELS_LAST_FROM * relevance.shape[1]

    def _product(self, scaled: Tensor, matrix: Tensor, how: tuple[list[int], bool, bool], small: bool) -> Tensor:
        """(N, Co, *S') -> (N, Ci, *S)."""
        input_size, stride, padding, dilation, groups = self._geometry
        missing, _, negative = how
        if small:
            kernel = list(matrix.shape[2:])
            return _product_and_col2im(scaled, matrix, kernel, None, stride, padding, missing, dilation)
        if self._transposed:
            n = len(input_size)
            result = convolution(scaled, matrix, None, stride, padding, dilation, False, [0] * n, groups)
            # The forward pass's output_padding can let a window start beyond the last input.
            for axis, size in enumerate(input_size):
                result = result.narrow(2 + axis, 0, size) if result.shape[2 + axis] > size else result
            return result
        if negative:
            return _cut_from_padded(scaled, matrix, input_size, stride, padding, dilation, groups)
        return convolution(scaled, matrix, None, stride, padding, dilation, True, missing, groups)

    def _missing_for(self, output_size: torch.Size, kernel: torch.Size) -> tuple[list[int], bool, bool]:
        """:func:`missing_sizes`, whether col2im takes them, and whether one is below zero."""
        found = self._missing.get((output_size, kernel))
        if found is None:
            input_size, stride, padding, dilation, _ = self._geometry
            sizes = tuple(input_size), output_size, tuple(stride), tuple(padding), tuple(dilation), kernel
            missing = missing_sizes(*sizes)
            fits = all(0 <= extra < max(s, d) for extra, s, d in zip(missing, stride, dilation, strict=True))
            found = self._missing[output_size, kernel] = missing, fits, min(missing) < 0
        return found


_FULL = (torch.float32, torch.float64)


@lru_cache(maxsize=1024)
def missing_sizes(
    input_size: tuple[int, ...],
    output_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    kernel: tuple[int, ...],
) -> list[int]:
    """What a transposed convolution must add at the far end so that it returns to exactly ``input_size``."""
    return [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, s, p, d, k in zip(input_size, output_size, stride, padding, dilation, kernel, strict=True)
    ]


def _cut_from_padded(
    scaled: Tensor,
    matrix: Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The padding is wider than the kernel's reach: compute the padded map and cut the input out of it."""
    n = len(input_size)
    zero = [0] * n
    result = convolution(scaled, matrix, None, stride, zero, dilation, True, zero, groups)
    for axis, (size, p) in enumerate(zip(input_size, padding, strict=True)):
        lacking = p + size - result.shape[2 + axis]
        if lacking > 0:
            result = torch.nn.functional.pad(result, [0, 0] * (n - 1 - axis) + [0, lacking])
        result = result.narrow(2 + axis, p, size)
    return result


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
    """A max-pool's relevance and the convolution below it, one after the other; see the reference's namesake."""
    unpooled = pool_max_relevance(relevance, index, None, unpooled_size)
    geometry = (input_size, stride, padding, dilation, False, [0] * len(input_size), groups)
    return conv_relevance(unpooled, weight, u, v, input, weight_positive, *geometry, signed, multiply)
