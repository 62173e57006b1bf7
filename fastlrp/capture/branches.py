"""Where a forward pass branches on the values of a tensor, which a trace does not know, and what to do about it."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

_NOT_THE_MODELS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")
"""Where code lies that is not the model's own."""


def reads_data(error: Exception) -> bool:
    """Whether torch.export failed for the values of a tensor."""
    return "data-dependent" in str(error).lower() or "guard on" in str(error).lower()


def instead_of_a_branch(error: Exception) -> str:
    """What the forward pass does and what to write in its place; a sentence behind the error."""
    place, text = _line(error) or ("", "")
    at = f", {place}: `{text}`" if text else ""
    if re.match(r"(assert\b|torch\._assert)", text):
        return (
            f" The forward pass asserts something about the values of a tensor ({place}: `{text}`), which are not "
            "known while it is traced. Take the assertion out; python -O leaves out those that are statements."
        )
    return (
        f" The forward pass branches on the values of a tensor (an `if` or a loop over data{at}), so it is not one "
        "graph. Replace the branch by torch.where, or explain the sub-module that has no branch; of a detector, "
        "backbone and head as one module, before non-maximum suppression (docs/targets.md: boxes of a detector)."
    )


def _line(error: BaseException | None) -> tuple[str, str] | None:
    """File and line of the model's innermost code that the error came through, and what stands there."""
    while error is not None:
        found = None
        for file, number in _lines(error.__traceback__):
            if not file.startswith(_NOT_THE_MODELS):
                found = file, number
        if found is not None:
            text = linecache.getline(*found).strip()
            return f"{Path(found[0]).name}, line {found[1]}", text if len(text) <= 100 else f"{text[:100]}…"
        error = error.__cause__ or error.__context__
    return None


def _lines(traceback: TracebackType | None) -> Iterator[tuple[str, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
