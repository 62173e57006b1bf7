"""``cpu``: C++ kernels, float32 and float64 on the CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from fastlrp.backends import extension
from fastlrp.backends.backend import Backend
from fastlrp.backends.operations import OPS


class Cpu(Backend):
    name = "cpu"
    dtypes = (torch.float32, torch.float64)
    automatic = ("cpu",)
    stand_ins = ("torch",)

    def why_not(self, device: torch.device) -> str | None:
        missing = extension.why_not_loaded()
        if missing is not None:
            return missing
        return None if device.type == "cpu" else f"tensors are on {device.type}"

    def load(self, op: str) -> ModuleType | Any:
        return extension.extension()

    def has(self, op: str) -> bool:
        return op in cpu_ops()


def cpu_ops() -> tuple[str, ...]:
    """Operations with a C++ kernel for the CPU."""
    module = extension.loaded()
    return () if isinstance(module, str) else tuple(op for op in OPS if hasattr(module, op))
