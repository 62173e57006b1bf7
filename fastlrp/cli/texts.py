"""Small text files: lists, names of classes, configurations."""

from __future__ import annotations

from pathlib import Path

TEXT_BYTES = 2**26


def read(path: Path, most: int = TEXT_BYTES) -> str:
    """A UTF-8 text of at most ``most`` bytes. A pipe is read as well (``--list <(find …)``), a device only so far.

    Raises:
        ValueError: for a larger file, or one that is no UTF-8. OSError: as :func:`open`.
    """
    with open(path, "rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes")
    return data.decode("utf-8-sig")
