"""Text that fits: measured, wrapped, cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastlrp.viz.libraries import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
"""Of a grid's layout: its lengths are in hundredths of an inch."""

SMALL, NORMAL, LARGE = 8.0, 9.0, 12.0
"""Font sizes in points."""

_BASELINE = 0.78
"""Of a line's height, from its top."""


class Pen:
    """Measures and writes text in one figure. Lengths are pixels at ``DPI``."""

    def __init__(self, figure: Figure) -> None:
        self._renderer: Any = need("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).get_renderer()
        self._properties = need("matplotlib.font_manager").FontProperties

    def width(self, text: str, size: float) -> float:
        """The width of the longest line."""
        font = self._properties(size=size)
        lines = [line for line in text.split("\n") if line]
        return max((self._renderer.get_text_width_height_descent(line, font, False)[0] for line in lines), default=0.0)

    def height(self, text: str, size: float) -> float:
        return (text.count("\n") + 1) * line_height(size) if text else 0.0

    def wrapped(self, text: str, size: float, width: float, lines: int) -> str:
        """At most so many lines of that width; what does not fit ends in an ellipsis.

        Of several paragraphs the last stays: it is what a grid has added, the size or the scale.
        """
        done: list[str] = []
        for paragraph in text.split("\n"):
            line = ""
            for word in paragraph.split(" "):
                longer = f"{line} {word}" if line else word
                if line and self.width(longer, size) > width:
                    done.append(line)
                    line = word
                else:
                    line = longer
            done.append(line)
        if len(done) > lines:
            kept = done[-1:] if "\n" in text and lines > 1 else []
            done = [*done[: lines - 1 - len(kept)], f"{done[lines - 1 - len(kept)]} …", *kept]
        return "\n".join(self._cut(line, size, width) for line in done)

    def _cut(self, line: str, size: float, width: float) -> str:
        if self.width(line, size) <= width:
            return line
        kept = line.removesuffix("…").rstrip()
        if "." in kept and " " not in kept:  # The end of a module's path says more than its beginning.
            while kept and self.width(f"…{kept}", size) > width:
                kept = kept[1:]
            return f"…{kept}"
        while kept and self.width(f"{kept}…", size) > width:
            kept = kept[:-1]
        return f"{kept}…"


def line_height(size: float) -> float:
    return size * DPI / 72 * 1.25


def write(axes: Any, x: float, y: float, text: str, size: float = NORMAL, ha: str = "center", at: str = "top") -> None:
    """Text as it is (a dollar sign is no formula), with its ``top``, ``bottom`` or ``middle`` at y.

    Line by line on baselines: matplotlib places a block by what its letters need, which differs from label to label.
    """
    lines, step = text.split("\n"), line_height(size)
    top = y - {"top": 0.0, "middle": 0.5, "bottom": 1.0}[at] * step * len(lines)
    for number, line in enumerate(lines):
        if line:
            place = (x, top + (number + _BASELINE) * step)
            axes.text(*place, line, fontsize=size, ha=ha, va="baseline", color="black", parse_math=False, usetex=False)
