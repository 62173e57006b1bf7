"""Takes providers in turns: outputs first, then seconds per target and peak memory, then ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.clock import Clock, Stamp, growth, peak_in_all
from benchmarks.density import Density
from benchmarks.providers import Provider

AGREES = 1e-4
"""Largest relative difference (2-norm of any target) of outputs that are timed."""

TRIES = 3
"""Calls at most for one time on a GPU."""

COMPARED = 2
"""Targets per sample whose outputs are compared."""


@dataclass
class Entry:
    """What was found of one provider.

    Attributes:
        error: largest difference from the first provider's output; None where there is none to compare.
        seconds: per target and sample, one entry per repeat; empty if it was not timed, then ``reason`` says why.
        peak: what one call holds at most beside what was held before it, bytes.
        total: what the process holds of the device at most, everybody's weights included; None on a CPU.
        measured: targets per sample of each call.
    """

    provider: Provider
    error: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    total: int | None = None
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


@dataclass(frozen=True)
class Gate:
    """What outputs are compared with before they are timed, and how far from it they may be.

    Attributes:
        expected: ``(B, at least COMPARED, …)``, float64; None: the first provider's.
        ours, others: largest difference of fastlrp and of everybody else. A wide gate lets no multiple of the right
            result through, and not nothing at all: with ``expected`` given, a difference is relative to the smaller.
    """

    expected: Tensor | None = None
    ours: float = AGREES
    others: float = AGREES

    def limit(self, provider: Provider) -> float:
        found = self.ours if provider.library == "fastlrp" else self.others
        return found if provider.rounds is None else max(found, provider.rounds)


def disagreement(ours: Tensor, theirs: Tensor) -> float:
    """Largest relative difference (2-norm) of any target."""
    ours, theirs = ours.flatten(2), theirs.flatten(2)
    return float(((ours - theirs).norm(dim=2) / theirs.norm(dim=2)).max())


def measure(parts: list[Provider], x: Tensor, classes: Tensor, repeats: int, gate: Gate | None = None) -> list[Entry]:
    """Seconds per target of each, taken in turns. The first call of each is not timed: it checks and sees the memory.

    Args:
        parts: the first is what the others' outputs are compared with, if the gate has nothing else; its own are then
            the caller's to check.
        classes: ``(B, K)``.

    Raises:
        Exception: whatever a provider raises that is not optional.
    """
    found = [Entry(part) for part in parts]
    given = gate is not None and gate.expected is not None
    gate = gate or Gate()
    for entry in found:
        with _reasons(entry):
            asked = _asked(entry.provider, classes)
            answer, entry.peak = growth(x.device, partial(entry.provider.run, x, asked, _ignore))
            entry.measured, entry.total = asked.shape[1], peak_in_all(x.device)
            if entry.provider.comparable:
                gate = _check(entry, gate, given, answer, x, asked)
        answer = None
    for _ in range(repeats):
        for entry in found:
            if entry.reason is None:
                with _reasons(entry):
                    entry.seconds.append(seconds(entry.provider, x, classes))
    return found


@contextmanager
def _reasons(entry: Entry) -> Iterator[None]:
    """An error of a provider that is optional becomes the reason why it is left out."""
    try:
        yield
    except Exception as error:
        if not entry.provider.optional:
            raise
        text = (str(error).strip().splitlines() or ["without a word"])[0]
        entry.reason = f"{type(error).__name__}: {text[:200]}"
        entry.seconds.clear()


def _check(entry: Entry, gate: Gate, given: bool, answer: Any, x: Tensor, asked: Tensor) -> Gate:
    """Write down the difference of the first targets; returns the gate for those who come after."""
    last = answer[:, -COMPARED:]
    if answer.shape[1] != asked.shape[1]:  # A stream gives its last block alone.
        answer = run(entry.provider, x, asked[:, :COMPARED])
    part = answer[:, :COMPARED].double().clone()
    if gate.expected is None:
        return replace(gate, expected=part)
    expected = gate.expected[:, : part.shape[1]].to(part.device)
    entry.error = disagreement(expected, part)
    if given:
        other = disagreement(part, expected)
        entry.error = other if math.isnan(other) else max(entry.error, other)
    if not entry.error <= gate.limit(entry.provider):
        entry.reason = f"its output differs by {entry.error:.1e}"
    elif given and asked.shape[1] >= 2 * COMPARED:
        alone = run(entry.provider, x, asked[:, asked.shape[1] - last.shape[1] :])
        apart = disagreement(last.double(), alone.double())
        if not apart <= gate.limit(entry.provider):
            entry.reason = f"its last targets differ by {apart:.1e} from the same ones asked alone"
    return gate


def run(part: Provider, x: Tensor, classes: Tensor) -> Tensor:
    """The provider's relevance."""
    found = part.run(x, classes, _ignore)
    assert found is not None, f"{part.name} gives nothing to compare"
    return found


def seconds(part: Provider, x: Tensor, classes: Tensor) -> float:
    """One call, per target and sample. What happens once per call counts as for all K targets.

    On a GPU again, if the call had to ask for memory that the one before it, of somebody else, had given back.
    """
    clock = Clock(x.device)
    for _ in range(TRIES):
        before = clock.allocations()
        found = _once(part, x, classes, clock)
        if clock.allocations() == before:
            break
    return found


def _once(part: Provider, x: Tensor, classes: Tensor, clock: Clock) -> float:
    asked = _asked(part, classes)
    lap: list[Stamp] = []
    clock.settle()
    begin = clock.stamp()
    result = part.run(x, asked, lambda: lap.append(clock.stamp()))
    end = clock.stamp()
    whole = clock.between(begin, end)
    del result  # not before: freeing it is not its maker's work
    fixed = clock.between(begin, lap[0]) if lap else 0.0
    each = fixed / classes.shape[1] + (whole - fixed) / asked.shape[1]
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
            "peak_bytes_in_all": entry.total,
            "samples": len(entry.seconds),
        }
        for name in ("zennit", "captum", "toolbox", "lxt", "autolrp"):
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
    for name, text in (
        ("zennit", "Zennit"),
        ("captum", "Captum"),
        ("toolbox", "the Toolbox"),
        ("lxt", "LXT"),
        ("autolrp", "autoLRP"),
    ):
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
