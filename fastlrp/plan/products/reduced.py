"""Products of bfloat16 with sums in float32: which layers have them, and what their operands are made of.

Weights are made bfloat16 once for each plan. What flows is multiplied with its coefficient in float32 and rounded in
the same pass over memory; what a product gives is bfloat16 and stays so until a step wants float32
(:attr:`~fastlrp.plan.steps.BackwardStep.takes_bf16`). So each layer rounds every number three times to 8 bits: operand,
weight and result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastlrp.aten import conv as aten_conv
from fastlrp.aten.elementwise import combine
from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.targets.one_hot import AtPositions

T = TypeVar("T")

LEAST_WORK = 1 << 16
"""Floating-point operations per target below which a layer's conversions cost what its product saves."""

SMALL_SHARE = 1 / 16
"""Linear layers without positions that are a smaller share of a model's work than this stay float32."""

NEAREST = 1 / 20
"""Of a model's work, what the convolutions nearest to its output do in float32, as :func:`stays_full` says."""

NEAREST_AT_MOST = 1 / 6
"""What they may be together: the last convolution of a small network is a large share of its work."""

DTYPE = torch.bfloat16

_level = torch._C._functorch.maybe_get_level


@dataclass(frozen=True)
class Share:
    """Of a model's work.

    Attributes:
        own: a layer's. nearer: that of the convolutions between it and the output.
    """

    own: float = 0.0
    nearer: float = 1.0


def shares(layers: Sequence[tuple[T, bool, int]]) -> dict[T, Share]:
    """Of layers in the order of the forward pass: each with whether it is a convolution, and its operations."""
    total, nearer, found = max(1, sum(work for *_, work in layers)), 0, {}
    for layer, is_conv, work in reversed(layers):
        found[layer] = Share(work / total, nearer / total)
        nearer += work if is_conv else 0
    return found


def pays(kind: str, work: int, share: Share, geometry: ConvGeometry | None, positions: bool) -> bool:
    """Whether a layer's product is made of bfloat16.

    Not where that saves nothing; not in the last linear layers of a convolutional network: under the epsilon rule
    their sums are of both signs and lose the most (half of the error of VGG-16), for a hundredth of the work; and not
    in its last convolutions, :func:`stays_full`.

    Args:
        kind: of the layer. work: floating-point operations per target. share: what that is of the model's.
        geometry: of a convolution. positions: whether a linear layer has positions.
    """
    if kind == "linear":
        return work >= LEAST_WORK and (positions or share.own >= SMALL_SHARE)
    return kind == "conv" and work >= LEAST_WORK and not lacks_kernel(geometry) and not stays_full(share)


def stays_full(share: Share) -> bool:
    """Whether a convolution is among those nearest to the output, which stay float32.

    Relevance comes to them in both signs, from sums of both signs. Their rules share by sums of one sign, in which it
    cancels, and what rounding adds does not: further down relevance is even, and rounding averages out. Of VGG-16
    under alpha-beta the last convolution alone makes an error of 6.0e-3, the second last 0.7e-3, each of the others 0.1
    to 0.6e-3, the first excepted (docs/bfloat16.md).
    """
    return share.nearer < NEAREST and share.nearer + share.own <= NEAREST_AT_MOST


def lacks_kernel(geometry: ConvGeometry | None) -> bool:
    """Whether oneDNN has no kernel of bfloat16 for the transpose, where groups of channels go down through a stride.

    It then takes a hundred times as long as in float32 (depthwise 3x3 with stride 2, 144 channels, PyTorch 2.13).
    """
    strided = geometry is not None and not geometry.transposed and any(step != 1 for step in geometry.stride)
    return geometry is not None and strided and geometry.groups > 1


def scaled(relevance: Tensor, coefficient: Tensor) -> Tensor:
    """``(B, K, *O) * (B, *O)`` in bfloat16, rounded once."""
    if relevance.dtype == coefficient.dtype == DTYPE:
        return relevance * coefficient.unsqueeze(1)
    kernel = getattr(loaded(), "elementwise_scaled", None)
    if kernel is None or coefficient.dtype != torch.float32 or is_traced(relevance) or is_traced(coefficient):
        return (relevance * coefficient.unsqueeze(1)).to(DTYPE)
    product: Tensor = kernel(relevance, coefficient)
    return product


def scaled_side_by_side(relevance: Tensor, coefficients: Sequence[Tensor], channels: int) -> Tensor:
    """``(B, K, *O)`` times each of several coefficients, one behind the other along the axis ``channels``.

    Channels that are innermost in memory stay so. ``torch.cat`` knows that of four axes alone: of five it makes maps
    with their channels outermost, ten times as slow, which the product lays out anew (1x1, 256 channels to 64, 56x56,
    eight targets: 31 ms in place of 9; AMD EPYC, one thread).
    """
    parts = [scaled(relevance, coefficient) for coefficient in coefficients]
    if len(parts) == 1:
        return parts[0]
    if any(part.stride(channels) != 1 for part in parts):
        return torch.cat(parts, channels)
    return torch.cat([part.movedim(channels, -1) for part in parts], -1).movedim(-1, channels)


def is_traced(t: Tensor) -> bool:
    """Whether a derivative or a transform looks on, which know PyTorch's operations alone."""
    return (t.requires_grad and torch.is_grad_enabled()) or _level(t) != -1


def is_plain(t: Any) -> bool:
    """Whether it is a tensor on a CPU that is not empty, and no derivative or transform looks on.

    Each product asks so of each operand, with its own numbers in the caches and not the interpreter's: the question is
    as short as it can be.
    """
    return type(t) is Tensor and t.is_cpu and t.numel() > 0 and not is_traced(t)


def turned(geometry: ConvGeometry, kernel: tuple[int, ...]) -> ConvGeometry | None:
    """The transposed convolution that a convolution without strides is, with its kernel turned round; None for others.

    What goes down through it is then a convolution itself, for which oneDNN has more kernels.
    """
    if geometry.transposed or any(step != 1 for step in geometry.stride):
        return None
    reach = [d * (k - 1) - p for k, p, d in zip(kernel, geometry.padding, geometry.dilation, strict=False)]
    if any(length < 0 for length in reach):
        return None
    return ConvGeometry(geometry.stride, reach, geometry.dilation, True, [0] * len(reach), geometry.groups)


def turned_weight(weight: Tensor, groups: int) -> Tensor:
    """``(Co, Ci/groups, *k)`` as ``(Ci, Co/groups, *k)`` with its taps in reverse order."""
    swapped = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return swapped.flip(list(range(2, weight.dim())))


Through = Callable[..., Tensor]
"""``(register, u, v, input, times) -> c``, of which ``times`` is not looked at. ``v`` may be several coefficients, for
as many weights side by side along their outputs: what these products add up to is then rounded once, as a sum of
float32."""


def through_linear(weight: Tensor, positive: Tensor | None, signed: bool, multiply: bool) -> Through:
    """:func:`fastlrp.aten.linear.linear_relevance` with weights of bfloat16."""

    def transposed(flow: Tensor, u: Any, v: Any, x: Any, times: Any = None) -> Tensor:
        given, split = (None, False) if x is False else (x, signed)

        def product(coefficient: Any, matrix: Tensor) -> Tensor:
            return scaled_side_by_side(flow, _several(coefficient), -1) @ matrix

        return combine(product, weight, u, v, given, positive, split, multiply)

    return transposed


def through_conv(
    weight: Tensor, positive: Tensor | None, input_size: list[int], geometry: ConvGeometry, signed: bool,
    multiply: bool, faster: Callable[[Tensor, Tensor], Tensor | None] | None = None,
) -> Through:  # fmt: skip
    """:func:`fastlrp.aten.conv.conv_relevance` with weights of bfloat16.

    ``faster``: another way through a weight, ``(rows, W) -> W^T rows``, which gives None where it cannot be taken.
    """
    stride, padding, dilation, is_transposed, _, groups = geometry.arguments
    few = aten_conv.few_channels(weight, is_transposed, groups)
    through = aten_conv.TransposedProduct(input_size, stride, padding, dilation, is_transposed, groups, few)

    def transposed(flow: Tensor, u: Any, v: Any, x: Any, times: Any = None) -> Tensor:
        given, split = (None, False) if x is False else (x, signed)

        def product(coefficient: Any, matrix: Tensor) -> Tensor:
            rows = scaled_side_by_side(flow, _several(coefficient), 2)
            found = None if faster is None else faster(rows, matrix)
            return through(rows, None, matrix) if found is None else found

        return combine(product, weight, u, v, given, positive, split, multiply, joint=few)

    return transposed


def _several(coefficient: Any) -> Sequence[Tensor]:
    return [coefficient] if isinstance(coefficient, Tensor) else coefficient


def widened(register: Any) -> Any:
    """A register in float32, for a step that takes no bfloat16."""
    values = register.rows if isinstance(register, AtPositions) else register
    return register.to(torch.float32) if isinstance(values, Tensor) and values.dtype == DTYPE else register
