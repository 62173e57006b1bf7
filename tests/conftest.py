"""Triton reads its switch for the interpreter when it is first imported, by whichever test: it is set before all."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
