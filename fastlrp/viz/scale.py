"""From relevance to a place on a colour map."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

NORMALIZE = ("symmetric", "absolute", "unaligned")
PLACES = 255
"""Places on a colour map: an odd number, so that the middle is one of them."""

_MIDDLE = PLACES // 2

Level = float | tuple[float, float] | None


@dataclass(frozen=True)
class Scale:
    """``low`` is drawn in the colour map's first colour, ``high`` in its last, what lies beyond like the ends.

    ======================  ==================  ========================================
    ``normalize``           drawn               low, high
    ======================  ==================  ========================================
    ``"symmetric"``         R                   -level, level: 0 is the middle
    ``"absolute"``          ``|R|``             0, level
    ``"unaligned"``         R                   the smallest and the largest R
    ======================  ==================  ========================================

    where level is the largest ``|R|``, unless given.
    """

    normalize: str
    low: float
    high: float

    @staticmethod
    def of(normalize: str, level: Level, maps: Iterable[np.ndarray], quantile: float | None = 1.0) -> Scale:
        """The scale that a picture of these maps has; without a quantile that of :func:`usual`.

        Raises:
            ValueError: for an unknown ``normalize`` or a level that does not fit.
        """
        if normalize not in NORMALIZE:
            raise ValueError(f"unknown normalize {normalize!r}: expected one of {', '.join(map(repr, NORMALIZE))}")
        if quantile is None:
            maps = list(maps)
            quantile = 1.0
            if level is None and normalize != "unaligned":
                level = usual(maps)
        if normalize == "unaligned":
            low, high = _bounds(level) if level is not None else extent(maps, quantile)
            return Scale(normalize, low, high)
        size = largest(maps, quantile) if level is None else _size(level)
        return Scale(normalize, -size if normalize == "symmetric" else 0.0, size)

    def places(self, values: np.ndarray, diverging: bool) -> np.ndarray:
        """Index into a table of ``PLACES`` colours, uint8, of the shape of ``values``.

        On a diverging colour map, ``"absolute"`` uses the half above the middle: zero is neutral there too.
        """
        shares = self._shares(values)
        if self.normalize == "symmetric" or (self.normalize == "absolute" and diverging):
            shares = shares * _MIDDLE + _MIDDLE
        else:
            shares = shares * (PLACES - 1)
        return np.rint(shares, out=shares).astype(np.uint8)

    def _shares(self, values: np.ndarray) -> np.ndarray:
        """In [-1, 1] for symmetric, else in [0, 1]."""
        if self.normalize == "unaligned":
            if self.high == self.low:
                return np.full(values.shape, 0.5)
            # Halves, because the difference of two large numbers may overflow.
            span = self.high / 2 - self.low / 2
            return ((values.astype(np.float64) / 2 - self.low / 2) / span).clip(0, 1)
        if self.normalize == "absolute":
            values = np.abs(values)
        return _divided(values, self.high)

    def opacity(self, values: np.ndarray) -> np.ndarray:
        """``|R|`` as a share of the largest that is drawn, in [0, 1]."""
        return _divided(np.abs(values), max(abs(self.low), abs(self.high)))


def _divided(values: np.ndarray, size: float) -> np.ndarray:
    if size == 0:  # Everything is zero; what is not lies beyond the scale.
        return np.sign(values)
    with np.errstate(over="ignore"):
        if size < np.finfo(np.float32).tiny or size > np.finfo(np.float32).max:
            values = values.astype(np.float64)
        return (values / values.dtype.type(size)).clip(-1, 1)


def largest(maps: Iterable[np.ndarray], quantile: float = 1.0) -> float:
    """Largest ``|R|`` of all maps, or that quantile of ``|R|``.

    Raises:
        ValueError: for a quantile outside of (0, 1], or if there is no map.
    """
    if isinstance(quantile, bool) or not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile!r}")
    if quantile == 1:
        sizes = [max(float(values.max()), -float(values.min())) for values in maps]
        return max(_some(sizes))
    found = np.concatenate(_some([np.abs(values).ravel() for values in maps]))
    return float(np.quantile(found, quantile))


def extent(maps: Iterable[np.ndarray], quantile: float = 1.0) -> tuple[float, float]:
    """Smallest and largest R of all maps, drawn in to plus and minus :func:`largest`."""
    maps = list(maps)
    size = largest(maps, quantile)
    low, high = min(float(values.min()) for values in maps), max(float(values.max()) for values in maps)
    return max(low, -size), min(high, size)


def usual(maps: Iterable[np.ndarray]) -> float:
    """The level that a grid has unless told otherwise: at most one in a hundred entries that are not zero is beyond it.

    It is one of the maps' own numbers, the largest where there are fewer than a hundred.
    """
    found = np.concatenate(_some([np.abs(values).ravel() for values in maps]))
    found = found[found > 0]
    return float(np.quantile(found, 0.99, method="higher")) if found.size else 0.0


def _some(found: list[Any]) -> list[Any]:
    if not found:
        raise ValueError("there is no map to take a level from: give at least one")
    return found


def _size(level: Any) -> float:
    if isinstance(level, (tuple, list)):
        raise ValueError(f"level={level!r} is a range, which is for normalize='unaligned': give the largest |R|")
    try:
        size = math.nan if isinstance(level, bool) else float(level)
    except (TypeError, ValueError):
        size = math.nan
    if not (math.isfinite(size) and size >= 0):
        raise ValueError(f"level must be a finite number >= 0, the largest |R| of the scale, got {level!r}")
    return size


def _bounds(level: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in level)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"level must be (smallest, largest) with normalize='unaligned', got {level!r}")
    return low, high
