"""Triton's kernels run with NumPy here: the switch must be set before any of them is imported."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.fixtures import poisoned, seeded  # noqa: F401
