"""What holds while a pass or a way down is computed: no derivatives, and small calls take one thread.

A short parallel region gains nothing, and it waits for its slowest thread. GNU OpenMP waits by spinning, so that on a
machine with one busy core each region of a small network takes as long as the other process's turn, milliseconds in the
place of microseconds. PyTorch starts such regions for the smallest convolution.

The number of threads is that of the calling thread alone: other threads of the program keep theirs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from types import TracebackType

import torch

from fastlrp.backends.extension import loaded

SMALL_WORK = 1 << 27
"""Floating-point operations of a whole call that one core makes in less than a millisecond."""


@cache
def _set_threads() -> Callable[[int], object] | None:
    """OpenMP's own function, of the library that the compiled kernels share with PyTorch; None without them."""
    module = loaded()
    if isinstance(module, str) or module.__file__ is None or "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        found: Callable[[int], object] = ctypes.CDLL(module.__file__).omp_set_num_threads
    except (AttributeError, OSError):
        return None
    return found


class Computing:
    """As a context: no derivatives are recorded, and ``work`` operations get so many threads as they are worth, one or
    all that PyTorch would take. ``torch.no_grad()`` beside it would cost a small network's call four times as much."""

    def __init__(self, work: int, device: torch.device) -> None:
        # Asked first: PyTorch tells OpenMP its number when a thread asks for the first time.
        self._before = torch.get_num_threads() if work < SMALL_WORK and device.type == "cpu" else 1
        self._set = _set_threads() if self._before > 1 else None

    def __enter__(self) -> None:
        self._had_grad = torch.is_grad_enabled()
        if self._had_grad:
            torch._C._set_grad_enabled(False)
        if self._set is not None:
            self._set(1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._set is not None:
            self._set(self._before)
        if self._had_grad:
            torch._C._set_grad_enabled(True)
