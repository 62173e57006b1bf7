"""Forks of the process while a model is traced.

A child of a process that traces would find PyTorch half replaced, and wait for a thread that it does not have. A fork
therefore waits for the end of the trace. It does not wait for ever: where the trace itself waits for the thread that
forks, which its model started, neither would go on.
"""

from __future__ import annotations

import os
import threading

LONGEST = 30.0
"""Seconds that a fork waits."""


class ForkLock:
    """A lock that one thread may take several times, and that the process is without when it forks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._forking = threading.local()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def _before(self) -> None:
        self._forking.holds = self._lock.acquire(timeout=LONGEST)

    def _in_parent(self) -> None:
        if self._forking.holds:
            self._lock.release()

    def _in_child(self) -> None:
        if self._forking.holds:
            self._lock.release()
        else:
            self._lock = threading.RLock()  # Nobody here will ever release the other.
