"""From a map to text for the page, and back: coarsen, quantise, predict, deflate, base64.

The page undoes it in ``templates/codec.js``; :func:`unpack` is the same in Python. The prediction is our own because
deflate alone makes smooth maps, such as those of trained networks, 1.3 to 1.9 times as large (noise: 1.00 to 1.06).
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np

PLAIN, MEDIAN = "p", "m"
"""How a map's integers were predicted: not at all; from the neighbours left, above and above left."""


@dataclass(frozen=True)
class Packed:
    """One map as it stands in the page.

    Attributes:
        text: base64 of zlib-compressed residuals. kind: :data:`PLAIN` or :data:`MEDIAN`. scale: relevance is
            ``q * scale``. error: no shown value is further from the relevance than this. total: sum of the map.
    """

    text: str
    kind: str
    scale: float
    error: float
    total: float


def coarse(R: np.ndarray, factor: int) -> np.ndarray:
    """Sums over cells of ``factor x factor`` positions, ``(ceil(h / f), ceil(w / f))``: what adds up still does.

    A single row is summed along its length only. The last cells may have fewer positions.
    """
    if factor == 1:
        return R
    h, w = R.shape
    down = 1 if h == 1 else factor
    padded = np.pad(R, ((0, -h % down), (0, -w % factor)))
    cells: np.ndarray = padded.reshape(padded.shape[0] // down, down, -1, factor).sum((1, 3))
    return cells


def quantise(R: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
    """``q`` of int8 and ``scale = max|R| / (2^(bits-1) - 1)``, so that ``|R - q * scale| <= scale / 2``."""
    top = 2 ** (bits - 1) - 1
    scale = float(np.abs(R).max()) / top
    if scale == 0:  # Zeros, or numbers so small that their scale is zero.
        return np.zeros(R.shape, np.int8), 0.0
    return np.clip(np.rint(R / scale), -top, top).astype(np.int8), scale


def _neighbours(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    padded = np.pad(q.astype(np.int16), ((1, 0), (1, 0)))
    return padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]


def _median(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The median of left, above and left + above - corner: flat areas, edges and slopes are all predicted.

    Source: Weinberger, Seroussi and Sapiro, "The LOCO-I lossless image compression algorithm", 2000, section III-A.
    """
    low, high = np.minimum(left, above), np.maximum(left, above)
    return np.clip(left + above - corner, low, high)


def deflate(q: np.ndarray) -> tuple[str, bytes]:
    """The shorter of q as it is (noise) and its differences from the median prediction (smooth maps), modulo 256."""
    predicted = q - _median(*_neighbours(q))
    found = []
    for kind, values in ((PLAIN, q), (MEDIAN, predicted)):
        # Z_FILTERED: no short matches, which save nothing here. 5 to 15 % smaller than the default on real relevance.
        squeeze = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
        found.append((kind, squeeze.compress(values.astype(np.uint8).tobytes()) + squeeze.flush()))
    return min(found, key=lambda item: len(item[1]))


def inflate(kind: str, data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of :func:`deflate`."""
    values = np.frombuffer(zlib.decompress(data), np.int8).reshape(shape)
    if kind == PLAIN:
        return values
    h, w = shape
    q = np.zeros((h + 1, w + 1), np.int64)
    for y in range(1, h + 1):
        for x in range(1, w + 1):
            left, above, corner = q[y, x - 1], q[y - 1, x], q[y - 1, x - 1]
            guess = min(max(left + above - corner, min(left, above)), max(left, above))
            q[y, x] = (values[y - 1, x - 1] + guess + 128) % 256 - 128
    return q[1:, 1:].astype(np.int8)


def pack(R: np.ndarray, bits: int, factor: int, error: float = 0.0) -> Packed:
    """Encode one map ``(h, w)`` of float64.

    Args:
        bits: 2 to 8. factor: see :func:`coarse`. error: how far each value of R may already be from the relevance.
    """
    cells = coarse(R, factor)
    q, scale = quantise(cells, bits)
    kind, data = deflate(q)
    joined = factor if R.shape[0] == 1 else factor * factor
    # A little more than half a step, for the rounding of q * scale itself.
    bound = (scale / 2 + joined * error) * (1 + 1e-9)
    return Packed(base64.b64encode(data).decode(), kind, scale, bound, float(R.sum()))


def unpack(text: str, kind: str, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """What the page shows, ``(h, w)`` float64."""
    return inflate(kind, base64.b64decode(text), shape) * scale
