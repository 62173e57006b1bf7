"""Coloured texts as a matplotlib figure, for files that are pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastlrp.viz import text_page
from fastlrp.viz.labels import DPI, NORMAL, SMALL, Pen, line_height, write
from fastlrp.viz.libraries import need
from fastlrp.viz.text_colors import on_white, share_of
from fastlrp.viz.text_sample import TextData, TextSample

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SIZE, _MARGIN, _STEP = 11.0, 14.0, 22.0
"""Font size of the texts in points; space around everything and height of a line, pixels at ``DPI``."""

_BAR = 260.0


def figure(view: TextData, width: float) -> Figure:
    """See :meth:`fastlrp.viz.Text.figure`."""
    columns = width * DPI - 2 * _MARGIN
    if not width > 1.5:
        raise ValueError(f"width must be more than 1.5 inches, got {width!r}")
    made = need("matplotlib.figure").Figure(dpi=DPI, facecolor="white")
    pen = Pen(made)
    marks: list[tuple[str, Any]] = []
    y = _MARGIN
    for sample in view.samples:
        if sample.name:
            y = _paragraph(marks, pen, text_page.shown(sample.name), _SIZE, columns, y)
        for k in range(len(sample.targets)):
            level = view.level_of(sample, k)
            head = [text_page.shown(sample.targets[k])] if sample.targets[k] else []
            line = "    ".join([*head, *text_page.facts(sample, k, view.scale, level)])
            y = _paragraph(marks, pen, line, NORMAL, columns, y)
            y = _text(marks, pen, sample, k, level, columns, y) + 8
    says = pen.wrapped(text_page.says(view), SMALL, columns, 4)
    height = y + 46 + pen.height(says, SMALL) + _MARGIN
    made.set_size_inches(width, height / DPI)
    axes = made.add_axes((0, 0, 1, 1), xlim=(0, width * DPI), ylim=(height, 0))
    axes.axis("off")
    for kind, arguments in marks:
        _MARK[kind](axes, *arguments)
    _legend(axes, view, y)
    write(axes, _MARGIN, y + 40, says, SMALL, ha="left")
    return made


def _paragraph(marks: list[tuple[str, Any]], pen: Pen, text: str, size: float, width: float, y: float) -> float:
    wrapped = pen.wrapped(text, size, width, 3)
    marks.append(("text", (_MARGIN, y, wrapped, size, "black")))
    return y + pen.height(wrapped, size) + 3


def _text(
    marks: list[tuple[str, Any]], pen: Pen, sample: TextSample, k: int, level: float, width: float, y: float
) -> float:
    """The pieces of a text, wrapped; where it ends."""
    x, space = 0.0, pen.width("n n", _SIZE) - pen.width("nn", _SIZE)
    for piece, value in zip(sample.pieces, sample.of_pieces(k), strict=True):
        text, size = piece.text.removesuffix("\n"), SMALL if piece.special else _SIZE
        for part in _lines(pen, text, size, width):
            long = pen.width(part, size)
            x += space if piece.spaced and x else 0.0
            if x and x + long > width:
                x, y = 0.0, y + _STEP
            share = share_of(value, level)
            marks.append(("box", (_MARGIN + x, y, long, on_white(share))))
            ink = "white" if abs(share) > 0.75 else "#777777" if piece.special else "black"
            marks.append(("text", (_MARGIN + x, y + (_STEP - line_height(size)) / 2, part, size, ink)))
            x += long
        if piece.text.endswith("\n"):
            x, y = 0.0, y + _STEP
    return y + (_STEP if x else 0.0)


def _lines(pen: Pen, text: str, size: float, width: float) -> list[str]:
    """A piece that is longer than a line, in parts."""
    if pen.width(text, size) <= width:
        return [text]
    count = max(1, int(len(text) * width / pen.width(text, size)) - 1)
    return [text[i : i + count] for i in range(0, len(text), count)]


def _box(axes: Any, x: float, y: float, width: float, color: tuple[int, int, int]) -> None:
    rectangle = need("matplotlib.patches").Rectangle
    axes.add_patch(rectangle((x, y + 1), width, _STEP - 2, color=[c / 255 for c in color], linewidth=0))


def _letters(axes: Any, x: float, y: float, text: str, size: float, ink: str) -> None:
    before = len(axes.texts)
    write(axes, x, y, text, size, ha="left")
    for made in axes.texts[before:]:
        made.set_color(ink)


_MARK: dict[str, Callable[..., None]] = {"box": _box, "text": _letters}


def _legend(axes: Any, view: TextData, y: float) -> None:
    level = view.largest()
    count = 64
    for n in range(count):
        share = 2 * (n + 0.5) / count - 1
        color = [c / 255 for c in on_white(share)]
        rectangle = need("matplotlib.patches").Rectangle
        axes.add_patch(rectangle((_MARGIN + n * _BAR / count, y + 8), _BAR / count + 0.5, 9, color=color, linewidth=0))
    low, high = ("−max", "+max") if view.scale == "each" else (f"−{level:.3g}", f"+{level:.3g}")
    for place, label, side in ((0.0, low, "left"), (0.5, "0", "center"), (1.0, high, "right")):
        write(axes, _MARGIN + place * _BAR, y + 20, label, SMALL, ha=side)
