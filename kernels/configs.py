"""Tile sizes and routes of the Triton kernels, as data: by kernel, shape class, device and dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Config:
    """How one kernel is launched.

    Attributes:
        block_m, block_n, block_k: tile of positions (times targets), of result channels, of the reduction.
        route: ``"fused"``, or ``"library"``: cuBLAS or cuDNN for the product, our kernels around it.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    route: Literal["fused", "library"] = "fused"


def configuration(kernel: str, shape_class: str, device: torch.device, dtype: torch.dtype) -> Config:
    """The configuration of a kernel for tensors on ``device``."""
    return Config(16, 16, 16) if device.type == "cpu" else Config(128, 64, 32, 8, 3)


def configurations(kernel: str, dtype: torch.dtype) -> dict[str, Config]:
    """All that :func:`configuration` may return for a kernel and dtype, each with a name."""
    return {"default": Config(128, 64, 32, 8, 3)}
