"""The way down through a depthwise convolution, in float32 on a CPU.

Where the input's sign chooses between two weights, oneDNN makes a product of each, and both are read again to choose.
The kernel reads what flows once, multiplies it with its coefficient, and writes what is chosen.

Four targets, one thread, AMD EPYC (Zen 4), loaded, milliseconds: with two weights 144 channels at 56x56 15 become 3.0,
672 channels 5x5 at 14x14 5.0 become 0.9; with one weight 3.4 become 2.0 and 0.85 become 0.64. MobileNet-V2
in bfloat16 with eight targets takes 1.01 of its time with depthwise products of bfloat16, which round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten.elementwise import combine
from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import packed

LANES, TAPS = 16, 32
"""Channels at the least, and taps along an axis at most, of what the kernel takes."""

LEAST_WORK = 1 << 16
"""Floating-point operations per sample below which a call of PyTorch's costs no more."""


def pays(geometry: ConvGeometry | None, weight: Tensor, work: int) -> bool:
    """Whether a layer's relevance goes down so, whose weight is ``(C, 1, h, w)``.

    Args:
        work: floating-point operations per sample.
    """
    if geometry is None or geometry.transposed or geometry.groups == 1 or weight.dim() != 4 or work < LEAST_WORK:
        return False
    module: Any = loaded()
    known = hasattr(module, "conv_depth_transposed") and module.isa() != "portable"
    is_depthwise = weight.shape[0] == geometry.groups >= LANES and weight.shape[1] == 1
    plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() > 0
    return known and is_depthwise and plain and max(weight.shape[2:]) <= TAPS


def transposed(
    weight: Tensor, positive: Tensor | None, size: list[int], geometry: ConvGeometry, signed: bool,
    plain: Callable[..., Tensor],
) -> Callable[..., Tensor]:  # fmt: skip
    """``(register, u, v, input) -> c``.

    Args:
        weight, positive: of the first and second term. size: of the input, ``(H, W)``. signed: whether the second goes
            by the input's sign. plain: the same for operands that :func:`fastlrp.plan.products.packed.fits` is not true
            of.
    """
    arguments = size, list(geometry.stride), list(geometry.padding), list(geometry.dilation)

    def through(flow: Tensor, u: Tensor | None, v: Tensor | None, x: Any, times: Any = None) -> Tensor:
        split = signed and v is not None and x is not False and x is not None
        given = (flow, u, v, x if split else None)
        if not all(packed.fits(t) for t in given if t is not None):
            return plain(flow, u, v, x)
        kernel: Any = loaded()

        def product(coefficient: Tensor | None, matrix: Tensor, *by: Tensor | None) -> Tensor:
            rows, (above, sign) = flow.flatten(0, 1), by or (None, None)
            found: Tensor = kernel.conv_depth_transposed(rows, coefficient, matrix.detach(), above, sign, *arguments)
            return found.view(*flow.shape[:2], *found.shape[1:])

        if not split:
            return combine(product, weight, u, v, None, positive, False, False)
        assert positive is not None, "where the input's sign decides there are two weights"
        term = product(v, weight, positive.detach(), x)
        return term if u is None else product(u, weight).add_(term)

    return through
