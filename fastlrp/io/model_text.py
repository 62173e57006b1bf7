"""The LRP Toolbox's text format of models: a header line for each layer, then its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal, cast

import numpy as np

from fastlrp.files import PathLike
from fastlrp.io.entries import (
    KINDS,
    PLAIN_KINDS,
    POOL_KINDS,
    ConvolutionEntry,
    Entry,
    LinearEntry,
    PlainEntry,
    PoolEntry,
    Size,
)
from fastlrp.io.lines import Lines, shortest, shown

Variant = Literal["line", "rows"]
VARIANTS: tuple[Variant, ...] = ("line", "rows")


def parse(path: PathLike, data: bytes) -> list[Entry]:
    """Entries of a text file; W of a Linear in one line or in m lines, seen from the first of them.

    Raises:
        fastlrp.io.FormatError: with the line and what was expected there.
    """
    lines, size = Lines(path, data), Size()
    entries: list[Entry] = []
    while (line := lines.take_or_end()) is not None:
        if not line.strip():
            lines.end("the empty line that ends a model")
            break
        number = lines.number
        entry = _entry(lines, line)
        try:
            size = size.after(entry)
        except ValueError as error:
            lines.number = number
            lines.fail(str(error))
        entries.append(entry)
    if not entries:
        lines.fail(f"found no layer, expected one of {', '.join(KINDS)}")
    lines.check_last()
    return entries


def _entry(lines: Lines, header: str) -> Entry:
    kind, *words = header.split()
    if kind == "Linear":
        return _linear(lines, words)
    if kind == "Convolution":
        return _convolution(lines, words)
    if kind in POOL_KINDS:
        h, w, s0, s1 = lines.integers(words, "h w s0 s1")
        return PoolEntry(cast(Literal["SumPool", "MaxPool"], kind), (h, w), (s0, s1))
    if kind in PLAIN_KINDS:
        if words:
            lines.fail(f"found {shown(header)}, expected {kind} alone in its line")
        return PlainEntry(cast(Literal["Rect", "Tanh", "SoftMax", "Flatten"], kind))
    return lines.fail(f"unknown layer {shown(kind)}, expected one of {', '.join(KINDS)}")


def _linear(lines: Lines, words: list[str]) -> LinearEntry:
    m, n = lines.integers(words, "m n")
    name = f"Linear {m} {n}"
    words = lines.take(f"W of {name}").split()
    if len(words) == m * n:
        weight = lines.numbers(words, m * n, f"W of {name}").reshape(m, n)
    elif len(words) == n:
        weight = _rows(lines, words, m, n, name)
    else:
        lines.fail(
            f"found {len(words)} numbers, expected {m * n} (W of {name} in one line) or {n} (the first of {m} lines)"
        )
    return LinearEntry(weight, _bias(lines, n, name))


def _rows(lines: Lines, words: list[str], m: int, n: int, name: str) -> np.ndarray:
    # A list, not an array of m rows: m is only what the file says.
    rows = [lines.numbers(words, n, f"row 1 of {m} of W of {name}")]
    for row in range(2, m + 1):
        what = f"row {row} of {m} of W of {name}"
        rows.append(lines.numbers(lines.take(what).split(), n, what))
    return np.stack(rows)


def _convolution(lines: Lines, words: list[str]) -> ConvolutionEntry:
    h, w, d, n, s0, s1 = lines.integers(words, "h w d n s0 s1")
    name, count = f"Convolution {h} {w} {d} {n} {s0} {s1}", h * w * d * n
    values = lines.numbers(lines.take(f"W of {name}").split(), count, f"W of {name}")
    return ConvolutionEntry(values.reshape(h, w, d, n), _bias(lines, n, name), (s0, s1))


def _bias(lines: Lines, n: int, name: str) -> np.ndarray:
    return lines.numbers(lines.take(f"B of {name}").split(), n, f"B of {name}")


def write(entries: Sequence[Entry], stream: BinaryIO, variant: Variant, number_format: str | None) -> None:
    """Write a model, layer by layer; ``number_format`` is a format specification such as ``.3f``, None for exact.

    No empty line at the end: the Toolbox's Matlab version would take it for a layer.
    """
    for entry in entries:
        for line in _lines(entry, variant, number_format):
            stream.write(line.encode("ascii") + b"\n")


def _lines(entry: Entry, variant: Variant, number_format: str | None) -> Iterator[str]:
    yield entry.header()
    if isinstance(entry, (LinearEntry, ConvolutionEntry)):
        if isinstance(entry, LinearEntry) and variant == "rows":
            for row in entry.weight:
                yield _text(row, number_format)
        else:
            yield _text(entry.weight, number_format)
        yield _text(entry.bias, number_format)


def _text(values: np.ndarray, number_format: str | None) -> str:
    if number_format is None:
        return " ".join(shortest(values))
    return " ".join(format(value, number_format) for value in values.reshape(-1).tolist())
