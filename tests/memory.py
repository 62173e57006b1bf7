"""Collects what tests leave behind, which Python frees only now and then.

Graphs are cycles, and so is what torch.export leaves behind of a capture; both hold the parameters of their model.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import pytest

_STATUS = Path("/proc/self/statm")
_PAGE = 4096
GROWTH = 256 << 20
"""A process that has grown by so many bytes since it was last collected is collected again."""
THRESHOLDS = (100_000, 20, 1000)
"""Of Python's own collector, whose defaults walk everything that tests share again and again: a tenth of the run."""


class Collector:
    """A plugin that keeps the tests' processes small: several hold networks of half a gigabyte one after the other."""

    def __init__(self) -> None:
        self._held = self._now()
        gc.set_threshold(*THRESHOLDS)

    @staticmethod
    def _now() -> int:
        try:
            return int(_STATUS.read_text().split()[1]) * _PAGE
        except OSError:  # Another system than Linux.
            return 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        """The tests themselves stay to the end: no collection walks them again."""
        gc.collect()
        gc.freeze()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """After each test."""
        if self._now() > self._held + GROWTH:
            gc.collect()
            _give_back()
            self._held = self._now()


def _give_back() -> None:
    """Freed memory that the C library keeps, of which plans tell it to keep more than it would by itself."""
    with contextlib.suppress(OSError, AttributeError):  # Another C library than that of GNU.
        ctypes.CDLL(None).malloc_trim(0)
