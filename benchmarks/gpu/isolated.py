"""Cases in processes of their own: one that hangs, crashes or loses the device takes nobody else with it.

The parent imports everything, once, and never touches the device: a process that has used CUDA cannot be forked. Each
case is then a fork, which begins at once, has the device to itself as far as errors go, and is killed after its limit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

OK, WRONG, ERROR, SKIPPED, HUNG, DIED, LATE = "ok", "wrong", "error", "skipped", "hung", "died", "no time left"

BAD = (WRONG, ERROR, HUNG, DIED, LATE)


class UnableError(Exception):
    """Raised by a case that cannot run here; says why."""


@dataclass(frozen=True)
class Case:
    """``run`` returns what is to be said of a right result, and raises AssertionError for a wrong one."""

    name: str
    run: Callable[[], Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a case. ``said``: what it returned, or its error with the last lines of its traceback."""

    name: str
    result: str
    seconds: float
    said: str


@dataclass
class _Running:
    case: Case
    process: BaseProcess
    pipe: Connection
    began: float


def outcomes(cases: Sequence[Case], at_once: int, limit: float, seconds: float = float("inf")) -> Iterator[Outcome]:
    """Run the cases, in this order, ``at_once`` of them side by side; yields each as soon as it is over.

    Args:
        limit: seconds that a case may take before it is killed.
        seconds: no case is begun later than this after the call.
    """
    context = multiprocessing.get_context("fork")
    begin = time.monotonic()
    waiting, running = list(reversed(cases)), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                case = waiting.pop()
                if time.monotonic() - begin > seconds:
                    yield Outcome(case.name, LATE, 0.0, f"{seconds:.0f} seconds were over before it began")
                    continue
                running.append(_started(case, context))
            if not running:
                return
            first = min(one.began for one in running) + limit - time.monotonic()
            wait([one.pipe for one in running], timeout=max(0.0, min(first, 1.0)))
            for one in list(running):
                found = _looked_at(one, limit)
                if found is not None:
                    running.remove(one)
                    yield found
    finally:
        for one in running:
            one.process.kill()


def _started(case: Case, context: Any) -> _Running:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(case, there), daemon=True)
    process.start()
    there.close()
    return _Running(case, process, here, time.monotonic())


def _looked_at(one: _Running, limit: float) -> Outcome | None:
    """What became of a case, or None while it runs."""
    taken = time.monotonic() - one.began
    if one.pipe.poll():
        try:
            result, said = one.pipe.recv()
        except EOFError:
            one.process.join(5)
            code = one.process.exitcode
            how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            result, said = DIED, f"its process ended by {how} before it said anything"
    elif taken > limit:
        result, said = HUNG, f"killed after {limit:.0f} s"
    else:
        return None
    # What a lost device leaves behind is not waited for: a process may hang in its own end.
    one.process.join(0.0 if result == HUNG else 2.0)
    if one.process.is_alive():
        one.process.kill()
        one.process.join(5)
    one.pipe.close()
    return Outcome(one.case.name, result, taken, said)


def _run(case: Case, pipe: Connection) -> None:
    """In the fork."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which writes down what there is.
    try:
        said = case.run()
        found = (OK, "" if said is None else str(said))
    except UnableError as reason:
        found = (SKIPPED, str(reason))
    except AssertionError as error:
        found = (WRONG, _told(error))
    except BaseException as error:
        found = (ERROR, _told(error))
    with suppress(OSError):
        pipe.send(found)
    pipe.close()
    # At once: the end of a process whose device is lost says much and helps nobody.
    os._exit(0)


def _told(error: BaseException) -> str:
    """The error, and the last places that it came through."""
    places = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    words = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {words[:1500]} [{' < '.join(reversed(places[-5:]))}]"
