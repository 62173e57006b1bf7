"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re


def parse_bytes(budget: int | str | None) -> int | None:
    """``None``, bytes, or text such as ``"512MB"``, ``"2 GiB"`` (1 MB = 2**20 bytes).

    Raises:
        ValueError: for anything else, or a budget that is not positive.
    """
    if budget is None or (isinstance(budget, int) and not isinstance(budget, bool) and budget > 0):
        return budget
    pattern = r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)i?B?\s*"
    match = re.fullmatch(pattern, budget, re.IGNORECASE) if isinstance(budget, str) else None
    size = 0 if match is None else int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if size < 1:
        raise ValueError(f"max_memory must be a positive number of bytes or text such as '2GB', got {budget!r}")
    return size


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
