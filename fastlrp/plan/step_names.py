"""The names of steps where people look for them: in tracebacks and in profiles."""

from __future__ import annotations

from typing import Any

import torch

_WAYS = ("in the forward pass through ", "in the way down through ", "in the way up through ")

NO_RULE = "gradient (no rule)"
"""What plans call the rule of an operation that has none, where ``unsupported="gradient"`` lets it go on."""


def profiling() -> bool:
    """Whether a profiler of PyTorch listens to this thread."""
    return bool(torch.autograd._profiler_enabled())


def record_function(name: str) -> Any:
    """A range of that name in the profile."""
    return torch.autograd.profiler.record_function(name)


def note_forward(error: Exception, name: str) -> None:
    """Says at the end of the traceback which step of a forward pass raised the error."""
    _note(error, _WAYS[0] + name)


def note_down(error: Exception, name: str) -> None:
    """Says at the end of the traceback which step of the way down raised the error."""
    _note(error, _WAYS[1] + name)


def note_up(error: Exception, name: str) -> None:
    """Says at the end of the traceback which step of the way up raised the error."""
    _note(error, _WAYS[2] + name)


def _note(error: Exception, note: str) -> None:
    # The steps of a smaller block of targets run inside those of the larger one: the innermost step has spoken.
    if not any(said.startswith(_WAYS) for said in getattr(error, "__notes__", ())):
        error.add_note(note)
