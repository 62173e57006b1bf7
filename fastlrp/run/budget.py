"""How many targets go down at once, so that they and their results stay within a budget of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastlrp.capture.graph import Value
from fastlrp.plan.plan import Plan
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.steps import LANES, Steps
from fastlrp.run import runner
from fastlrp.run.sparse.specialize import Specialized


@dataclass(frozen=True, eq=False)
class Budget:
    """What one block of targets may take.

    Attributes:
        plan, batch: what goes down, for how many samples. max_memory: bytes; None for any number of them.
        terms: entries of each target's initial relevance where it is one-hot; None where it is dense.
    """

    plan: Plan
    batch: int
    max_memory: int | None
    terms: int | None = None

    def need(self, steps: Steps, names: Mapping[str, Value], reduce: str | None, count: int) -> int:
        """Bytes of a block of ``count`` targets and of its results, which are the values by ``names``."""
        each = sum(_reduced(v, reduce) for v in names.values()) * self.batch * self.plan.dtype.itemsize
        return runner.peak_bytes(self.plan, steps, self.batch, count, self.terms) + count * each

    def check(self, names: Mapping[str, Value], reduce: str | None) -> None:
        """Refuse a budget that one target does not fit into, before anything is computed.

        Raises:
            ValueError: if ``max_memory`` is too small.
        """
        if self.max_memory is None:
            return
        steps = self.plan.schedule(tuple(dict.fromkeys(names.values()))).steps
        need = self.need(steps, names, reduce, 1)
        if need > self.max_memory:
            raise ValueError(
                f"max_memory={self.max_memory} bytes is too small for one target: a batch of {self.batch} needs "
                f"{need} bytes. Raise max_memory or explain fewer samples at once"
            )

    def block(
        self, count: int, names: Mapping[str, Value], reduce: str | None, schedule: Schedule, found: Specialized
    ) -> tuple[Steps, int]:
        """Steps, and targets per block so that propagation and one block of results stay within ``max_memory``."""
        if self.max_memory is None:
            return found.steps, count
        steps, left = found.steps, self.max_memory - found.copied_bytes
        if self.need(steps, names, reduce, min(LANES, count)) > left:
            # Sparse rows hold whole lanes, and their weights are copies, which is too much here.
            steps, left = schedule.steps, self.max_memory
        low, high = 1, count
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.need(steps, names, reduce, middle) <= left
            low, high = (middle, high) if fits else (low, middle - 1)
        return steps, low


def _reduced(value: Value, reduce: str | None) -> int:
    return value.numel // value.sizes[0] if reduce and len(value.sizes) > 1 and value.is_float else value.numel
