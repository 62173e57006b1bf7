"""What the launchers share: memory order of results, strides, the precision that PyTorch's switches ask for."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor


def interpreted() -> bool:
    """Whether Triton runs its kernels with NumPy on the CPU, for tests (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def empty_map(like: Tensor, batch: int, targets: int, channels: int, spatial: Sequence[int]) -> Tensor:
    """An uninitialised ``(B, K, C, *S)`` whose channels are innermost in memory."""
    return like.new_empty(batch, targets, *spatial, channels).movedim(-1, 2)


def convolution_precision() -> str:
    """``"tf32"`` where PyTorch lets float32 convolutions use it, else ``"ieee"``."""
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def matmul_precision() -> str:
    """``"tf32"`` where PyTorch lets float32 matrix products use it, else ``"ieee"``."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
