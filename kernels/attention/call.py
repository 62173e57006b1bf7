"""One call of attention as its launchers see it: the tensors, what is made of them, and their sizes and strides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.kernels.compilation import POINTERS
from fastlrp.kernels.configs import Config
from fastlrp.kernels.launch import Launch, power_of_two, taken

LEAST = 16
"""The fewest features that a product takes; fewer are filled up with zeros."""

TOGETHER = ("narrow", "middle")
"""Widths of heads whose ``c_key`` and ``c_value`` are summed in one launch."""


@dataclass(frozen=True)
class Call:
    """What all operations of attention take.

    Attributes:
        query: ``(B, H, S, D)``. key: ``(B, G, T, D)``. value: ``(B, G, T, E)``; None where it is not read.
        mask: ``(B, H, S, T)`` by its strides, float, or uint8 (not 0: attends), or None. narrow_mask: the same before
            it was broadcast.
        precision: of float32 products, ``"tf32"`` or ``"ieee"``.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None
    mask: Tensor | None
    narrow_mask: Tensor | None
    causal: bool
    scale: float
    cap: float
    features: int  # E
    precision: str

    @property
    def B(self) -> int:
        return self.query.shape[0]

    @property
    def H(self) -> int:
        return self.query.shape[1]

    @property
    def S(self) -> int:
        return self.query.shape[2]

    @property
    def G(self) -> int:
        return self.key.shape[1]

    @property
    def T(self) -> int:
        return self.key.shape[2]

    @property
    def D(self) -> int:
        return self.query.shape[3]

    def values(self) -> dict[str, Any]:
        """Values of the arguments that the kernels share."""
        found: dict[str, Any] = {"query": self.query, "key": self.key, "value": self.value, "mask": self.mask}
        found |= {"H": self.H, "S": self.S, "T": self.T, "G": self.G, "heads_per_key": self.H // max(self.G, 1)}
        found |= {"scale": self.scale, "cap": self.cap, "CAUSAL": self.causal, "CAPPED": self.cap > 0}
        found |= {"D": self.D, "E": self.features, "PRECISION": self.precision}
        found |= {"BLOCK_D": block(self.D), "BLOCK_E": block(self.features)}
        for name, t, axes in (
            ("query", self.query, ("b", "head", "s", "e")),
            ("key", self.key, ("b", "head", "t", "e")),
            ("value", self.value, ("b", "head", "t", "e")),
            ("mask", self.mask, ("b", "head", "s", "t")),
        ):
            found |= strides(name, t, axes)
        return found

    def keys_seen(self) -> dict[str, Any]:
        """The first key that each query attends to and the one behind its last, ``(B, H, S, 2)``, under the mask."""
        return self._spans(3)

    def queries_seen(self) -> dict[str, Any]:
        """The first query that attends to each key and the one behind the last, ``(B, H, T, 2)``."""
        return self._spans(2)

    def _spans(self, axis: int) -> dict[str, Any]:
        if self.narrow_mask is None:
            return {"spans": None} | strides("spans", None, ("b", "head", "i"))
        count = (self.S, self.T)[axis - 2]
        whole = [-1, -1, -1, -1]
        whole[axis] = count
        mask = self.narrow_mask.expand(whole)
        attends = mask != (-torch.inf if mask.is_floating_point() else 0)
        shape = [1, 1, 1, 1]
        shape[axis] = count
        number = torch.arange(count, dtype=torch.int32, device=mask.device).view(shape)
        first = torch.where(attends, number, count).amin(axis)
        behind = torch.where(attends, number + 1, 0).amax(axis)
        found = torch.stack((first, behind), -1).to(torch.int32)
        found = found.expand(self.B, self.H, (self.T, self.S)[axis - 2], 2)
        return {"spans": found} | strides("spans", found, ("b", "head", "i", "end"))

    def launch(self, kernel: Any, grid: tuple[int, ...], values: dict[str, Any], config: Config) -> Launch:
        return Launch(kernel, grid, taken(kernel, values), config.num_warps, config.num_stages)


def call_of(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    features: int,
    precision: str,
) -> Call:
    """The call with its mask as the kernels read it: broadcast by strides of 0, booleans as bytes."""
    narrow = None
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = mask.view(torch.uint8)
        elif mask.dtype not in POINTERS or not mask.is_floating_point():
            mask = mask.to(torch.float32)
        narrow = mask.view(*[1] * (4 - mask.dim()), *mask.shape)
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return Call(query, key, value, mask, narrow, causal, float(scale), float(cap), features, precision)


def shape_class(*features: int) -> str:
    """``"narrow"`` heads have up to 64 features, ``"middle"`` ones up to 128, others are ``"wide"``."""
    most = max(features)
    return "narrow" if most <= 64 else "middle" if most <= 128 else "wide"


def block(features: int) -> int:
    """How wide a tile of these features is."""
    return max(LEAST, power_of_two(features))


def strides(name: str, t: Tensor | None, axes: tuple[str, ...]) -> dict[str, int]:
    """Of a tensor or None by argument name; 0 along an axis of size 1, so that nothing is compiled anew for it."""
    if t is None:
        return {f"{name}_{axis}": 0 for axis in axes}
    found = zip(axes, t.shape, t.stride(), strict=True)
    return {f"{name}_{axis}": 0 if size == 1 else stride for axis, size, stride in found}
