"""Convolutions of one pixel by products that are one pass with what stands before and behind them.

oneDNN's product reads bfloat16 and writes bfloat16. So what flows is multiplied with its coefficients, rounded and
written, and read again by the product; of sums that become coefficients there are the rounded input, the sums, these in
float32 and what is added to them. The kernel does all of that to rows that are in the cache, adds up the products of
two coefficients by itself, and rounds a sum once. Strides leave out rows of the input, or write every so many.

One thread, AMD EPYC (Zen 4), loaded, milliseconds: 1,024 to 256 channels at 14x14, coefficients of gamma 0.74 become
0.56, the way down by two coefficients 1.34 become 1.03; 64 to 256 at 56x56, 1.70 become 1.24 and 2.10 become 1.44.

Where the input's sign chooses between two weights, both products and the choice are one pass, in float32: 144 to 24
channels at 56x56, eight targets, 20 milliseconds become 6. Of bfloat16 that would be two products and a choice, which
take longer: all of MobileNet-V2's on the way down of 32 targets 297 milliseconds, in float32 by the kernel 250.

In float32 the same kernel takes the place of oneDNN's, whose sums have the same order: all 1x1 layers of ResNet-50 in
the forward pass 25.4 and 21.7, on the way down 29.2 and 24.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import reduced
from fastlrp.precision import instruction_set

LANES = 16
"""Channels are taken in multiples of this many."""


def pays(geometry: ConvGeometry | None, weight: Tensor) -> bool:
    """Whether products of bfloat16 of a layer with weights laid out beforehand are made so.

    Not on AMX, for which oneDNN has kernels that are several times as fast as those of AVX512-BF16.
    """
    module: Any = loaded()
    known = hasattr(module, "conv_point_pack") and module.bf16_unit() == "avx512_bf16" and instruction_set() != "AMX"
    return known and _is_of_one_pixel(geometry, weight)


def pays_full(geometry: ConvGeometry | None, weight: Tensor) -> bool:
    """Whether products of float32 of a layer with weights laid out beforehand are made so."""
    module: Any = loaded()
    known = hasattr(module, "conv_point") and module.isa() != "portable"
    return known and _is_of_one_pixel(geometry, weight)


def pays_chosen(geometry: ConvGeometry | None, weight: Tensor) -> bool:
    """Whether products of float32 that the input's sign chooses between are made so."""
    module: Any = loaded()
    known = hasattr(module, "conv_point_chosen") and module.isa() != "portable"
    return known and _is_of_one_pixel(geometry, weight, in_lanes=False)


def _is_of_one_pixel(geometry: ConvGeometry | None, weight: Tensor, in_lanes: bool = True) -> bool:
    if geometry is None or geometry.transposed or geometry.groups != 1 or tuple(weight.shape[2:]) != (1, 1):
        return False
    lanes = weight.numel() > 0 and (not in_lanes or all(count % LANES == 0 for count in weight.shape[:2]))
    return lanes and set(geometry.padding) == {0}


class _Packed:
    """Weights ``(Co, Ci, 1, 1)``, whose products are added up, as the kernel reads them.

    Args:
        weights: gives them when they are first needed. down: whether products go from outputs to inputs.
        full: whether they are of float32, not bfloat16.
    """

    def __init__(self, weights: Callable[[], Sequence[Tensor]], down: bool, full: bool) -> None:
        self._make, self._down, self._full = weights, down, full
        self._packed: Tensor | None = None

    @property
    def packed(self) -> Tensor:
        if self._packed is None:
            kernel: Any = loaded()
            matrices = [weight.detach().flatten(1) for weight in self._make()]
            self._packed = kernel.conv_point_pack(matrices if self._down else [m.t() for m in matrices], self._full)
        return self._packed


class Point(_Packed):
    """Weights of one-pixel convolutions in bfloat16."""

    def __init__(self, weights: Callable[[], Sequence[Tensor]], down: bool) -> None:
        super().__init__(weights, down, full=False)


class Full(_Packed):
    """Weights of one-pixel convolutions in float32, and their products.

    Args:
        weights: gives them when they are first needed. geometry: of the convolution. down: the input's size ``(H, W)``
            where products go from outputs to inputs; None where they go from inputs to outputs.
    """

    def __init__(
        self, weights: Callable[[], Sequence[Tensor]], geometry: ConvGeometry, down: Sequence[int] | None = None
    ) -> None:
        super().__init__(weights, down is not None, full=True)
        self._stride = list(geometry.stride)
        self._size = None if down is None else list(down)

    def __call__(self, x: Tensor, bias: Tensor | None = None, not_negative: bool = False) -> Tensor:
        """``W x + bias``, for operands that :func:`fastlrp.plan.products.packed.fits` is true of."""
        kernel: Any = loaded()
        shift = None if bias is None else bias.detach()
        found: Tensor = kernel.conv_point(x, self.packed, shift, self._stride, not_negative)
        return found

    def through(self, flow: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """``(B, K, Co, *S')`` times each ``(B, Co, *S')`` through its weight: the sum, ``(B, K, Ci, *S)``."""
        kernel: Any = loaded()
        found: Tensor = kernel.conv_point_transposed(flow, coefficients, self.packed, self._size, self._stride)
        return found

    def scaled(self, flow: Tensor, coefficient: Tensor) -> Tensor:
        """The same of one coefficient."""
        return self.through(flow, [coefficient])


class Chosen:
    """``(register, u, v, input, times) -> c`` in float32, where the input's sign chooses between W+ and W- of v.

    Args:
        weight: of u. positive: W+. rest: the same for operands that ``fits`` is not true of, or that the sign says
            nothing about. fits: :func:`fastlrp.plan.products.packed.fits`.
    """

    def __init__(
        self, weight: Tensor, positive: Tensor, geometry: ConvGeometry, rest: Callable[..., Tensor],
        fits: Callable[[Tensor], bool],
    ) -> None:  # fmt: skip
        self._weight, self._positive, self._stride = weight, positive, list(geometry.stride)
        self._rest, self._fits = rest, fits

    def __call__(self, flow: Tensor, u: Tensor | None, v: Tensor | None, x: Any, times: Any = None) -> Tensor:
        wide = flow.float() if flow.dtype == reduced.DTYPE and fits(flow) else flow
        if v is None or not isinstance(x, Tensor) or not all(map(self._fits, (wide, x, v))):
            return self._rest(flow, u, v, x, times)
        kernel: Any = loaded()
        found: Tensor = kernel.conv_point_chosen(wide, [v], *self._weights, x, self._stride)
        return found if u is None else self._rest(flow, u, None, x, times).add_(found)

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Of inputs above zero and below, as the kernel reads them."""
        kernel: Any = loaded()
        above, whole = self._positive.detach(), self._weight.detach()
        return kernel.conv_point_pack([_filled(above)], True), kernel.conv_point_pack([_filled(whole - above)], True)


def _filled(weight: Tensor) -> Tensor:
    """``(Co, Ci)`` with zeros up to whole lanes."""
    outputs, inputs = weight.shape[:2]
    return torch.nn.functional.pad(weight.flatten(1), [0, -inputs % LANES, 0, -outputs % LANES])


def fits(*operands: Tensor | None) -> bool:
    """Whether the kernel takes them: not where a derivative or a transform looks on."""
    return all([t is None or reduced.is_plain(t) for t in operands])  # noqa: C419 -- A generator takes twice as long.


class Transposed:
    """``(register, u, v, input) -> c`` for an input that is never below zero, rounded once.

    Args:
        weight: of u. positives: of v, which may be several coefficients. size: of the input, ``(H, W)``.
        plain: the same for operands that :func:`fits` is not true of.
    """

    def __init__(
        self, weight: Tensor, positives: Sequence[Tensor], size: list[int], stride: list[int],
        plain: Callable[..., Tensor],
    ) -> None:  # fmt: skip
        self._of_u, self._of_v = Point(lambda: [weight], down=True), Point(lambda: positives, down=True)
        self._of_both = Point(lambda: [weight, *positives], down=True)
        self._size, self._stride, self._plain = size, stride, plain

    def __call__(
        self, flow: Tensor, u: Tensor | None, v: Any, x: Any, times: Any = None, in_full: bool = False
    ) -> Tensor:
        several = [] if v is None else [v] if isinstance(v, Tensor) else list(v)
        coefficients = [*([] if u is None else [u]), *several]
        if flow.dtype not in (torch.float32, reduced.DTYPE) or not fits(flow, *coefficients):
            return self._plain(flow, u, v, x)
        for coefficient in coefficients:
            if coefficient.dtype != torch.float32:
                return self._plain(flow, u, v, x)
        kernel: Any = loaded()
        weights = self._of_v if u is None else self._of_both if several else self._of_u
        found: Tensor = kernel.conv_point_transposed(
            flow, coefficients, weights.packed, self._size, self._stride, in_full
        )
        return found


def in_full(product: Callable[..., Tensor]) -> Callable[..., Tensor] | None:
    """The same product with a result of float32, which is not rounded; None where it has no such way."""
    return partial(product, in_full=True) if isinstance(product, Transposed) else None
