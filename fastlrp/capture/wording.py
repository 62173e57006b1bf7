"""Sizes and PyTorch's own messages in words for people: no symbols such as ``s33`` or ``u0``."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BATCH = re.compile(r"(?<![A-Za-z0-9_])s\d+(?![A-Za-z0-9_])")
_DATA = re.compile(r"(?<![A-Za-z0-9_])z?uf?\d+(?![A-Za-z0-9_])")


def without_symbols(text: str) -> str:
    """The text with the names that torch.export gives to unknown sizes replaced by what they stand for."""
    return _DATA.sub("<computed from data>", _BATCH.sub("batch", text))


def shape_text(shape: Sequence[int | str | None]) -> str:
    """``(batch, 3, 8)``: a captured value's shape, whose None is the batch size."""
    sizes = ["batch" if size is None else without_symbols(str(size)) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
