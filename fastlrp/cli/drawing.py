"""Maps as PNG files, in the colours of :func:`fastlrp.viz.heatmap`.

A heatmap has at most 255 colours, so the file holds a palette and one byte for each pixel. A map of 224x224 takes
0.9 ms to compress this way and 27 KB; in RGB it is 3.2 ms and 40 KB at the same effort, 11.6 ms and 33 KB at Pillow's
own (one core of a Xeon, zlib 1.2.13).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp import viz
from fastlrp.cli import figure
from fastlrp.cli.errors import need
from fastlrp.viz.areas import PALETTE
from fastlrp.viz.arrays import relevance_map
from fastlrp.viz.colors import SOFT, is_diverging, table
from fastlrp.viz.scale import Scale

if TYPE_CHECKING:
    from PIL.Image import Image

_KEYS, _REST = 10, "#888888"
"""Classes with a colour of their own, and the colour of all others."""
_EFFORT = 1
"""Of zlib: more takes five times as long for a tenth of the size."""


@dataclass(frozen=True)
class Look:
    """How maps are drawn: arguments of :func:`fastlrp.viz.heatmap` and :func:`fastlrp.viz.overlay`.

    ``plain``: the pixels of the map alone, on a scale to its largest ``|R|``; otherwise figures with class, score and
    colour bar, on the scale that grids have.
    """

    cmap: str = SOFT
    normalize: str = "symmetric"
    level: float | None = None
    zoom: int = 1
    alpha: float | str = "relevance"
    plain: bool = False

    def check(self) -> None:
        """Raises:
        ValueError: for an unknown colour map. ImportError: without Pillow and matplotlib.
        """
        viz.heatmap(np.zeros((1, 1)), cmap=self.cmap, normalize=self.normalize)

    def heatmap(self, relevance: np.ndarray, zoom: int | None = None) -> bytes:
        """A PNG file of a map ``(H, W)`` or ``(C, H, W)``."""
        values = relevance_map(relevance)
        scale = Scale.of(self.normalize, self.level, [values])
        places = scale.places(values, is_diverging(self.cmap))
        picture = need("PIL.Image", "pillow").fromarray(places)
        picture.putpalette(table(self.cmap).tobytes())
        times = self.zoom if zoom is None else zoom
        return _png(picture.resize((picture.width * times, picture.height * times), 0) if times > 1 else picture)

    def overlay(self, relevance: np.ndarray, picture: Image) -> bytes:
        """A PNG file of a map over what the model saw."""
        drawn = viz.overlay(
            relevance,
            picture,
            alpha=self.alpha,
            grey=True,
            normalize=self.normalize,
            cmap=self.cmap,
            level=self.level,
            zoom=self.zoom,
        )
        return _png(drawn)

    def figure(self, relevance: np.ndarray, title: str, below: str, picture: Image | None = None) -> bytes:
        """A PNG file of a map, or of a map over its picture, with class, score and colour bar."""
        values = relevance_map(relevance)
        scale = Scale.of(self.normalize, self.level, [values], None)
        if scale.normalize == "unaligned":
            beyond = 0.0
        else:
            beyond = float((np.abs(values) > scale.high).mean())
        size = values.shape[::-1] if picture is None else picture.size
        options: dict[str, Any] = {
            "normalize": self.normalize, "cmap": self.cmap, "zoom": self.zoom * figure.times(size[0], size[1]),
            "level": (scale.low, scale.high) if scale.normalize == "unaligned" else scale.high,
        }  # fmt: skip
        if picture is None:
            drawn = viz.heatmap(values, **options)
        else:
            drawn = viz.overlay(values, picture, alpha=self.alpha, grey=True, **options)
        return _png(figure.framed(drawn, scale, self.cmap, title, below, beyond))

    def areas(self, winners: np.ndarray, names: Any, picture: Image, below: str) -> bytes:
        """A PNG file of the class that wins at each place ``(H, W)``, over the picture, with a key."""
        sizes = np.bincount(winners.ravel())
        classes = [int(number) for number in np.argsort(-sizes, kind="stable") if sizes[number]]
        shown = classes[:_KEYS]
        colors = {number: PALETTE[i % len(PALETTE)] for i, number in enumerate(shown)}
        colors |= dict.fromkeys(classes[_KEYS:], _REST)
        entries = [
            (colors[number], f"{names(number)}: {fixed_percent(sizes[number] / winners.size)}") for number in shown
        ]
        if len(classes) > _KEYS:
            entries.append((_REST, f"{len(classes) - _KEYS} more classes"))
        times = self.zoom * figure.times(*picture.size)
        large = picture.convert("RGB").resize((picture.width * times, picture.height * times), 0)
        drawn = viz.segments(winners, large, background=None, colors=colors)
        return _png(figure.keyed(drawn, entries, "The class that wins at each place", below))

    def facts(self) -> dict[str, Any]:
        """What the pictures depend on."""
        return {
            "cmap": self.cmap, "normalize": self.normalize, "level": self.level, "zoom": self.zoom, "alpha": self.alpha,
            "plain": self.plain,
        }  # fmt: skip


def fixed_percent(share: float) -> str:
    """A share of 1 as a percentage with three digits."""
    return f"{100 * share:.3g} %"


def _png(picture: Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=_EFFORT)
    return stream.getvalue()
