"""Which backend computes an operation, and why another cannot.

- ``reference``: the definition, float64 inside, slow. Never chosen automatically.
- ``torch``: composed PyTorch operations, any device, every floating-point dtype.
- ``cpu``: C++ kernels, float32 and float64 on the CPU.
- ``triton``: Triton kernels, float32, float16 and bfloat16 on CUDA devices (with ``TRITON_INTERPRET=1`` on the CPU, for
  tests).
- ``cuda``: CUDA C++ kernels, these and float64.

The last three are sets that need not be complete: asking for one takes its kernel where there is one and another
backend elsewhere, and :class:`Selected` says which was taken. ``"auto"`` takes the first that can: ``cpu``, ``torch``
on the CPU, ``cuda``, ``triton``, ``torch`` on a CUDA device; an explicit choice that cannot run at all raises the
reason. An error inside a kernel is an error: nothing is tried again elsewhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch

STEMS = {
    "linear_relevance": "linear",
    "linear_one_hot_relevance": "linear",
    "conv_relevance": "conv",
    "conv_unpooled_relevance": "conv",
    "input_relevance": "input_rules",
    "input_flat_relevance": "input_rules",
    "pool_max_relevance": "pool",
    "pool_ties_relevance": "pool",
    "pool_avg_relevance": "pool",
    "pool_adaptive_avg_relevance": "pool",
    "elementwise_coefficients": "elementwise",
    "elementwise_pooled_coefficients": "elementwise",
}
"""Operations, each with the stem of the files that hold it."""

OPS = tuple(STEMS)
BACKENDS = ("reference", "torch", "cpu", "triton", "cuda")
_PACKAGES = {"reference": "fastlrp.reference", "torch": "fastlrp.aten", "triton": "fastlrp.kernels"}
_NEXT = {"cpu": ("torch",), "triton": ("torch",), "cuda": ("triton", "torch")}
"""Who stands in for an operation that a backend has no kernel for."""

_NO_KERNEL = "it has no kernel for this operation"


def automatic(device_type: str) -> tuple[str, ...]:
    """What ``"auto"`` tries on a device, in this order."""
    return ("cuda", "triton", "torch") if device_type == "cuda" else ("cpu", "torch")


class BackendError(RuntimeError):
    """A backend was asked for that cannot run the operation here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Selected:
    """An operation bound to a backend. ``call`` takes the arguments of the operation and checks little."""

    op: str
    backend: str
    call: Callable[..., Any]


def select(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> Selected:
    """The callable of an operation for tensors of this device and dtype.

    Args:
        op: one of :data:`OPS`.
        backend: one of :data:`BACKENDS` or ``"auto"``.
        device, dtype: of the relevance (of ``z`` for ``elementwise_coefficients``).

    Raises:
        ValueError: for an operation or a backend that does not exist.
        BackendError: if the backend cannot run it, with the reason.
    """
    return _select(op, backend, device.type, dtype)


@cache
def _select(op: str, backend: str, device_type: str, dtype: torch.dtype) -> Selected:
    _check_op(op)
    device = torch.device(device_type)
    if backend == "auto":
        names = automatic(device_type)
        for name in names:
            if reason(name, op, device, dtype) is None:
                return Selected(op, name, _callable(name, op))
        tried = "; ".join(f"{name}: {reason(name, op, device, dtype)}" for name in names)
        raise BackendError(f"{op}: no backend can run on {device_type} with {dtype} ({tried})")
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    why_not = reason(backend, op, device, dtype)
    if why_not == _NO_KERNEL:
        others = [name for name in _NEXT[backend] if reason(name, op, device, dtype) is None]
        if others:
            return Selected(op, others[0], _callable(others[0], op))
    if why_not is not None:
        raise BackendError(f"{op}: backend {backend!r} cannot run: {why_not}; use backend='auto' to take one that can")
    return Selected(op, backend, _callable(backend, op))


def reason(backend: str, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the backend cannot run the operation on tensors of this device and dtype, or None if it can."""
    _check_op(op)
    return _PREDICATES[backend](op, device, dtype)


def _reference(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    return _floating(dtype)


def _torch(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    return _floating(dtype)


def _cpu(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    error = extension_error()
    if error is not None:
        return f"the compiled extension fastlrp._C does not load ({error}); build it with 'make install'"
    if device.type != "cpu":
        return f"tensors are on {device.type}"
    if dtype not in (torch.float32, torch.float64):
        return f"dtype is {dtype}, kernels are for float32 and float64"
    return None if op in cpu_ops() else _NO_KERNEL


def _triton(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    missing = _triton_missing()
    if missing is not None:
        return missing
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not (device.type == "cpu" and interpreted):
        return f"tensors are on {device.type}"
    if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype is {dtype}, kernels are for float32, float16 and bfloat16"
    return None if hasattr(_module("triton", op), op) else _NO_KERNEL


def _cuda(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    module = _cuda_extension()
    if isinstance(module, str):
        return module
    if device.type != _cuda_device():
        return f"tensors are on {device.type}"
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f"dtype is {dtype}, kernels are for float32, float64, float16 and bfloat16"
    return None if hasattr(module, op) else _NO_KERNEL


_PREDICATES: dict[str, Callable[[str, torch.device, torch.dtype], str | None]] = {
    "reference": _reference,
    "torch": _torch,
    "cpu": _cpu,
    "triton": _triton,
    "cuda": _cuda,
}


def _floating(dtype: torch.dtype) -> str | None:
    return None if dtype.is_floating_point else f"dtype is {dtype}, relevance needs a floating-point one"


@lru_cache(maxsize=1)
def _extension() -> ModuleType | str:
    try:
        return importlib.import_module("fastlrp._C")
    except ImportError as error:
        return str(error)


def extension_error() -> str | None:
    """Why the compiled extension does not load, or None."""
    extension = _extension()
    return extension if isinstance(extension, str) else None


def extension() -> ModuleType:
    """The compiled extension.

    Raises:
        BackendError: if it does not load.
    """
    module = _extension()
    if isinstance(module, str):
        raise BackendError(f"the compiled extension fastlrp._C does not load ({module}); build it with 'make install'")
    return module


@lru_cache(maxsize=1)
def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'triton>=3.6'"
    return None


def _cuda_extension() -> ModuleType | str:
    """``fastlrp._C.cuda``, or why there is none."""
    module = _extension()
    if isinstance(module, str):
        return f"the compiled extension fastlrp._C does not load ({module}); build it with 'make install'"
    submodule: ModuleType | None = getattr(module, "cuda", None)
    return f"csrc/cuda is {module.build_info()['cuda']}" if submodule is None else submodule


def _cuda_device() -> str:
    """Type of the device that CUDA kernels run on; tests have them on the CPU."""
    return "cuda"


def compiled_backend(device: torch.device) -> str:
    """The backend of C++ kernels for this device."""
    return "cuda" if device.type == _cuda_device() else "cpu"


def sparse_kernels(device: torch.device) -> ModuleType | None:
    """Kernels that hold relevance for alive neurons only, on this device; None if there are none."""
    module = _cuda_extension() if compiled_backend(device) == "cuda" else _extension()
    usable = device.type in ("cpu", _cuda_device()) and not isinstance(module, str)
    return module if usable and hasattr(module, "sparse_conv_relevance") else None  # type: ignore[return-value]


def cpu_ops() -> tuple[str, ...]:
    """Operations with a C++ kernel for the CPU."""
    module = _extension()
    return () if isinstance(module, str) else tuple(op for op in OPS if hasattr(module, op))


def _module(backend: str, op: str) -> Any:
    # Imported here: loading the package must not load every backend.
    if backend == "cpu":
        return extension()
    return _cuda_extension() if backend == "cuda" else importlib.import_module(f"{_PACKAGES[backend]}.{STEMS[op]}")


def _callable(backend: str, op: str) -> Callable[..., Any]:
    call: Callable[..., Any] = getattr(_module(backend, op), op)
    return call


def _check_op(op: str) -> None:
    if op not in STEMS:
        raise ValueError(f"op: expected one of {', '.join(map(repr, OPS))}, got {op!r}")
