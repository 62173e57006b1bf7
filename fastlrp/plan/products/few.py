"""The way down through a convolution of a few input channels, as those of a picture, on a CPU.

oneDNN computes 16 channels at a time, so that 3 or 6 of them cost as much as 16. The kernel multiplies each output with
the weights of all taps and channels at once and adds up what each gives to the pixels that it reads.

One image, one thread, AMD EPYC, loaded: VGG-16's first layer, W+ and W- side by side, 6.2 ms become 4.7 (in bfloat16 it
took 4.5); ResNet-50's under the box rule in bfloat16, two products, 8.0 ms become 3.3.

Products of bfloat16 are added up in float32 by the same kernel, and no sum is rounded: ResNet-50's first layer, W+ and
W- side by side, 5.6 ms become 3.5, VGG-16's 7.0 become 4.7 (Zen 4, loaded), with an error of 1.6e-4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten.conv import few_channels
from fastlrp.aten.elementwise import combine
from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import packed, point, reduced
from fastlrp.precision import instruction_set

LANES = 16
"""Output channels are taken in multiples of this many."""


def pays(geometry: ConvGeometry | None, weight: Tensor) -> bool:
    """Whether a layer's relevance goes down so: of a convolution that has weights laid out, ``(Co, C, h, w)``."""
    if geometry is None or not few_channels(weight, geometry.transposed, geometry.groups):
        return False
    module: Any = loaded()
    known = hasattr(module, "conv_few_transposed") and module.isa() != "portable"
    return known and weight.shape[0] % LANES == 0 and set(geometry.dilation) == {1}


def pays_narrow(geometry: ConvGeometry | None, weight: Tensor) -> bool:
    """Whether relevance goes down so by products of bfloat16: with the processor's AVX512-BF16, and without AMX."""
    module: Any = loaded()
    has_unit = pays(geometry, weight) and module.bf16_unit() == "avx512_bf16"
    return has_unit and instruction_set() != "AMX"


def transposed(
    weight: Tensor, positive: Tensor | None, size: list[int], geometry: ConvGeometry, signed: bool,
    plain: Callable[..., Tensor], narrow: bool = False,
) -> Callable[..., Tensor]:  # fmt: skip
    """``(register, u, v, input) -> c``, where both parts of a signed layer go through one product.

    Args:
        weight, positive: of the first and second term. size: of the input, ``(H, W)``. signed: whether the second goes
            by the input's sign. plain: the same for operands that :func:`fastlrp.plan.products.packed.fits` is not true
            of. narrow: whether products are of bfloat16, as what flows then may be.
    """
    stride, padding = list(geometry.stride), list(geometry.padding)

    def fits(flow: Tensor, *coefficients: Tensor | None) -> bool:
        if not narrow:
            return all(packed.fits(t) for t in (flow, *coefficients) if t is not None)
        known = point.fits(flow, *coefficients) and flow.dtype in (torch.float32, reduced.DTYPE)
        return known and all(t is None or t.dtype == torch.float32 for t in coefficients)

    def through(flow: Tensor, u: Tensor | None, v: Tensor | None, x: Any, times: Any = None) -> Tensor:
        if not fits(flow, u, v):
            return plain(reduced.widened(flow), u, v, x)
        given, split = (None, False) if x is False else (x, signed)
        kernel: Any = loaded()

        def product(coefficient: Tensor | None, matrix: Tensor) -> Tensor:
            operands = flow.flatten(0, 1), coefficient, matrix.detach()
            found: Tensor = kernel.conv_few_transposed(*operands, size, stride, padding, narrow)
            return found.view(*flow.shape[:2], *found.shape[1:])

        return combine(product, weight, u, v, given, positive, split, False, joint=True)

    return through
