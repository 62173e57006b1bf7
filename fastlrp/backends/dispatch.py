"""Which backend computes an operation, and why another cannot.

``cpu``, ``triton`` and ``cuda`` are sets that need not be complete: asking for one takes its kernel where there is one
and another backend elsewhere, and :class:`Selected` says which was taken. ``"auto"`` takes the first that can, from the
end of the list: ``cpu``, ``torch`` on the CPU, ``cuda``, ``triton``, ``torch`` on a CUDA device; an explicit choice
that cannot run at all raises the reason. An error inside a kernel is an error: nothing is tried again elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch

from fastlrp.backends import cuda, extension
from fastlrp.backends.backend import Backend
from fastlrp.backends.cpu import Cpu
from fastlrp.backends.cuda import Cuda
from fastlrp.backends.operations import OPS, STEMS
from fastlrp.backends.reference import Reference
from fastlrp.backends.torch import Torch
from fastlrp.backends.triton import Triton
from fastlrp.errors import BackendError

BACKEND: dict[str, Backend] = {backend.name: backend for backend in (Reference(), Torch(), Cpu(), Triton(), Cuda())}
"""The backends by name. A new one is a file of this folder and its place in this line; ``"auto"`` tries them from the
end."""

BACKENDS = tuple(BACKEND)
FUSED = tuple(name for name, backend in BACKEND.items() if backend.fuses)
"""Backends whose kernels do in one step what others compose."""

_NO_KERNEL = "it has no kernel for this operation"


def automatic(device_type: str) -> tuple[str, ...]:
    """What ``"auto"`` tries on a device, in this order."""
    found = reversed(BACKEND.values())
    return tuple(b.name for b in found if b.automatic is None or device_type in b.automatic)


@dataclass(frozen=True, slots=True)
class Selected:
    """An operation bound to a backend. ``call`` takes the arguments of the operation and checks little."""

    op: str
    backend: str
    call: Callable[..., Any]


def select(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> Selected:
    """The callable of an operation for tensors of this device and dtype.

    Args:
        op: one of :data:`~fastlrp.backends.operations.OPS`.
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
    if backend not in BACKEND:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    why_not = reason(backend, op, device, dtype)
    if why_not == _NO_KERNEL:
        others = [name for name in BACKEND[backend].stand_ins if reason(name, op, device, dtype) is None]
        if others:
            return Selected(op, others[0], _callable(others[0], op))
    if why_not is not None:
        raise BackendError(f"{op}: backend {backend!r} cannot run: {why_not}; use backend='auto' to take one that can")
    return Selected(op, backend, _callable(backend, op))


def reason(name: str, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the backend cannot run the operation on tensors of this device and dtype, or None if it can."""
    _check_op(op)
    backend = BACKEND[name]
    why_not = backend.why_not(device) or backend.why_not_dtype(dtype, op)
    if why_not is not None:
        return why_not
    return None if backend.has(op) else _NO_KERNEL


def compiled_backend(device: torch.device) -> str:
    """The backend of C++ kernels for this device."""
    return "cuda" if device.type == cuda.device_type() else "cpu"


def sparse_kernels(device: torch.device) -> ModuleType | None:
    """Kernels that hold relevance for alive neurons only, on this device; None if there are none."""
    module = cuda.kernels() if compiled_backend(device) == "cuda" else extension.loaded()
    usable = device.type in ("cpu", cuda.device_type()) and not isinstance(module, str)
    return module if usable and hasattr(module, "sparse_conv_relevance") else None  # type: ignore[return-value]


def _callable(backend: str, op: str) -> Callable[..., Any]:
    call: Callable[..., Any] = getattr(BACKEND[backend].load(op), op)
    return call


def _check_op(op: str) -> None:
    if op not in STEMS:
        raise ValueError(f"op: expected one of {', '.join(map(repr, OPS))}, got {op!r}")
