"""3x3 convolutions of float32 on a CPU by Winograd's filtering F(4x4, 3x3): 36 multiplications where there were 144.

A tile of 6x6 inputs becomes 36 parts, which are multiplied with 36 parts of the weight, and the sums of these become
4x4 outputs. What is rounded is rounded relative to the largest numbers of a tile: a sum is as exact as the others
around it, 1e-6 of them (oneDNN's own sums over channels-last maps: 5e-7), however small it is itself; only below
max-pools dark windows are computed by themselves (csrc/cpu/conv_winograd_levels.h). So it is taken only where nothing
is divided by less than what it is multiplied with (``bounded`` of :class:`fastlrp.plan.coefficients.Coefficients`) and
relevance is even from place to place (:mod:`fastlrp.plan.products.even`), or where the numbers of a call say so
(:mod:`fastlrp.plan.products.looked`).

Source: Winograd 1980; Lavin & Gray 2016; points as in Barabasz et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry

LANES = 16
"""Channels are taken in multiples of this many."""

LEAST_CHANNELS = 32
"""With fewer, taking tiles apart costs what the products save."""

LEAST_TILES, MANY_TILES = 9, 40
"""How many tiles one map must have. The parts of a weight are read once for all tiles, so that with few tiles reading
them takes longer than the products save, or saves too little for the memory: the first number holds for parts of at
most :data:`SMALL_WEIGHT` bytes, the second for larger ones."""

LEAST_TERMS = 32
"""How many weights other than zero each sum must have."""

MOST_BELOW = 32.0
"""How many times more the largest weight below zero may be than the largest one above, of a sum or of most others.
Random weights have 1 to 2. With 100 an explanation is off by 2e-4, with 10,000 by 1e-2."""

MOST_UNREAD = 1 / 64
"""Which share of a sum's weights may be zero below a max-pool."""

MOST_EQUAL, MOST_EQUAL_OF_ALL = 1 / 32, 1 / 128
"""How many pairs of equal weights within kernels there may be below a max-pool, as a share of all weights of a sum and
of a layer. Weights of 8 bits have 0.016 or more, of bfloat16 0.004, and kernels that are their own mirror image 0.3."""

MOST_PAIRS = 1e-5
"""How many pairs among all weights of a sum may be equal where it reads what the model is given. Weights of float32
have 1e-7, those of 16 bits 1e-4 to 3e-3."""

SMALL_WEIGHT = 16 << 20
"""Bytes of the parts of a weight, four times its own."""


def pays(
    geometry: ConvGeometry | None, weight: Tensor, size: tuple[int, ...],
    inputs: Callable[[], Tensor | None] = lambda: None,
) -> bool:  # fmt: skip
    """Whether a layer's products are made so.

    Args:
        geometry: of a 2-D convolution. weight: its own, (Co, Ci, 3, 3). size: of its output, ``(H, W)``. inputs: gives
            how large the activations of each of its channels are, :mod:`fastlrp.plan.products.channel_sizes`.
    """
    if geometry is None or geometry.transposed or geometry.groups != 1 or tuple(weight.shape[2:]) != (3, 3):
        return False
    plain = set(geometry.stride) == {1} == set(geometry.dilation) and max(geometry.padding) <= 2
    channels = weight.shape[:2]
    fits = min(channels) >= LEAST_CHANNELS and all(count % LANES == 0 for count in channels)
    height, width = size
    tiles = -(-height // 4) * -(-width // 4)
    enough = tiles >= (LEAST_TILES if 16 * weight.numel() <= SMALL_WEIGHT else MANY_TILES)
    if not (plain and fits and enough and _kernel() is not None and mixes(weight) and rises(weight)):
        return False
    sizes = inputs()
    return sizes is None or rises(weight * sizes.view(-1, 1, 1))


def mixes(weight: Tensor) -> bool:
    """Whether each sum has enough terms, or none.

    A sum of few terms, as after Dirac's initialization or heavy pruning, is often exactly zero although other inputs of
    its tile are not. Rounding would then give a small number, and a dead neuron would count as alive.
    """
    terms = (weight != 0).flatten(2).sum(2)
    return all(bool(((count >= LEAST_TERMS) | (count == 0)).all()) for count in (terms.sum(0), terms.sum(1)))


def rises(weight: Tensor) -> bool:
    """Whether no output may be lowered by far more than it, and most others, may be raised.

    One that a single input holds down is alive where that input is zero, and far below zero next to it, which is what a
    tile is rounded relative to. Beside the relevance of outputs that may be raised as far such an error is small.
    """
    rows = weight.detach().flatten(1)
    above, below = rows.amax(1).clamp(min=0), (-rows.amin(1)).clamp(min=0)
    alive = (above > 0) | (below > 0)
    if not bool(alive.any()):
        return True
    return bool((below <= MOST_BELOW * torch.maximum(above, above[alive].median()))[alive].all())


def tells_apart(weight: Tensor, of_given: bool = False) -> bool:
    """Whether places that do not read the same numbers give different sums, as a rule.

    Where many weights are zero they are often equal all the same: bit for bit in plain sums, but not here. So they are
    for weights of few levels, and where a kernel has one weight twice: a lone stone counts as much at both places.
    Where two channels have one kernel, or its mirror image, a stone of one counts as much as a stone of the other.

    Args:
        weight: of a convolution, ``(Co, Ci, 3, 3)``. of_given: whether it reads what the model is given, which may be
            such stones, and not what other weights made of it.
    """
    if _has_copies(weight) or (of_given and _equal_pairs(weight) > MOST_PAIRS):
        return False
    flat = weight.flatten(2)
    counts = [(flat[..., apart:] == flat[..., :-apart]).sum((1, 2)) for apart in range(1, flat.shape[2])]
    pairs = torch.stack(counts).sum(0)
    sizes = weight.abs().flatten(1)
    unread = sizes <= 1e-10 * sizes.amax(1, keepdim=True)
    shares = unread.float().mean(1)
    apart = (shares <= MOST_UNREAD) & (pairs <= MOST_EQUAL * sizes.shape[1])
    dead = sizes.amax(1) == 0
    return bool((apart | dead).all()) and int(pairs[~dead].sum()) <= MOST_EQUAL_OF_ALL * sizes[~dead].numel()


def _has_copies(weight: Tensor) -> bool:
    """Whether some output has the same nine numbers for two inputs, in whatever order; kernels of zeros aside."""
    for some in weight.detach().flatten(2).split(32):  # Few at once stay in the cache.
        flat = some.movedim(2, 0).contiguous() + 0.0  # Of one sign, where that is zero.
        sizes = flat.abs().amax(0)
        unread = sizes <= 1e-10 * sizes.amax(1, keepdim=True)
        mixed = flat.view(torch.int32).long() * 0x1E3779B97F4A7C15
        mixed = (mixed ^ mixed >> 29) * 0x3F58476D1CE4E5B9  # So that sums of these, which have no order, differ.
        found = torch.where(unread, 0, mixed.sum(0)).sort(1).values
        if bool(((found[:, 1:] == found[:, :-1]) & (found[:, 1:] != 0)).any()):
            return True
    return False


def _equal_pairs(weight: Tensor) -> float:
    """Which share of all pairs of weights of a sum are equal and not zero, by 16 outputs at the most."""
    pairs = total = 0
    for row in weight.detach().flatten(1)[:: -(-len(weight) // 16)]:
        counts = row[row != 0].unique(return_counts=True)[1]
        pairs += int((counts * (counts - 1)).sum())
        total += int(counts.sum()) * (int(counts.sum()) - 1)
    return pairs / max(total, 1)


def _kernel() -> Any:
    """The extension, if it has the kernels and a processor's instructions that gain by them."""
    module: Any = loaded()
    return module if hasattr(module, "winograd_pack") and module.isa() != "portable" else None


class Winograd:
    """``x -> W x + b`` of a convolution that :func:`pays` is true of, or of its transpose.

    Args:
        weight: gives the convolution's own weight when it is first needed. geometry: of the convolution. down:
            whether the transpose is meant.
    """

    def __init__(self, weight: Callable[[], Tensor], geometry: ConvGeometry, down: bool = False) -> None:
        self._make, self._down = weight, down
        self.padding = [2 - p for p in geometry.padding] if down else list(geometry.padding)
        self._packed: Tensor | None = None

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, least: Tensor | None = None,
        not_negative: bool = False, alike: bool = False, second: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Only for operands that :func:`fastlrp.plan.products.packed.fits` is true of.

        Args:
            x: ``(N, C, H, W)``. bias: of the layer. scale: what ``x`` is multiplied with, of ``N / K`` samples, each
                for K of ``x``. least: what the result is at the least. not_negative: whether that is never below zero.
            alike: whether places of a sample that read the same numbers give the same, bit for bit, as plain sums do.
            second: as ``scale``, of a weight for twice the channels, those of ``x`` times each.
        """
        kernel: Any = loaded()
        if self._packed is None:
            self._packed = kernel.winograd_pack(self._make().detach(), self._down)
        result: Tensor = kernel.winograd_convolution(
            x, self._packed, bias, scale, least, self.padding, not_negative, alike, second
        )
        return result

    def sizes(self) -> Tensor:
        """The largest weight of each sum."""
        return self._make().detach().abs().amax((0, 2, 3) if self._down else (1, 2, 3))

    def scaled(self, flow: Tensor, coefficient: Tensor) -> Tensor:
        """``(B, K, Co, *S')`` times ``(B, Co, *S')`` through the weight: ``(B, K, Ci, *S)``."""
        result = self(flow.flatten(0, 1), scale=coefficient)
        return result.view(*flow.shape[:2], *result.shape[1:])
