"""Which backend computes an operation, and why another cannot.

- ``reference``: the definition, float64 inside, slow. Never chosen automatically.
- ``torch``: composed PyTorch operations, any device, every floating-point dtype.
- ``cpu``: C++ kernels, float32 and float64 on the CPU. A set that need not be complete: asking for it takes the kernel
  where there is one and ``torch`` elsewhere, and :class:`Selected` says which was taken.

``"auto"`` takes the first of ``cpu``, ``torch`` that can; an explicit choice that cannot raises the reason. An error
inside a kernel is an error: nothing is tried again elsewhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch

STEMS = {
    "linear_relevance": "linear",
    "conv_relevance": "conv",
    "pool_max_relevance": "pool",
    "pool_ties_relevance": "pool",
    "pool_avg_relevance": "pool",
    "pool_adaptive_avg_relevance": "pool",
    "elementwise_coefficients": "elementwise",
}
"""Operations, each with the stem of the files that hold it."""

OPS = tuple(STEMS)
BACKENDS = ("reference", "torch", "cpu")
AUTOMATIC = ("cpu", "torch")
"""What ``"auto"`` tries, in this order."""


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
        for name in AUTOMATIC:
            if reason(name, op, device, dtype) is None:
                return Selected(op, name, _callable(name, op))
        tried = "; ".join(f"{name}: {reason(name, op, device, dtype)}" for name in AUTOMATIC)
        raise BackendError(f"{op}: no backend can run on {device_type} with {dtype} ({tried})")
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "cpu" and op not in cpu_ops() and extension_error() is None and device_type == "cpu":
        backend = "torch"
    why_not = reason(backend, op, device, dtype)
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
    if op not in cpu_ops():
        return "it has no kernel for this operation"
    if device.type != "cpu":
        return f"tensors are on {device.type}"
    if dtype not in (torch.float32, torch.float64):
        return f"dtype is {dtype}, kernels are for float32 and float64"
    return None


_PREDICATES: dict[str, Callable[[str, torch.device, torch.dtype], str | None]] = {
    "reference": _reference,
    "torch": _torch,
    "cpu": _cpu,
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


def cpu_ops() -> tuple[str, ...]:
    """Operations with a C++ kernel."""
    module = _extension()
    return () if isinstance(module, str) else tuple(op for op in OPS if hasattr(module, op))


def _callable(backend: str, op: str) -> Callable[..., Any]:
    # Imported here: loading the package must not load every backend.
    if backend == "cpu":
        module = extension()
    else:
        package = {"reference": "reference", "torch": "aten"}[backend]
        module = importlib.import_module(f"fastlrp.{package}.{STEMS[op]}")
    call: Callable[..., Any] = getattr(module, op)
    return call


def _check_op(op: str) -> None:
    if op not in STEMS:
        raise ValueError(f"op: expected one of {', '.join(map(repr, OPS))}, got {op!r}")
