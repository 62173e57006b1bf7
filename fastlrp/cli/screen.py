"""What people and machines see: notes and a progress bar on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from fastlrp.cli.errors import DONE, FAILED, need, printable
from fastlrp.cli.store import Record
from fastlrp.progress import Lines

FEW = 20
"""Inputs that get a line each; of more, people see the bar and the end."""
SMALL_SCORE = 1e-5
"""Ten times the epsilon that composites have unless told otherwise."""

_SAME = 5


class Screen:
    """Output of one command.

    Args:
        machine: JSON lines on stdout, nothing for people but errors. quiet: errors only.
    """

    def __init__(self, machine: bool, quiet: bool) -> None:
        self.machine, self.quiet = machine, quiet
        self._bar: Any = None
        self._lines: Lines | None = None
        self._count = 0
        self.begun = self.ready = time.monotonic()

    def facts(self, rows: list[tuple[str, str]]) -> None:
        """What is going to be done, on stderr."""
        if not self.quiet and not self.machine:
            width = max(len(name) for name, _ in rows)
            for name, value in rows:
                click.echo(printable(f"{name:<{width}}  {value}"), err=True)

    def note(self, text: str) -> None:
        """Something that a user should know, on stderr."""
        if not self.quiet:
            self._write(f"note: {text}", err=True)

    def error(self, text: str) -> None:
        """Something that went wrong, on stderr."""
        self._write(f"error: {text}", err=True)

    def line(self, text: str) -> None:
        """A result for people, on stdout."""
        if not self.machine and not self.quiet:
            self._write(text)

    def data(self, line: dict[str, Any]) -> None:
        """A result for machines, on stdout."""
        if self.machine:
            click.echo(json.dumps(line))

    def start(self, total: int, done: int, unit: str = "input") -> None:
        """The inputs' turn begins: a bar with the rate and the time left, if a person is looking; lines in a log."""
        self.ready = time.monotonic()
        self._count = done
        if not self.quiet and sys.stderr.isatty():
            bar = need("tqdm").tqdm
            self._bar = bar(total=total, initial=done, unit=unit, file=sys.stderr, dynamic_ncols=True, smoothing=0.05)
        elif not self.quiet and not self.machine and total > FEW:
            self._lines = Lines(total, unit, done=done)

    def advance(self, count: int = 1) -> None:
        self._count += count
        if self._lines is not None:
            self._lines.reach(self._count)
        if self._bar is not None:
            self._bar.update(count)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._lines = None

    def _write(self, text: str, err: bool = False) -> None:
        text = printable(text)
        if self._bar is None:
            click.echo(text, err=err)
        else:  # Above the bar, not through it.
            self._bar.write(text, file=sys.stderr if err else sys.stdout)


class Tally:
    """Counts what became of the inputs, and tells of each."""

    def __init__(self, screen: Screen, total: int, out: str = "") -> None:
        self.screen, self.total, self._out = screen, total, out
        self.done = self.kept = self.failed = 0
        self._errors: dict[str, int] = {}
        self._told_small = False

    def __call__(self, line: Record) -> None:
        status = line["status"]
        public = {key: value for key, value in line.items() if key not in ("key", "name", "stamp")}
        self.screen.data(public)
        if status == "kept":
            self.kept += 1
            return  # They are in the bar from the start.
        self.screen.advance()
        if status == "failed":
            self.failed += 1
            self._tell_error(str(line["error"]), str(line["input"]))
            return
        self.done += 1
        self._tell_small(line)
        if self.total <= FEW:
            self.screen.line(_sentence(line, self._out))

    def _tell_error(self, error: str, path: str) -> None:
        kind = error.replace(path, "")
        self._errors[kind] = self._errors.get(kind, 0) + 1
        if self._errors[kind] <= _SAME:
            self.screen.error(error if path in error else f"{path}: {error}")
        if self._errors[kind] == _SAME:
            self.screen.note("the same error in further inputs is counted, not shown; --json has all")

    def _tell_small(self, line: Record) -> None:
        """Scores that the rules' stabilizers may have absorbed, once."""
        small = [target for target in line["targets"] if 0 < abs(target["score"]) < SMALL_SCORE]
        if small and not self._told_small:
            self._told_small = True
            self.screen.note(
                f"the score {small[0]['score']:.2g} of class {small[0]['class']} ({line['input']}) is near the epsilon "
                "of the rules, which may have absorbed most of it: `fastlrp verify` shows how much"
            )

    @property
    def left(self) -> int:
        """Inputs that nothing is known of yet."""
        return self.total - self.done - self.kept - self.failed

    @property
    def code(self) -> int:
        """Exit code of a run that came to its end."""
        return FAILED if self.failed else DONE

    def summary(self, interrupted: bool = False) -> None:
        """Print the last line: how many inputs were explained, and where the results are."""
        seconds = time.monotonic() - self.screen.begun
        left = self.left
        self.screen.data(
            {
                "event": "end",
                "inputs": self.total,
                "done": self.done,
                "kept": self.kept,
                "failed": self.failed,
                "left": left,
                "interrupted": interrupted,
                "seconds": round(seconds, 3),
                "seconds_before": round(self.screen.ready - self.screen.begun, 3),
            }
        )
        parts = [f"{self.done} of {self.total} inputs explained in {seconds:.1f} s"]
        parts += [f"{self.kept} were done before"] if self.kept else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{left} left"] if left else []
        if not self.screen.quiet and not self.screen.machine:
            click.echo(", ".join(parts) + (f"; results in {self._out}" if self._out else ""), err=True)


def _sentence(line: Record, out: str) -> str:
    sample = "" if line["sample"] is None else f"[{line['sample']}]"
    shown = ", ".join(_target(t) for t in line["targets"][:5]) + (", …" if len(line["targets"]) > 5 else "")
    count = len(line["files"])
    return f"{line['input']}{sample}: {shown} -> {count} file{'s' if count != 1 else ''}"


def _target(target: dict[str, Any]) -> str:
    number, name = target["class"], target["name"]
    return f"{number}{'' if name == str(number) else f' {name}'} ({target['score']:.4g})"
