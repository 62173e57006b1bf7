"""Colour maps by name: matplotlib's, and the looks of Zennit and of the LRP Toolbox."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.viz.libraries import need
from fastlrp.viz.scale import PLACES

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

    Cmap = str | Colormap | Sequence[Any]
    """A name, a colour map of matplotlib's, or colours from low to high."""

SOFT = "soft"
"""What pictures are drawn in unless told otherwise: blue to red over white, softer than ``bwr``."""

Stops = tuple[tuple[float, str], ...]

# Place on the map -> colour, linear in between. Sources: the names and looks of zennit.image.CMAPS (Zennit 0.5), and
# of the custom maps in render.py (LRP Toolbox 1.3) and apply_heatmap.py (its demonstrator for Caffe).
SEQUENTIAL: dict[str, Stops] = {
    "zennit:gray": ((0, "#000000"), (1, "#ffffff")),
    "zennit:wred": ((0, "#ffffff"), (1, "#ff0000")),
    "zennit:wblue": ((0, "#ffffff"), (1, "#0000ff")),
    "zennit:hot": ((0, "#000000"), (1 / 3, "#ff0000"), (2 / 3, "#ffff00"), (1, "#ffffff")),
    "zennit:cold": ((0, "#000000"), (0.5, "#0000ff"), (1, "#00ffff")),
}
DIVERGING: dict[str, Stops] = {
    "fastlrp:soft": ((0, "#1d4f8f"), (0.25, "#7fabd6"), (0.5, "#ffffff"), (0.75, "#e4977f"), (1, "#a6241d")),
    "zennit:coldnhot": (
        (0, "#00ffff"), (0.25, "#0000ff"), (0.5, "#000000"), (2 / 3, "#ff0000"), (5 / 6, "#ffff00"), (1, "#ffffff"),
    ),
    "zennit:bwr": ((0, "#0000ff"), (0.5, "#ffffff"), (1, "#ff0000")),
    "zennit:france": ((0, "#0055a4"), (0.5, "#ffffff"), (1, "#ef4135")),
    "zennit:seismic": ((0, "#0000d0"), (0.5, "#d0d0d0"), (1, "#d00000")),
    "zennit:coolio": ((0, "#00d0d0"), (0.5, "#d0d0d0"), (1, "#d000d0")),
    "zennit:coleus": ((0, "#00d000"), (0.5, "#d0d0d0"), (1, "#d000d0")),
    "toolbox:gray-red": ((0, "#0000ff"), (0.5, "#cccccc"), (1, "#ff0000")),
    "toolbox:gray-red2": (
        (0, "#000066"), (0.35, "#6666e6"), (0.5, "#e6e6e6"), (0.65, "#e66666"), (1, "#660000"),
    ),
    "toolbox:black-green": ((0, "#0000ff"), (0.5, "#000000"), (1, "#00ff00")),
    "toolbox:black-firered": (
        (0, "#ffffff"), (0.25, "#00ffff"), (0.375, "#0000ff"), (0.5, "#000000"),
        (0.625, "#ff0000"), (0.75, "#ffff00"), (1, "#ffffff"),
    ),
    "toolbox:blue-black-yellow": ((0, "#0000ff"), (0.5, "#000000"), (1, "#ffff00")),
}  # fmt: skip
# Which of matplotlib's have a neutral middle.
_DIVERGING_THERE = (
    "PiYG", "PRGn", "BrBG", "PuOr", "RdGy", "RdBu", "RdYlBu", "RdYlGn", "Spectral", "coolwarm", "bwr", "seismic",
    "berlin", "managua", "vanimo",
)  # fmt: skip

_OURS = {**SEQUENTIAL, **DIVERGING}
# "wred" is "zennit:wred" unless matplotlib has a map of that name.
_SHORT = {name.partition(":")[2]: name for name in _OURS}


def colormap(name: Cmap) -> Colormap:
    """The colour map of this name.

    Args:
        name: one of ``viz.COLORMAPS``: matplotlib's names, ``soft``, and those of Zennit and the Toolbox with
            ``zennit:`` or ``toolbox:`` in front. The prefix may be left out where matplotlib has no map of the name
            (it has ``gray``, ``hot``, ``bwr`` and ``seismic``). ``_r`` at the end reverses. Or a matplotlib colour map;
            or a list of two or more colours from low to high, evenly spaced.

    Raises:
        ValueError: for an unknown name, with those that are close. TypeError: for anything else.

    Example::

        assert viz.colormap("coldnhot").name == "zennit:coldnhot"
    """
    colors = need("matplotlib.colors")
    if isinstance(name, colors.Colormap):
        return name
    if isinstance(name, str):
        return _by_name(name)
    if isinstance(name, (list, tuple)) and len(name) > 1:
        return colors.LinearSegmentedColormap.from_list("colors", list(name))
    raise TypeError(f"a colour map is a name, a matplotlib colour map or a list of two or more colours, got {name!r}")


def _by_name(name: str) -> Colormap:
    known = need("matplotlib").colormaps
    if name in known:
        return known[name]
    forward = name.removesuffix("_r")
    full = _SHORT.get(forward, forward)
    if full not in _OURS:
        close = difflib.get_close_matches(name, colormaps(), 4)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise ValueError(f"unknown colour map {name!r}: {hint}fastlrp.viz.COLORMAPS lists all")
    found = need("matplotlib.colors").LinearSegmentedColormap.from_list(full, _OURS[full])
    return found.reversed() if forward != name else found


def colormaps() -> list[str]:
    """All names, ours first."""
    theirs = list(need("matplotlib").colormaps)
    ours = [*(name for name in _SHORT if name not in theirs), *_OURS]
    return [*ours, *(f"{name}_r" for name in ours), *theirs]


def is_diverging(name: Cmap) -> bool:
    """Whether the middle of the colour map is its neutral colour."""
    label = str(name if isinstance(name, str) else getattr(name, "name", "")).removesuffix("_r")
    return label in _DIVERGING_THERE or _SHORT.get(label, label) in DIVERGING


def table(cmap: Cmap) -> np.ndarray:
    """The colours of ``PLACES`` places from one end to the other, ``(255, 3)`` uint8; the middle one is exact."""
    return _table(cmap) if isinstance(cmap, str) else _sampled(colormap(cmap))


@lru_cache(maxsize=64)
def _table(name: str) -> np.ndarray:
    return _sampled(colormap(name))


def _sampled(cmap: Colormap) -> np.ndarray:
    # A map of 256 colours has no middle one; resampled to 255 it has.
    found = np.rint(cmap.resampled(PLACES)(np.arange(PLACES))[:, :3] * 255).astype(np.uint8)
    found.flags.writeable = False
    return found
