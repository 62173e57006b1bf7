"""What a plan's products are made with: float32, or bfloat16 with sums in float32. The one place that decides."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch

Precision = Literal["auto", "float32", "bf16"]
"""``"float32"``: products in the model's own dtype, as plain sums. ``"bf16"``: those of layers
with a weight read bfloat16. ``"auto"``: they do where PyTorch's own switches allow it and the processor gains; in
float32 otherwise, where 3x3 convolutions may go by Winograd's filtering."""

PRECISIONS = get_args(Precision)

_SWITCHES = "torch.backends.mkldnn.{conv,matmul}.fp32_precision"
_GAINING = "AMX or AVX512-BF16"


@dataclass(frozen=True)
class Products:
    """What the products of one plan read.

    Attributes:
        convolutions, matrices: whether those of convolutions, and of linear layers, read bfloat16.
        filtered: whether convolutions of float32 may go by Winograd's filtering, :mod:`fastlrp.plan.products.winograd`.
        why: of reduced products, or why there are none although something asks for them; empty if nothing does.
    """

    convolutions: bool = False
    matrices: bool = False
    why: str = ""
    filtered: bool = False

    @property
    def reduced(self) -> bool:
        """Whether any products read bfloat16."""
        return self.convolutions or self.matrices


FULL = Products()


def check_wish(wish: object) -> None:
    """Raises ValueError for what is no precision."""
    if wish not in PRECISIONS:
        raise ValueError(f"precision must be {', '.join(map(repr, PRECISIONS[:-1]))} or 'bf16', got {wish!r}")


def products_of(wish: Precision, backend: str, device: torch.device, dtype: torch.dtype) -> Products:
    """What the products of a plan for this device and dtype read.

    Raises:
        ValueError: for ``"bf16"`` where there is no such path: on a GPU, for float16 and float64, with a backend that
            computes in another way.
    """
    if wish == "float32":
        return FULL
    filtered = device.type == "cpu" and dtype == torch.float32 and backend in ("auto", "cpu")
    if wish == "auto":
        found = FULL if _why_not(backend, device, dtype) is not None else _as_switched(dtype)
        return replace(found, filtered=filtered)
    check_possible(wish, backend, device, dtype)
    unit = instruction_set()
    if unit is None:
        message = (
            f"bf16 as asked for, although this processor has neither {_GAINING.replace(' or ', ' nor ')}, without "
            "which such products are no faster than float32"
        )
        warnings.warn(f"precision: {message}", stacklevel=2)
        return Products(True, True, message, filtered)
    return Products(True, True, f"bf16 as asked for, by {unit}", filtered)


def check_possible(wish: Precision, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError where bfloat16 is asked for and there is no such path."""
    why_not = _why_not(backend, device, dtype) if wish == "bf16" else None
    if why_not is not None:
        raise ValueError(f"precision='bf16' {why_not}")


def _why_not(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why there are no reduced products at all, or None."""
    if device.type != "cpu":
        return (
            f"is for processors, and the model is on {device}: take model.bfloat16(), or let float32 products use "
            "TF32, torch.backends.cuda.matmul.fp32_precision = 'tf32' and the same of torch.backends.cudnn.conv"
        )
    if dtype not in (torch.float32, torch.bfloat16):
        return f"is for models of float32 and bfloat16, and this one is of {dtype}: take model.float(), or 'float32'"
    if backend not in ("auto", "cpu", "torch"):
        return f"has no products on the backend {backend!r}: take 'auto', 'cpu' or 'torch'"
    return None


def _as_switched(dtype: torch.dtype) -> Products:
    if dtype == torch.bfloat16:
        return Products(True, True, "bf16 as the model's own")
    convolutions, matrices = switches()
    if not (convolutions or matrices):
        return FULL
    unit = instruction_set()
    if unit is None:
        return Products(why=f"float32 although {_SWITCHES} allow bf16: this processor has no {_GAINING}")
    return Products(convolutions, matrices, f"bf16 as {_SWITCHES} allow, by {unit}")


def switches() -> tuple[bool, bool]:
    """Whether PyTorch may make float32 convolutions and matrix products on a CPU of bfloat16.

    ``torch.set_float32_matmul_precision("medium")`` sets the second.
    """

    return switch("conv") == "bf16", switch("matmul") == "bf16"


def switch(name: str) -> str:
    """``torch.backends.mkldnn.<name>.fp32_precision``, without the way through its modules, which every call takes."""
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)
    if getter is not None:
        return str(getter("mkldnn", name))
    return str(getattr(getattr(torch.backends.mkldnn, name, None), "fp32_precision", "none"))


@cache
def instruction_set() -> str | None:
    """What makes products of bfloat16 faster than those of float32 on this processor: AMX, AVX512-BF16 or None."""
    if not torch.backends.mkldnn.is_available():
        return None
    found: dict[str, tuple[str, str]] = {
        "AMX": ("_is_amx_tile_supported", "amx_bf16"),
        "AVX512-BF16": ("_is_avx512_bf16_supported", "avx512_bf16"),
    }
    return next((name for name, (ask, flag) in found.items() if _has(getattr(torch.cpu, ask, None), flag)), None)


def _has(ask: Callable[[], bool] | None, flag: str) -> bool:
    """By PyTorch's own look, where this version has one, which also knows what the system allows; else Linux's."""
    if ask is not None:
        return bool(ask())
    flags = Path("/proc/cpuinfo")
    return flags.exists() and f" {flag} " in flags.read_text().replace("\n", " ")
