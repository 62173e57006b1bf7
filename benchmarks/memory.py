"""Peak memory of a call, as the growth of the process's resident set, sampled by a thread from ``/proc/self/statm``.

It counts what the call adds to what the process holds already (model, prepared weights, other providers), results
included. Memory that the C library keeps from earlier calls is given back first, where glibc can be asked to.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

_STATM = "/proc/self/statm"
_INTERVAL = 0.001


def resident() -> int | None:
    """Bytes of the process that are in memory; None where there is no /proc."""
    try:
        with open(_STATM) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return None


def trim() -> None:
    """Collect garbage, and let the C library give free memory back to the system."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def growth(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """What ``call`` returns, and how much the resident set grew over its start at most; None if that cannot be read."""
    trim()
    start = resident()
    if start is None:
        return call(), None
    done, peak = threading.Event(), start

    def sample() -> None:
        nonlocal peak
        while not done.wait(_INTERVAL):
            peak = max(peak, resident() or 0)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        result = call()
        peak = max(peak, resident() or 0)
    finally:
        done.set()
        sampler.join()
    return result, peak - start
