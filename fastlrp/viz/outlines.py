"""The outline of the input over its relevance, as the LRP Toolbox draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.viz.arrays import as_array, check_finite, check_zoom, picture_of
from fastlrp.viz.colors import SOFT
from fastlrp.viz.heatmaps import heatmap
from fastlrp.viz.libraries import need
from fastlrp.viz.scale import Level

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastlrp.viz.colors import Cmap


MAX_OUTLINED = 25_000_000
"""Pixels: about 100 bytes are needed for each."""


def outline(
    image: Any,
    relevance: Any = None,
    *,
    zoom: int = 3,
    sigma: float | None = None,
    width: int | None = None,
    color: str = "black",
    low: float = 0.2,
    high: float = 0.4,
    normalize: str = "symmetric",
    cmap: Cmap = SOFT,
    level: Level = None,
) -> Image:
    """The edges of an image, drawn over a heatmap, ``W * zoom`` by ``H * zoom`` pixels.

    The image is enlarged, smoothed by a Gaussian, and its edges are found by Canny's method: where the gradient is
    largest along its own direction and at least ``low`` times the largest of the image, in lines that reach ``high``.
    Lines shorter than half an entry are left out.

    Args:
        image: as for :func:`fastlrp.viz.overlay`, or numbers ``(H, W)``, ``(C, H, W)`` in any range.
        relevance: a map ``(H, W)`` or ``(C, H, W)`` of the image's size. None: the outline on white.
        zoom: pixels for each entry.
        sigma: of the Gaussian, in pixels of the picture. Two thirds of an entry unless given, which is the Toolbox's
            2 at its zoom of 3. Larger: fewer and smoother lines.
        width: of the lines in pixels; one for each 8 of zoom unless given.
        color: of the lines: a name or ``"#rrggbb"``.
        normalize, cmap, level: of the heatmap, see :func:`fastlrp.viz.heatmap`.
        low, high: thresholds of an edge, as shares of the steepest one.

    Raises:
        ValueError: for sizes that differ, or options out of range. ImportError: without scipy, matplotlib and Pillow.

    Example::

        image = viz.outline(x[0], relevance[0, 0], zoom=4)

    Source: ``hm_to_rgb`` in render.py of the LRP Toolbox, with Canny's thresholds relative to the image's own contrast.
    """
    shades = _shades(image)
    check_zoom(zoom, shades.shape[0], shades.shape[1], limit=MAX_OUTLINED)
    sigma, width = _check(zoom, sigma, width, low, high)
    ink = _ink(color)
    lines = edges(np.kron(shades, np.ones((zoom, zoom))), sigma, low, high, least=zoom // 2)
    if width > 1:
        lines = need("scipy.ndimage").maximum_filter(lines, width)
    pil = need("PIL.Image")
    size = (lines.shape[1], lines.shape[0])
    if relevance is None:
        picture = pil.new("RGB", size, "white")
    else:
        picture = heatmap(relevance, normalize=normalize, cmap=cmap, level=level, zoom=zoom)
        if picture.size != size:
            h, w = shades.shape
            raise ValueError(
                f"relevance is {picture.height // zoom} x {picture.width // zoom}, the image {h} x {w}: give the image "
                "as the model saw it, resized and cropped"
            )
    picture.paste(ink, mask=pil.fromarray(lines.astype(np.uint8) * 255))
    return picture


def edges(shades: np.ndarray, sigma: float, low: float, high: float, least: int = 0) -> np.ndarray:
    """Edges ``(H, W)`` of at least so many pixels as booleans, one pixel thin.

    Source: J. Canny 1986, A computational approach to edge detection.
    """
    ndimage = need("scipy.ndimage")
    smooth = ndimage.gaussian_filter(shades, sigma, mode="nearest")
    down, across = ndimage.sobel(smooth, 0, mode="nearest"), ndimage.sobel(smooth, 1, mode="nearest")
    strength = np.hypot(down, across)
    top = strength.max()
    if top <= 1e-9 * np.abs(shades).max():  # Flat but for rounding.
        return np.zeros(shades.shape, bool)
    # A pixel is on a ridge if it is not below its neighbours one step up and one step down the gradient.
    steps = np.stack((down, across)) / np.maximum(strength, top * 1e-6)
    here = np.indices(shades.shape)
    ahead, behind = (
        ndimage.map_coordinates(strength, here + sign * steps, order=1, mode="nearest") for sign in (1, -1)
    )
    # One comparison is strict, so that of two equal neighbours one is taken.
    weak = (strength >= low * top) & (strength > ahead) & (strength >= behind)
    labels, count = ndimage.label(weak, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[labels[weak & (strength >= high * top)]] = True
    kept &= np.bincount(labels.ravel(), minlength=count + 1) >= least
    kept[0] = False
    return kept[labels]


def _shades(image: Any) -> np.ndarray:
    """Grey values ``(H, W)``."""
    if isinstance(image, need("PIL.Image").Image):
        return np.asarray(picture_of(image).convert("L"), np.float64)
    array = as_array(image, "image")
    if array.ndim not in (2, 3) or array.size == 0:
        hint = ": take one of them, image[0]" if array.ndim == 4 else ""
        raise ValueError(f"image must be (H, W), (C, H, W) or (H, W, 3), got {array.shape}{hint}")
    check_finite(array, "image")
    if array.ndim == 3:
        first = array.shape[0] in (1, 3) or array.shape[2] not in (1, 3, 4)
        array = array.mean(0) if first else array[..., :3].mean(2)
    array = array.astype(np.float64)
    return array - array.min()


def _ink(color: str) -> tuple[int, ...]:
    try:
        return need("PIL.ImageColor").getrgb(color)[:3]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"color must be a name such as 'black' or '#rrggbb', got {color!r}") from error


def _check(zoom: int, sigma: float | None, width: int | None, low: float, high: float) -> tuple[float, int]:
    sigma = 2 / 3 * zoom if sigma is None else float(sigma)
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"sigma must be a number of pixels >= 0, got {sigma!r}")
    width = max(1, zoom // 8) if width is None else width
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width must be a whole number of pixels of at least 1, got {width!r}")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"thresholds must be 0 <= low <= high <= 1, got low={low!r}, high={high!r}")
    return sigma, width
