"""Time and memory of work on a device: on a GPU by its own clock and its own allocator.

A GPU works after the call that asked for it has returned. What is between two stamps is what happened on the device
from the moment when the first was asked for, launches included, without waiting anywhere in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import memory

Stamp = Any


class Clock:
    """Stamps of a device's time. On a GPU they are events in the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def settle(self) -> None:
        """Wait until nothing is left to do."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def stamp(self) -> Stamp:
        """Now, in the order of the device's work."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, begin: Stamp, end: Stamp) -> float:
        """Seconds from one stamp to a later one; waits for both."""
        if not self.is_cuda:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def allocations(self) -> int:
        """How often memory of the device was asked for so far. A call in which that happens waits for it."""
        if not self.is_cuda:
            return 0
        stats = torch.cuda.memory_stats(self.device)
        return int(stats.get("num_device_alloc", 0) + stats.get("num_alloc_retries", 0))

    def seconds(self, call: Callable[[], Any]) -> float:
        """Of one call, on a device that has nothing else to do."""
        self.settle()
        begin = self.stamp()
        result = call()
        found = self.between(begin, self.stamp())
        del result  # not before: freeing it is not its maker's work
        return found


def growth(device: torch.device, call: Callable[[], Any]) -> tuple[Any, int | None]:
    """What ``call`` returns, and how many bytes it held at most beside what was held before it.

    On a GPU as PyTorch's allocator counts them, which the libraries' scratch memory goes through too; on a CPU the
    resident set's growth.
    """
    if device.type != "cuda":
        return memory.growth(call)
    memory.trim()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def peak_in_all(device: torch.device) -> int | None:
    """Bytes that the process held at most since :func:`growth` began to count; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
