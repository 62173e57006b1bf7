"""Takes providers in turns: outputs first, then seconds per target and peak memory, then ratios."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.density import Density
from benchmarks.memory import growth
from benchmarks.providers import Provider

AGREES = 1e-4
"""Largest relative difference (2-norm of any target) of outputs that are timed."""

COMPARED = 2
"""Targets per sample whose outputs are compared."""


@dataclass
class Entry:
    """What was found of one provider.

    Attributes:
        error: largest difference from the first provider's output; None where there is none to compare.
        seconds: per target and sample, one entry per repeat; empty if it was not timed, then ``reason`` says why.
        peak: growth of the resident set during one call, bytes.
        measured: targets per sample of each call.
    """

    provider: Provider
    error: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    measured: int = 0
    reason: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def spread(self) -> float | None:
        """Longest over shortest, without the outer tenths (of three, of all)."""
        ordered = sorted(self.seconds)
        cut = len(ordered) // 10
        return ordered[-1 - cut] / ordered[cut] if ordered else None


def disagreement(ours: Tensor, theirs: Tensor) -> float:
    """Largest relative difference (2-norm) of any target."""
    ours, theirs = ours.flatten(2), theirs.flatten(2)
    return float(((ours - theirs).norm(dim=2) / theirs.norm(dim=2)).max())


def measure(parts: list[Provider], x: Tensor, classes: Tensor, repeats: int) -> list[Entry]:
    """Seconds per target of each, taken in turns. The first call of each is not timed: it checks and sees the memory.

    Args:
        parts: the first is what the others' outputs are compared with.
        classes: ``(B, K)``.

    Raises:
        Exception: whatever a provider raises that is not optional.
    """
    found = [Entry(part) for part in parts]
    expected: Tensor | None = None
    for entry in found:
        asked = _asked(entry.provider, classes)
        try:
            answer, entry.peak = growth(partial(entry.provider.run, x, asked, _ignore))
        except Exception as error:
            if not entry.provider.optional:
                raise
            entry.reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            continue
        entry.measured = asked.shape[1]
        if entry.provider.comparable:
            entry.error, expected = _check(entry, expected, answer, x, asked)
        del answer
    for _ in range(repeats):
        for entry in found:
            if entry.reason is None:
                entry.seconds.append(seconds(entry.provider, x, classes))
    return found


def _check(
    entry: Entry, expected: Tensor | None, answer: Tensor, x: Tensor, asked: Tensor
) -> tuple[float | None, Tensor]:
    """The difference from the first provider's first targets, and those."""
    if answer.shape[1] != asked.shape[1]:  # A stream gives its last block alone.
        again = entry.provider.run(x, asked[:, :COMPARED], _ignore)
        assert again is not None
        answer = again
    part = answer[:, :COMPARED].double().clone()
    if expected is None:
        return None, part
    error = disagreement(expected[:, : part.shape[1]], part)
    if not error <= AGREES:
        entry.reason = f"its output differs by {error:.1e}"
    return error, expected


def seconds(part: Provider, x: Tensor, classes: Tensor) -> float:
    """One call, per target and sample. What happens once per call counts as for all K targets."""
    asked = _asked(part, classes)
    lap: list[float] = []
    begin = time.perf_counter()
    result = part.run(x, asked, lambda: lap.append(time.perf_counter()))
    end = time.perf_counter()
    del result  # not before: freeing it is not its maker's work
    fixed = lap[0] - begin if lap else 0.0
    each = fixed / classes.shape[1] + (end - begin - fixed) / asked.shape[1]
    return each / len(classes)


def _asked(part: Provider, classes: Tensor) -> Tensor:
    return classes[:, : part.limit] if part.limit else classes


def _ignore() -> None:
    return None


def best(found: list[Entry]) -> dict[str, float]:
    """Per library the time of its better way."""
    fastest: dict[str, float] = {}
    for entry in found:
        middle = entry.median
        if middle is not None:
            library = entry.provider.library
            fastest[library] = min(middle, fastest.get(library, middle))
    return fastest


@dataclass(frozen=True)
class Case:
    """What was asked: the part of a row that names it."""

    scenario: str
    model: str
    composite: str
    classes: Tensor
    size: int
    asked_density: float | None = None
    density: Density | None = None

    def fields(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "model": self.model,
            "composite": self.composite,
            "targets": self.classes.shape[1],
            "batch": len(self.classes),
            "size": self.size,
            "density_asked": self.asked_density,
            "density": self.density.alive if self.density else None,
            "density_reached": self.density.reached if self.density else None,
        }


def rows(case: Case, found: list[Entry], made: dict[str, Any]) -> list[dict[str, Any]]:
    """What is kept of each measurement: where it comes from, what was asked, what was found, ratios of this run."""
    fastest = best(found)
    kept = []
    for entry in found:
        middle = entry.median
        row = {
            **made,
            **case.fields(),
            "provider": entry.provider.name,
            "dtype": entry.provider.dtype,
            "measured_targets": entry.measured,
            "seconds_per_target": middle,
            "spread": entry.spread,
            "error": entry.error,
            "reason": entry.reason,
            "peak_bytes": entry.peak,
            "samples": len(entry.seconds),
        }
        for name in ("zennit", "captum", "toolbox"):
            row[f"times_faster_than_{name}"] = fastest[name] / middle if middle and name in fastest else None
        for name in ("gradient", "floor"):
            row[f"share_of_{name}"] = middle / fastest[name] if middle and name in fastest else None
        one = fastest.get("one-gradient")
        row["times_one_gradient"] = middle * case.classes.numel() / one if middle and one else None
        kept.append(row)
    return kept


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    if row["seconds_per_target"] is None:
        return f"  {row['provider']:18} not timed: {row['reason']}"
    parts = [f"  {row['provider']:18} {row['seconds_per_target']:9.5f} s/target (spread {row['spread']:.2f})"]
    for name, text in (("zennit", "Zennit"), ("captum", "Captum"), ("toolbox", "the Toolbox")):
        if row[f"times_faster_than_{name}"] is not None:
            parts.append(f"{row[f'times_faster_than_{name}']:5.1f} times {text}'s speed")
    for name, text in (("gradient", "a gradient"), ("floor", "the floor")):
        if row[f"share_of_{name}"] is not None:
            parts.append(f"{row[f'share_of_{name}']:5.2f} of {text}")
    if row["peak_bytes"] is not None:
        parts.append(f"{row['peak_bytes'] / 2**20:6.0f} MiB")
    if row["error"] is not None:
        parts.append(f"differs by {row['error']:.0e}")
    return "  ".join(parts)
