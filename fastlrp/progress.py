"""How far a long call has come: a bar for people who watch, a line now and then for logs.

On a terminal and in a notebook it is tqdm's bar, where tqdm is installed. Elsewhere (a batch job, a file, a pipe) it is
a line on the standard error stream, the first after five seconds, each further one after half as long again as the
last, and at least once in ten minutes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

Wish = bool | Literal["auto"]

AUTO_SECONDS = 3.0
"""With ``"auto"`` calls that end sooner show nothing."""

FIRST_LINE, LONGEST_PAUSE = 5.0, 600.0


class Lines:
    """Lines for a log.

    Args:
        total: of what is done. unit: what is counted, in the singular. first: seconds until the first line.
        done: what was done before. clock: seconds, for tests.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        first: float = FIRST_LINE,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._unit, self._before, self._clock = total, unit, done, clock
        self.begun = clock()
        self._pause = first
        self._next = self.begun + first
        self.said = False

    def reach(self, done: int) -> None:
        """So many are done: a line, if it is time for one."""
        now = self._clock()
        if done >= self._total or done <= self._before or now < self._next:
            return
        seconds = now - self.begun
        left = seconds / (done - self._before) * (self._total - done)
        self.say(f"{done} of {self._total} {self._unit}s, {seconds:.0f} s, about {left:.0f} s left")
        self._pause = min(self._pause * 1.5, LONGEST_PAUSE)
        self._next = now + self._pause

    def end(self) -> None:
        """Say that all is done, and how long it took."""
        self.say(f"{self._total} {self._unit}s, {self._clock() - self.begun:.1f} s")

    def say(self, text: str) -> None:
        self.said = True
        print(f"fastlrp: {text}", file=sys.stderr, flush=True)


class Progress:
    """One call's progress, used as a context.

    Args:
        total: of what is done. wish: True, False or ``"auto"``. unit: what is counted, in the singular.
        clock: seconds, for tests.

    Raises:
        ValueError: for another wish.
    """

    def __init__(self, total: int, wish: Wish, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        if wish not in (True, False, "auto"):
            raise ValueError(f"progress must be True, False or 'auto', got {wish!r}")
        self._total, self._wish, self._unit, self._clock = total, wish, unit, clock
        self._done = 0
        self._bar: Any = None
        self._lines: Lines | None = None

    def __enter__(self) -> Progress:
        if self._wish is False or self._total < 1:
            return self
        auto = self._wish == "auto"
        make = _bar_maker()
        if make is None:
            self._lines = Lines(self._total, self._unit, AUTO_SECONDS if auto else FIRST_LINE, clock=self._clock)
        else:
            delay = AUTO_SECONDS if auto else 0
            self._bar = make(total=self._total, unit=self._unit, delay=delay, dynamic_ncols=True, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._lines is not None and kind is None and (self._lines.said or self._wish is True):
            self._lines.end()

    def reach(self, done: int) -> None:
        """Show that so many are done."""
        if done <= self._done:
            return
        if self._bar is not None:
            self._bar.update(done - self._done)
        elif self._lines is not None:
            self._lines.reach(done)
        self._done = done


def _bar_maker() -> Any:
    """tqdm where somebody watches and it is installed, None elsewhere."""
    notebook = "ipykernel" in sys.modules
    if not notebook and not (sys.stderr is not None and sys.stderr.isatty()):
        return None
    try:
        if notebook:
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
