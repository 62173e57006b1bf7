"""Coloured texts for a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator

from fastlrp.viz import text_page
from fastlrp.viz.text_colors import Color, on_white, share_of
from fastlrp.viz.text_sample import TextData, TextSample

COLORS = ("truecolor", "256")
_MARKS = ((2 / 3, 3), (1 / 3, 2), (0.1, 1))
_FAINT, _END, _INDENT = "\x1b[2m", "\x1b[0m", "  "
_WHITE = "5;231"
_LEAST = 0.02
"""Shares below have no colour: white boxes on a dark terminal would say something."""


def terminal(view: TextData, color: bool | str | None, width: int | None) -> str:
    """See :meth:`fastlrp.viz.Text.terminal`."""
    mode = _mode(color)
    columns = max(20, (shutil.get_terminal_size().columns if width is None else width))
    lines: list[str] = []
    for sample in view.samples:
        if sample.name:
            lines.append(text_page.shown(sample.name))
        for k in range(len(sample.targets)):
            level = view.level_of(sample, k)
            head = [text_page.shown(sample.targets[k])] if sample.targets[k] else []
            lines.append("   ".join([*head, *text_page.facts(sample, k, view.scale, level)]))
            lines += _wrapped(_words(sample, k, level, mode), columns)
        lines.append("")
    return "\n".join([*lines, _legend(view, mode)])


def _mode(color: bool | str | None) -> str | None:
    """``"truecolor"``, ``"256"`` or None."""
    if isinstance(color, str):
        if color not in COLORS:
            raise ValueError(f"unknown color {color!r}: expected True, False or one of {', '.join(map(repr, COLORS))}")
        return color
    if color is None:
        color = not os.environ.get("NO_COLOR") and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if not color:
        return None
    return "truecolor" if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") else "256"


def _words(sample: TextSample, k: int, level: float, mode: str | None) -> Iterator[list[tuple[str, str, bool]]]:
    """Pieces that no line break separates, each as it is written, its letters, and whether a line ends behind it."""
    word: list[tuple[str, str, bool]] = []
    for piece, value in zip(sample.pieces, sample.of_pieces(k), strict=True):
        text, ends = piece.text.removesuffix("\n"), piece.text.endswith("\n")
        share = share_of(value, level)
        if word and (piece.spaced or word[-1][2]):
            yield word
            word = []
        if mode is None:
            text += mark(share)
        word.append((_coloured(text, share, piece.special, mode), text, ends))
    if word:
        yield word


def mark(share: float) -> str:
    """``[+++]`` to ``[---]``; nothing below a tenth."""
    count = next((number for least, number in _MARKS if abs(share) >= least), 0)
    return f"[{('+' if share > 0 else '-') * count}]" if count else ""


def _wrapped(words: Iterator[list[tuple[str, str, bool]]], columns: int) -> list[str]:
    lines, line, used = [], _INDENT, 0
    for word in words:
        size = sum(cells(plain) for _, plain, _ in word)
        if used and used + 1 + size > columns - len(_INDENT):
            lines.append(line)
            line, used = _INDENT, 0
        if used:
            line, used = line + " ", used + 1
        for written, plain, _ in word:
            if used and used + cells(plain) > columns - len(_INDENT):  # A word longer than a line, or no spaces at all.
                lines.append(line)
                line, used = _INDENT, 0
            line, used = line + written, used + cells(plain)
        if word[-1][2]:
            lines.append(line)
            line, used = _INDENT, 0
    return [*lines, line] if used else lines


def _coloured(text: str, share: float, special: bool, mode: str | None) -> str:
    if mode is None:
        return text
    if abs(share) < _LEAST:
        return f"{_FAINT}{text}{_END}" if special else text
    back = on_white(share)
    if mode == "256" and _code(back, mode) == _WHITE:
        return text
    ink = "30" if abs(share) < 0.75 else "97"
    return f"\x1b[{ink};48;{_code(back, mode)}m{text}{_END}"


def _code(color: Color, mode: str) -> str:
    if mode == "truecolor":
        return "2;{};{};{}".format(*color)
    red, green, blue = (round(c / 51) for c in color)
    return f"5;{16 + 36 * red + 6 * green + blue}"


def _legend(view: TextData, mode: str | None) -> str:
    level = view.largest()
    low, high = ("−max", "+max") if view.scale == "each" else (f"−{level:.3g}", f"+{level:.3g}")
    if mode is None:
        bar = f"{low} [---] … 0 … [+++] {high}"
        return f"{bar}  {text_page.says(view, '+ speaks for the target, - against it')}"
    steps = [_coloured("  ", n / 4, False, mode) or "  " for n in range(-4, 5)]
    return f"{low} {''.join(steps)} {high}  {text_page.says(view)}"


def cells(text: str) -> int:
    """Columns that a text takes."""
    return sum(
        0
        if unicodedata.combining(c) or c in "\u200c\u200d\ufe0f"
        else 2
        if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )
