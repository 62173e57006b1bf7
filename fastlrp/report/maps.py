"""Many maps of one layer in half the memory of float32."""

from __future__ import annotations

from typing import Any

import numpy as np

_TOP = 2**15 - 1


class Maps:
    """K maps ``(K, h, w)`` kept as 16-bit integers with one scale per map; reads as float32.

    A value is ``q * scale`` with ``scale = max|R| / 32767`` of its map, so it is within ``max|R| / 65534`` of the
    relevance that was put in. Indexing and ``np.asarray`` give float32.

    Attributes:
        shape: ``(K, h, w)``. error: ``(K,)``, the bound above. total: ``(K,)``, the sum of each map as it was put in,
        in float64.
    """

    ndim = 3
    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._q = np.zeros(shape, np.int16)
        self._scale = np.zeros(shape[0])
        self.total = np.zeros(shape[0])

    def put(self, first: int, block: np.ndarray) -> None:
        """Store maps ``first`` to ``first + len(block) - 1``, ``(k, h, w)``.

        Raises:
            ValueError: for another shape, NaN or infinity.
        """
        count = len(block)
        if block.shape[1:] != self.shape[1:] or not 0 <= first <= self.shape[0] - count:
            raise ValueError(f"a block of shape {block.shape} at {first} does not fit into maps {self.shape}")
        values = block.astype(np.float64)
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(f"relevance has {bad} NaN or infinite entries of {values.size}: give finite numbers")
        at = slice(first, first + count)
        self._scale[at] = np.abs(values).max((1, 2)) / _TOP
        divisor = np.where(self._scale[at] > 0, self._scale[at], 1.0)[:, None, None]
        # A map of subnormal numbers has no scale: 0, as everything that small is.
        self._q[at] = np.where(self._scale[at, None, None] > 0, np.rint(values / divisor), 0)
        self.total[at] = values.sum((1, 2))

    def take(self, first: int, other: Maps) -> None:
        """Store all maps of another object from place ``first`` on, bit for bit."""
        at = slice(first, first + len(other))
        self._q[at], self._scale[at], self.total[at] = other._q, other._scale, other.total

    @property
    def error(self) -> np.ndarray:
        half: np.ndarray = self._scale / 2
        return half

    def exact(self, k: int) -> np.ndarray:
        """Map k in float64, without the rounding to float32."""
        found: np.ndarray = self._q[k] * self._scale[k]
        return found

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        chosen = self._q[first] * self._scale[first][..., None, None]
        found: np.ndarray = chosen.astype(np.float32)
        if not rest:
            return found
        return found[tuple(rest) if np.ndim(self._scale[first]) == 0 else (slice(None), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def __repr__(self) -> str:
        return f"Maps(shape={self.shape}, {self._q.nbytes / 2**20:.1f} MiB)"
