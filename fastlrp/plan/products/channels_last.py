"""The order in memory that convolutions and pools want their maps in."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """What 2-D convolutions read lies channels-last: oneDNN is 1.1 to 5 times faster so, tensor cores want it too."""
    wanted = x.dim() == 4 and x.device.type in ("cpu", "cuda")
    return x.contiguous(memory_format=torch.channels_last) if wanted else x
