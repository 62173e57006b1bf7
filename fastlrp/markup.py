"""Small pieces of HTML that notebooks show for an object, readable on a light and on a dark page.

Text takes the page's own colour, and what is coloured is a transparent tint below it, so that nothing depends on the
background.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from html import escape

SCREENFUL = 24
"""Rows of a table that are shown at once; longer ones are folded up."""

_FONT = "font: 13px/1.45 system-ui, sans-serif; color: inherit"
_CELL = "padding: 2px 10px; border: 0; background: none; color: inherit; white-space: nowrap"
_LINE = "border-bottom: 1px solid rgba(128, 128, 128, .3)"
_GOOD, _BAD = "rgba(30, 160, 90, .22)", "rgba(220, 50, 50, .28)"


def card(title: str, body: str, note: str = "") -> str:
    """A title, HTML below it, and a note in small print whose lines are kept."""
    foot = f'<div style="opacity: .75; font-size: 12px; white-space: pre-wrap">{escape(note)}</div>' if note else ""
    return (
        f'<div style="{_FONT}; margin: 4px 0; overflow-x: auto"><div style="font-weight: 600">{escape(title)}</div>'
        f"{body}{foot}</div>"
    )


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Collection[int] = (),
    rules: int | None = None,
    good: Sequence[bool] | None = None,
) -> str:
    """A table of text.

    Args:
        header: empty for none. numbers: columns of numbers, to the right. rules: a column whose cells get a tint, the
            same one for the same text. good: for each row whether its numbers are; the others get a red tint.
    """

    def style(column: int, extra: str = "") -> str:
        side = "right; font-variant-numeric: tabular-nums" if column in numbers else "left"
        return f'style="{_CELL}; text-align: {side}{extra}"'

    head = "".join(
        f"<th {style(i, f'; font-weight: 600; {_LINE}')}>{escape(text)}</th>" for i, text in enumerate(header)
    )
    lines = []
    for i, row in enumerate(rows):
        tint = f' style="background: {_BAD}"' if good is not None and not good[i] else ' style="background: none"'
        cells = "".join(
            f"<td {style(j)}>{_chip(text) if j == rules else escape(text)}</td>" for j, text in enumerate(row)
        )
        lines.append(f"<tr{tint}>{cells}</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    look = "border-collapse: collapse; margin: 4px 0; font: inherit; color: inherit"
    return f'<table style="{look}">{top}<tbody>{"".join(lines)}</tbody></table>'


def _chip(text: str) -> str:
    hue = int(hashlib.sha256(text.partition("(")[0].encode()).hexdigest(), 16) % 360
    tint = "none" if text in ("", "-") else f"hsla({hue}, 70%, 50%, .22)"
    return f'<span style="background: {tint}; border-radius: 4px; padding: 0 5px">{escape(text)}</span>'


def verdict(ok: bool, good: str, bad: str) -> str:
    """A sign, a word and a tint for something that holds or does not."""
    sign, text, tint = ("✓", good, _GOOD) if ok else ("✗", bad, _BAD)
    style = f"background: {tint}; border-radius: 4px; padding: 1px 7px"
    return f'<div><span style="{style}">{sign} {escape(text)}</span></div>'


def details(title: str, body: str) -> str:
    """HTML that opens at a click."""
    return f'<details><summary style="cursor: pointer">{escape(title)}</summary>{body}</details>'


def folded(body: str, rows: int, what: str) -> str:
    """A table as it is, or to be opened where it has more than :data:`SCREENFUL` rows."""
    return body if rows <= SCREENFUL else details(f"{rows} {what}", body)
