"""Triton's kernels run with NumPy here: the switch must be set before any of them is imported.

Where there is a GPU the process is left to it (``pytest -m gpu``); ``TRITON_INTERPRET=1 pytest tests/kernels`` runs
these tests there.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_triton_*.py"]

from tests.fixtures import poisoned, seeded  # noqa: F401
