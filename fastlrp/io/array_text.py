"""Matrices as text, as :func:`numpy.savetxt` and the Toolbox have them: a line for each row, blanks between numbers."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from fastlrp.files import PathLike, read_bytes
from fastlrp.io.lines import Lines, shortest

_EXACT = 2**53


def read(path: PathLike, max_bytes: int | None) -> np.ndarray:
    """The matrix (rows, columns) as float64. What follows a ``#`` in a line, and empty lines, are left out."""
    lines = Lines(path, read_bytes(path, max_bytes))
    rows: list[np.ndarray] = []
    while (line := lines.take_or_end()) is not None:
        words = line.partition("#")[0].split()
        if words:
            count = len(rows[0]) if rows else len(words)
            rows.append(lines.numbers(words, count, f"row {len(rows) + 1}, as long as the first", finite=False))
    if not rows:
        lines.fail("the file holds no number")
    lines.check_last()
    return np.stack(rows)


def write(stream: BinaryIO, values: np.ndarray) -> None:
    """One or two axes; one axis becomes a column. Numbers read back as the same."""
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"text takes a matrix, or a vector as its column, got the shape {values.shape}")
    matrix = values[:, None] if values.ndim == 1 else values
    for row in matrix:
        stream.write(" ".join(_words(row)).encode("ascii") + b"\n")


def _words(row: np.ndarray) -> list[str]:
    if row.dtype.kind == "f":
        if row.dtype.itemsize > 8:
            raise TypeError(f"text holds float64 and smaller, got {row.dtype}")
        return shortest(row if row.dtype in (np.float32, np.float64) else row.astype(np.float32))
    integers = [int(value) for value in row.tolist()]
    if any(abs(value) > _EXACT for value in integers):
        raise ValueError("text is read as float64, which does not hold integers beyond 2**53: write .npy")
    return [str(value) for value in integers]
