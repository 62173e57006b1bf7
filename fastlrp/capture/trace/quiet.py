"""What torch.export writes to the screen when it fails is kept back: the error that we raise says it.

What it notes for its own messages about each operation, the lines of Python that led there, is not made at all: nothing
here reads them, and they are an eighth of the time of a capture.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch.fx.config

_LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
_TRACES = "do_not_emit_stack_traces"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A failing trace logs hundreds of lines before it raises what we report, and prints all of the graph so far."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    written = sys.stderr
    sys.stderr = _WithoutGraphs(written)
    traces = getattr(torch.fx.config, _TRACES, None)  # PyTorch 2.11 has no such switch.
    if traces is not None:
        setattr(torch.fx.config, _TRACES, True)
    try:
        yield
    finally:
        sys.stderr = written
        if traces is not None:
            setattr(torch.fx.config, _TRACES, traces)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _WithoutGraphs:
    """A stream that leaves out graphs that this thread prints; what models and other threads write comes through."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.thread, self.left_out = stream, threading.get_ident(), False

    def write(self, text: str) -> int:
        own = threading.get_ident() == self.thread
        graph = own and "\ndef forward(self" in text and "torch.ops." in text
        end_of_graph = own and self.left_out and text == "\n"
        self.left_out = graph
        return len(text) if graph or end_of_graph else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
