"""A layer without axes of space in a cell of a grid: bars, the strongest with their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlrp.viz.heatmaps import colored
from fastlrp.viz.labels import SMALL, write
from fastlrp.viz.libraries import need
from fastlrp.viz.scale import Scale

MOST = 32
"""Entries of a layer that is drawn as bars; of more the bars would be too thin to be told apart."""
_NAMED, _APART = 3, 18.0
_ROOM = 13.0
"""Pixels above and below the bars for their numbers."""


def draw_bars(axes: Any, values: np.ndarray, scale: Scale, cmap: Any, corner: tuple[float, float], side: float) -> None:
    """Bars up for relevance above zero and down below, as high as the scale says, in its colours.

    Args:
        values: ``(N,)``. corner: of the cell, left and top. side: of the cell.
    """
    left, top = corner
    largest = max(abs(scale.high), abs(scale.low)) or 1.0
    absolute = scale.normalize == "absolute"
    heights = np.clip((np.abs(values) if absolute else values) / largest, -1, 1)
    zero = top + (side - _ROOM if absolute else side / 2)
    full = side - 2 * _ROOM if absolute else side / 2 - _ROOM
    width = side / len(values)
    colors = colored(values[None], scale, cmap)[0] / 255
    rectangle = need("matplotlib.patches").Rectangle
    axes.add_patch(rectangle(corner, side, side, fill=False, edgecolor="#b0b0b0", linewidth=0.6))
    for n, share in enumerate(heights):
        y = zero - full * max(share, 0.0)
        bar = rectangle(
            (left + (n + 0.1) * width, y), 0.8 * width, full * abs(share), facecolor=colors[n], edgecolor="#606060",
            linewidth=0.3,
        )  # fmt: skip
        axes.add_patch(bar)
    axes.plot((left, left + side), (zero, zero), color="#606060", linewidth=0.5)
    for n in _named(values, width):
        share, x = heights[n], left + (n + 0.5) * width
        y = zero - full * share + (2 if share < 0 else -2)
        x = min(max(x, left + _APART / 2), left + side - _APART / 2)
        write(axes, x, y, str(n), SMALL, at="top" if share < 0 else "bottom")


def _named(values: np.ndarray, width: float) -> list[int]:
    """The strongest entries whose numbers do not meet."""
    chosen: list[int] = []
    for n in np.argsort(-np.abs(values), kind="stable"):
        if len(chosen) == _NAMED or values[n] == 0 or abs(values[n]) < np.abs(values).max() / 4:
            break
        if all(abs(int(n) - other) * width >= 2 * _APART for other in chosen):
            chosen.append(int(n))
    return chosen
