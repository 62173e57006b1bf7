"""Times of short work on a device: cold cache, in turns, without waiting for the host."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.clock import Clock, Stamp

Run = Callable[[], Any]

FLUSHED = 512 << 20
"""Bytes that are written before each time: more than any cache holds, and long enough for the host to launch what
follows before the device begins it."""


class Timer:
    """Takes times on one device."""

    def __init__(self, device: torch.device) -> None:
        self.clock = Clock(device)
        cold = FLUSHED if self.clock.is_cuda else 0
        self._scratch = torch.empty(cold, dtype=torch.uint8, device=device)

    def take(self, run: Run) -> tuple[Stamp, Stamp]:
        """Begin and end of one run. What it returns is dropped."""
        self._scratch.zero_()
        begin = self.clock.stamp()
        run()
        return begin, self.clock.stamp()

    def seconds(self, taken: tuple[Stamp, Stamp]) -> float:
        """Of a run; waits for it."""
        return self.clock.between(*taken)


@dataclass(frozen=True)
class Times:
    """Of one run, several times."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Longest over shortest, without the outer tenths."""
        ordered = sorted(self.seconds)
        cut = len(ordered) // 10
        return ordered[-1 - cut] / ordered[cut]


def in_turns(
    runs: Mapping[str, Run], timer: Timer, least: int = 5, most: int = 25, budget: float = 0.5
) -> dict[str, Times]:
    """Times of each, taken in turns; as many turns as fit into ``budget`` seconds.

    Every run must have run before: nothing is compiled or chosen here.
    """
    once = sum(timer.seconds(timer.take(run)) for run in runs.values())
    turns = max(least, min(most, int(budget / max(once, 1e-9))))
    taken = {name: [] for name in runs}  # type: dict[str, list[Any]]
    for _ in range(turns):
        for name, run in runs.items():
            taken[name].append(timer.take(run))
    return {name: Times(tuple(timer.seconds(t) for t in some)) for name, some in taken.items()}
