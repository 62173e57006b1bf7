"""``triton``: Triton kernels on CUDA devices (with ``TRITON_INTERPRET=1`` on the CPU, for tests)."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache

import torch

from fastlrp.backends.backend import Backend


class Triton(Backend):
    name = "triton"
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    package = "fastlrp.kernels"
    automatic = ("cuda",)
    stand_ins = ("torch",)
    fuses = True

    def why_not(self, device: torch.device) -> str | None:
        missing = _missing()
        if missing is not None:
            return missing
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device.type != "cuda" and not (device.type == "cpu" and interpreted):
            return f"tensors are on {device.type}"
        if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
            return "the GPU is older than compute capability 8.0"
        return None


@lru_cache(maxsize=1)
def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'triton>=3.6'"
    return None
