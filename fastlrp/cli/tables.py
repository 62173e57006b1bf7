"""Tables in files ``.csv``: a row for each sample, a column for each feature, with a header or without."""

from __future__ import annotations

import csv
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastlrp.cli import texts

_KEPT: OrderedDict[tuple[Path, int, int], Table] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers ``(N, F)`` and the names of the F features; None without a header."""

    values: np.ndarray
    names: tuple[str, ...] | None


def read(path: Path) -> Table:
    """The table of a file; the latest two are remembered.

    Raises:
        ValueError: for text that is no table of numbers; says where. OSError: from the system.
    """
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _KEPT:
        _KEPT[key] = _parsed(path)
        while len(_KEPT) > 2:
            _KEPT.popitem(last=False)
    return _KEPT[key]


def _parsed(path: Path) -> Table:
    text = texts.read(path)
    lines = text.splitlines()
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = [(n, row) for n, row in enumerate(csv.reader(lines, delimiter=separator), 1) if any(map(str.strip, row))]
    if not rows:
        raise ValueError(f"{path} is empty: expected a row for each sample, with commas between the numbers")
    names = None
    if _is_header(rows[0][1]):
        names = tuple(cell.strip() for cell in rows[0][1])
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path} has a header and no row of numbers")
    width = len(names or rows[0][1])
    values = []
    for line, row in rows:
        if len(row) != width:
            raise ValueError(f"line {line} of {path} has {len(row)} columns, the first one has {width}")
        numbers = [_number(cell) for cell in row]
        if None in numbers:
            column = numbers.index(None)
            called = f"{column + 1}" if names is None else f"{column + 1} ({names[column]})"
            raise ValueError(f"line {line} of {path}, column {called}: {row[column]!r} is no number")
        values.append(numbers)
    return Table(np.array(values, np.float64), names)


def _is_header(cells: list[str]) -> bool:
    """Whether a first line has names: no numbers, or beside names 0, 1, 2, … as columns without names are written.

    A line with other numbers is a sample, in which something is missing or is no number.
    """
    numbers = [(i, n) for i, n in enumerate(map(_number, cells)) if n is not None]
    if not numbers:
        return True
    place, first = numbers[0]
    counted = first in (0, 1) and numbers == [(place + i, first + i) for i in range(len(numbers))]
    return 1 < len(numbers) < len(cells) and counted


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
