"""The colour bar of a grid."""

from __future__ import annotations

from typing import Any

from fastlrp.viz.colors import is_diverging
from fastlrp.viz.labels import NORMAL, SMALL, Pen, write
from fastlrp.viz.libraries import need
from fastlrp.viz.numbers import number
from fastlrp.viz.scale import Scale

BAR_WIDTH, BAR_HEIGHT = 330.0, 40.0
"""Least width of a figure with a bar; height of the bar with its ticks, without the text below. Pixels."""

_LONG, _THICK, _BOTTOM = 240.0, 10.0, 8.0


def draw_bar(
    figure: Any,
    axes: Any,
    pen: Pen,
    scale: Scale,
    cmap: Any,
    size: tuple[float, float],
    text: str,
    own: str,
    clipped: bool,
) -> None:
    """Below everything: the colours, what their ends and the middle stand for, and the unit.

    Args:
        text: below the bar, lines that fit the width.
        own: ``"row"``, ``"column"`` or ``"cell"`` if each has a scale of its own, else empty.
        clipped: some of the maps go beyond the scale.
    """
    width, height = size
    below = height - pen.height(text, NORMAL) - _BOTTOM
    middle, top = width / 2, below - BAR_HEIGHT + 8
    place = ((middle - _LONG / 2) / width, 1 - (top + _THICK) / height, _LONG / width, _THICK / height)
    colors, cm = need("matplotlib.colors"), need("matplotlib.cm")
    low, high = (scale.low, scale.high) if scale.high > scale.low else (scale.low - 1, scale.high + 1)
    if scale.normalize == "absolute" and is_diverging(cmap):
        cmap = colors.ListedColormap(cmap.resampled(255)(range(127, 255)))
    extend = {True: "max" if scale.normalize == "absolute" else "both", False: "neither"}[clipped]
    mappable = cm.ScalarMappable(colors.Normalize(low, high), cmap)
    bar = figure.colorbar(mappable, cax=figure.add_axes(place), orientation="horizontal", extend=extend)
    # Zero has no place of its own where each map has another range.
    zero = low < 0 < high and not (own and scale.normalize == "unaligned")
    ticks = [low, 0.0, high] if zero else [low, high]
    texts = [_tick(tick, scale, own) for tick in ticks]
    bar.set_ticks(ticks, labels=texts, fontsize=SMALL, color="black", usetex=False)
    bar.ax.tick_params(which="both", length=3, colors="black")
    bar.ax.minorticks_off()
    bar.outline.set(linewidth=0.5, edgecolor="#808080")
    write(axes, middle, below, text)


def _tick(value: float, scale: Scale, own: str) -> str:
    if own and scale.normalize == "unaligned":
        return "max" if value == scale.high else "min"
    if value == 0:
        return "0"
    if own:
        return "max" if value == scale.high else "−max"
    if scale.high == scale.low:
        return ""  # There is nothing but zero, or one number.
    return number(value, sign=scale.normalize != "absolute")
