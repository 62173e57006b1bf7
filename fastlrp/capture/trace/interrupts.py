"""Ctrl-C while a model is traced.

torch.export swaps parameters and functions of PyTorch for others and back, and calls Python from C++ where an exception
ends the process. A KeyboardInterrupt between any two lines of that may leave something swapped for good, or kill a
notebook's kernel. Here it waits until the trace is over, seconds as a rule; a second one does not wait.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interrupted_afterwards() -> Iterator[None]:
    """What the program's handler of SIGINT raises is raised when the context ends; from the second signal on at once.

    The handler itself is called at once. Signals come to the main thread; in others this does nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    given, called = handler, 0
    waiting: list[BaseException] = []

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal called
        called += 1
        try:
            given(number, frame)
        except BaseException as error:
            if called > 1:
                raise
            waiting.append(error)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is hold:  # Else the model set one of its own.
            signal.signal(signal.SIGINT, given)
        if waiting:
            raise waiting[0]
