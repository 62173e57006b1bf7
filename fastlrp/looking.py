"""Whether values are looked at while relevance is computed, for which a GPU has to be waited for."""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor

LOOKS: ContextVar[bool] = ContextVar("looks", default=True)
"""False while a replay is recorded: what is recorded must hold for all values."""


def may_look(t: Tensor) -> bool:
    """Whether to look at values where that may save work: on a CPU, where nothing waits for it."""
    return t.device.type == "cpu" and LOOKS.get()


def may_wait(t: Tensor) -> bool:
    """Whether the values may decide what is computed: not while a replay or another CUDA graph is recorded."""
    return LOOKS.get() and not (t.is_cuda and torch.cuda.is_current_stream_capturing())
