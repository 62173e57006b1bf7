"""Switches that are read when a module is first imported, by whichever test: they are set before all."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("FASTLRP_CHECK", "1")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
