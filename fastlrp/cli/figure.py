"""A map as a figure: the class and its score above, a colour bar below. Drawn with Pillow, some 30 ms each."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlrp.cli.errors import need
from fastlrp.viz.colors import is_diverging, table
from fastlrp.viz.numbers import number
from fastlrp.viz.scale import Scale

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 320
"""Pixels of the longer side of a map in a figure; smaller maps are enlarged by a whole number."""

_MARGIN, _BAR, _GAP = 12, 11, 6
_LARGE, _SMALL = 16, 12
_DRAWING = threading.Lock()
"""FreeType's fonts are not for several threads at once."""


def times(width: int, height: int) -> int:
    """By how much a map of this size is enlarged."""
    return max(1, -(-LEAST // max(width, height)))


def framed(picture: Image, scale: Scale, cmap: Any, title: str, below: str, beyond: float) -> Image:
    """The picture of a map with what a reader needs around it.

    Args:
        scale, cmap: of the map. title: class and score. below: small print. beyond: share of the entries that lie
            beyond the scale.
    """
    pil, draw_on = need("PIL.Image", "pillow"), need("PIL.ImageDraw", "pillow")
    width = max(picture.width, LEAST // 2) + 2 * _MARGIN
    notes = ["relevance"]
    if beyond:
        notes.append(f"{number(100 * beyond)} % of the entries lie beyond the scale")
    with _DRAWING:
        heading = _wrapped(title, _font(_LARGE), width - 2 * _MARGIN)
        small = _font(_SMALL)
        foot = _wrapped("; ".join(notes), small, width - 2 * _MARGIN)
        foot += _wrapped(below, small, width - 2 * _MARGIN)
        top = _MARGIN + (_LARGE + 4) * len(heading) + _GAP
        bar = top + picture.height + _GAP + 2
        height = bar + _BAR + 4 + (_SMALL + 4) * (1 + len(foot)) + _MARGIN
        made = pil.new("RGB", (width, height), "white")
        pen = draw_on.Draw(made)
        for i, line in enumerate(heading):
            pen.text((_MARGIN, _MARGIN + i * (_LARGE + 4)), line, "black", _font(_LARGE))
        made.paste(picture.convert("RGB"), ((width - picture.width) // 2, top))
        _bar(made, pen, scale, cmap, (_MARGIN, bar, width - 2 * _MARGIN), small)
        for i, line in enumerate(foot):
            pen.text((_MARGIN, bar + _BAR + 4 + (i + 1) * (_SMALL + 4)), line, "#505050", small)
    return made


def keyed(picture: Image, entries: Sequence[tuple[str, str]], title: str, below: str) -> Image:
    """The picture of a map of classes with what its colours mean: ``entries`` of a colour and a name."""
    pil, draw_on = need("PIL.Image", "pillow"), need("PIL.ImageDraw", "pillow")
    width = max(picture.width, LEAST) + 2 * _MARGIN
    with _DRAWING:
        small = _font(_SMALL)
        heading, foot = (
            _wrapped(text, _font(size), width - 2 * _MARGIN) for text, size in ((title, _LARGE), (below, _SMALL))
        )
        line = _SMALL + 6
        top = _MARGIN + (_LARGE + 4) * len(heading) + _GAP
        keys = top + picture.height + _GAP + 2
        height = keys + line * len(entries) + (_SMALL + 4) * len(foot) + _MARGIN
        made = pil.new("RGB", (width, height), "white")
        pen = draw_on.Draw(made)
        for i, text in enumerate(heading):
            pen.text((_MARGIN, _MARGIN + i * (_LARGE + 4)), text, "black", _font(_LARGE))
        made.paste(picture.convert("RGB"), ((width - picture.width) // 2, top))
        for i, (color, name) in enumerate(entries):
            at = keys + i * line
            pen.rectangle((_MARGIN, at, _MARGIN + _SMALL, at + _SMALL), fill=color, outline="#808080")
            pen.text((_MARGIN + _SMALL + 6, at - 1), _cut(name, small, width - 3 * _MARGIN - _SMALL), "black", small)
        for i, text in enumerate(foot):
            pen.text((_MARGIN, keys + line * len(entries) + i * (_SMALL + 4)), text, "#505050", small)
    return made


def _bar(made: Image, pen: Any, scale: Scale, cmap: Any, place: tuple[int, int, int], font: Any) -> None:
    left, top, width = place
    colors = table(cmap)
    if scale.normalize == "absolute" and is_diverging(cmap):
        colors = colors[len(colors) // 2 :]
    strip = need("PIL.Image", "pillow").fromarray(colors[None]).resize((width, _BAR))
    made.paste(strip, (left, top))
    pen.rectangle((left, top, left + width - 1, top + _BAR - 1), outline="#808080")
    signed = scale.normalize != "absolute"
    ends = [(scale.low, 0.0, "la"), (scale.high, 1.0, "ra")]
    if scale.normalize == "symmetric":
        ends.append((0.0, 0.5, "ma"))
    for value, share, anchor in ends:
        at = (left + share * (width - 1), top + _BAR + 3)
        pen.text(at, number(value, sign=signed), "black", font, anchor=anchor)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """At most two lines; what does not fit ends in an ellipsis."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    lines += [line] if line else []
    if len(lines) > 2:
        lines = [lines[0], f"{lines[1]} …"]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


@lru_cache
def _font(size: int) -> Any:
    """DejaVu Sans, which comes with matplotlib and has minus signs and superscripts."""
    path = Path(need("matplotlib").get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return need("PIL.ImageFont", "pillow").truetype(str(path), size)
