"""Whether values are looked at while relevance is computed, for which a GPU has to be waited for."""

from __future__ import annotations

from contextvars import ContextVar

LOOKS: ContextVar[bool] = ContextVar("looks", default=True)
"""False while a replay is recorded: what is recorded must hold for all values."""
