"""``cpu``: C++ kernels, float32 and float64 on the CPU; attention in 16 bits by way of float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends import extension
from fastlrp.backends.backend import Backend
from fastlrp.backends.operations import OPS

NARROW = (torch.float16, torch.bfloat16)
WIDENED = ("attention_relevance", "attention_value_relevance")
"""Operations whose 16-bit operands are made float32 before a kernel, which does far more with each than to read it."""


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

    def dtypes_of(self, op: str) -> tuple[torch.dtype, ...]:
        return (*self.dtypes, *NARROW) if op in WIDENED else self.dtypes

    def load(self, op: str) -> ModuleType | Any:
        return _widened(op) if op in WIDENED and self.has(op) else extension.extension()

    def has(self, op: str) -> bool:
        return op in cpu_ops()


def cpu_ops() -> tuple[str, ...]:
    """Operations with a C++ kernel for the CPU."""
    module = extension.loaded()
    return () if isinstance(module, str) else tuple(op for op in OPS if hasattr(module, op))


@cache
def _widened(op: str) -> SimpleNamespace:
    """A module with the operation for 16-bit tensors too: sums in float32, results in the relevance's own dtype."""
    kernel: Callable[..., Any] = getattr(extension.extension(), op)

    def wide(t: Any) -> Any:
        return t.float() if isinstance(t, Tensor) and t.dtype in NARROW else t

    def widened(relevance: Tensor, *others: Any, **named: Any) -> Any:
        dtype = relevance.dtype
        if dtype not in NARROW:
            return kernel(relevance, *others, **named)
        found = kernel(wide(relevance), *map(wide, others), **{name: wide(t) for name, t in named.items()})
        return tuple(t.to(dtype) for t in found) if isinstance(found, tuple) else found.to(dtype)

    # To write into memory that is given is for float32 and float64 alone.
    into = getattr(extension.extension(), f"{op}_into", None)
    return SimpleNamespace(**{op: widened, f"{op}_into": into})
