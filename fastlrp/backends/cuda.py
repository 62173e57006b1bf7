"""``cuda``: CUDA C++ kernels on CUDA devices."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from fastlrp.backends import extension
from fastlrp.backends.backend import Backend


class Cuda(Backend):
    name = "cuda"
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    automatic = ("cuda",)
    stand_ins = ("triton", "torch")
    fuses = True

    def why_not(self, device: torch.device) -> str | None:
        module = kernels()
        if isinstance(module, str):
            return module
        return None if device.type == device_type() else f"tensors are on {device.type}"

    def load(self, op: str) -> ModuleType | Any:
        return kernels()


def kernels() -> ModuleType | str:
    """``fastlrp._C.cuda``, or why there is none."""
    missing = extension.why_not_loaded()
    if missing is not None:
        return missing
    module = extension.extension()
    submodule: ModuleType | None = getattr(module, "cuda", None)
    return f"csrc/cuda is {module.build_info()['cuda']}" if submodule is None else submodule


def device_type() -> str:
    """Type of the device that CUDA kernels run on; tests have them on the CPU."""
    return "cuda"
