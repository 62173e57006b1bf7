"""Ctrl-C: the first asks for a clean stop, the second means it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any


class Stop:
    """While it is open, the first interrupt sets ``asked``; the next ones raise KeyboardInterrupt.

    Args:
        message: what the first interrupt says on stderr.
    """

    def __init__(self, message: str) -> None:
        self.asked = False
        self._message = f"\n{message}\n".encode()
        self._before: Any = None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not through sys.stderr, which may be in the middle of a line when the signal comes.
        with suppress(OSError):
            os.write(2, self._message)


def deaf() -> None:
    """Further interrupts do nothing: the program is on its way out."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
