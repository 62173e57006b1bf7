"""One map as a picture: alone, or over the input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastlrp.viz.arrays import as_array, check_finite, check_zoom, picture_of, relevance_map
from fastlrp.viz.colors import SOFT, is_diverging, table
from fastlrp.viz.libraries import need
from fastlrp.viz.scale import Level, Scale, largest

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastlrp.viz.colors import Cmap

RESAMPLE = ("nearest", "bilinear", "bicubic")


def heatmap(
    relevance: Any,
    *,
    normalize: str = "symmetric",
    cmap: Cmap = SOFT,
    level: Level = None,
    zoom: int = 1,
    resample: str = "nearest",
) -> Image:
    """A map of relevance as an RGB picture of ``W * zoom`` by ``H * zoom`` pixels.

    Args:
        relevance: tensor or array ``(H, W)`` or ``(C, H, W)``, channels summed.
        normalize: ``"symmetric"``: 0 in the middle of the colour map, plus and minus the largest ``|R|`` at its ends;
            ``"absolute"``: ``|R|`` from 0 on (with a diverging colour map on its upper half); ``"unaligned"``: from the
            smallest to the largest R.
        cmap: see :func:`fastlrp.viz.colormap`.
        level: the ``|R|`` at the end of the colour map, in place of this map's largest; larger ones look the same.
            Pictures with one level can be compared, see :func:`shared_level`. With ``"unaligned"`` a pair.
        zoom: whole number of pixels for each entry, in both directions.
        resample: how entries become pixels with ``zoom``: ``"nearest"``, ``"bilinear"``, ``"bicubic"``.

    Returns:
        a Pillow image in mode RGB. A map of zeros is neutral everywhere.

    Raises:
        ValueError: for other shapes (says which index to take), NaN or infinity, an empty map, unknown options.
        TypeError: for what is not numbers. ImportError: without matplotlib and Pillow.

    Example::

        image = viz.heatmap(relevance[0, 0], zoom=4)  # a Pillow image of 64 by 64
    """
    values = relevance_map(relevance)
    check_zoom(zoom, *values.shape)
    scale = Scale.of(normalize, level, [values])
    filtered = _filter(resample)
    size = values.shape[1] * zoom, values.shape[0] * zoom
    if resample != "nearest":
        return _picture(resized(values, size, resample), scale, cmap)
    picture = _picture(values, scale, cmap)
    return picture if zoom == 1 else picture.resize(size, filtered)


def overlay(
    relevance: Any,
    image: Any,
    *,
    alpha: float | str = 0.5,
    grey: bool = False,
    normalize: str = "symmetric",
    cmap: Cmap = SOFT,
    level: Level = None,
    zoom: int = 1,
    resample: str = "nearest",
) -> Image:
    """A map of relevance over its input: ``alpha * heatmap + (1 - alpha) * image``.

    Args:
        relevance: ``(H, W)`` or ``(C, H, W)``. A smaller map, of a hidden layer, is scaled to the image with
            ``resample``; its proportions must be those of the image.
        image: what the model saw: a Pillow image, an array ``(H, W, 3)`` or ``(H, W)``, a tensor ``(3, H, W)`` or
            ``(1, H, W)``; uint8 or floats in [0, 1].
        alpha: opacity of the heatmap in [0, 1]; or ``"relevance"``: ``|R|`` as a share of the largest that is drawn,
            so that pixels without relevance are the image's own.
        grey: take the colours out of the image, so that all colours are relevance.
        normalize, cmap, level, zoom, resample: see :func:`heatmap`; ``zoom`` is relative to the image.

    Raises:
        ValueError: as :func:`heatmap`; for an image with other proportions or values outside of the range.

    Example::

        image = viz.overlay(relevance[0, 0], x[0], alpha="relevance", grey=True)
    """
    values, below = relevance_map(relevance), picture_of(image)
    check_zoom(zoom, below.height, below.width)
    _check_proportions(values.shape, (below.height, below.width))
    scale = Scale.of(normalize, level, [values])
    opacity = _check_alpha(alpha)
    filtered = _filter(resample)
    size = below.width * zoom, below.height * zoom
    if size != below.size:
        below = below.resize(size, filtered)
    if grey:
        below = below.convert("L").convert("RGB")
    values = resized(values, size, resample)
    above, pil = _picture(values, scale, cmap), need("PIL.Image")
    if opacity is not None:
        return pil.blend(below, above, opacity)
    mask = pil.fromarray(np.rint(scale.opacity(values) * 255).astype(np.uint8))
    return pil.composite(above, below, mask)


def shared_level(relevances: Any, quantile: float = 1.0) -> float:
    """The level that several pictures share: the largest ``|R|`` of all their pixels, after summing over channels.

    Args:
        relevances: maps as :func:`heatmap` takes them, in a list or from a generator; or a result ``(B, K, C, H, W)``
            as a whole. A tensor with fewer axes could mean several things: give its maps in a list.
        quantile: in (0, 1]; 0.99 lets one per cent of the pixels go beyond the scale, which shows more of the rest when
            few pixels hold most of the relevance.

    Raises:
        ValueError: for a tensor with other axes (says how to make a list of it), if there is no map, for NaN or
        infinity, or a quantile out of range.

    Example::

        level = viz.shared_level(relevance)
        first, second = (viz.heatmap(relevance[0, k], level=level) for k in (0, 1))
    """
    return largest(_maps(relevances), quantile)


def colored(values: np.ndarray, scale: Scale, cmap: Cmap) -> np.ndarray:
    """Colours ``(H, W, 3)`` uint8 of a map ``(H, W)``."""
    return np.take(table(cmap), scale.places(values, is_diverging(cmap)), axis=0)


def resized(values: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    """A map ``(H, W)`` scaled to ``size = (width, height)``: the numbers, not their colours."""
    if size == (values.shape[1], values.shape[0]):
        return values
    # Pillow scales single precision: keep the numbers in its range.
    peak = max(float(values.max()), -float(values.min())) or 1.0
    picture = need("PIL.Image").fromarray((values / values.dtype.type(peak)).astype(np.float32))
    return np.asarray(picture.resize(size, _filter(resample))).astype(np.float64) * peak


def _picture(values: np.ndarray, scale: Scale, cmap: Cmap) -> Image:
    return need("PIL.Image").fromarray(colored(values, scale, cmap))


def _filter(resample: str) -> Any:
    if resample not in RESAMPLE:
        raise ValueError(f"unknown resample {resample!r}: expected one of {', '.join(map(repr, RESAMPLE))}")
    return need("PIL.Image").Resampling[resample.upper()]


def _check_alpha(alpha: float | str) -> float | None:
    """The opacity, None for that of the relevance."""
    if alpha == "relevance":
        return None
    if isinstance(alpha, (bool, str)) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a number in [0, 1] or 'relevance', got {alpha!r}")
    return float(alpha)


def _check_proportions(of_map: tuple[int, ...], of_image: tuple[int, int]) -> None:
    (h, w), (height, width) = of_map, of_image
    across, down = width / w, height / h
    # Strides round sizes: up to one entry of the map may be missing at the border.
    if abs(across - down) * max(h, w) > max(across, down):
        raise ValueError(
            f"the map of {w} x {h} entries does not have the proportions of the image, {width} x {height} pixels: give "
            "the image as the model saw it, resized and cropped"
        )


def _maps(relevances: Any) -> Iterable[np.ndarray]:
    if not isinstance(relevances, (Tensor, np.ndarray)):
        if isinstance(relevances, dict):
            as_array(relevances, "relevances")
        return (relevance_map(item) for item in relevances)
    array = as_array(relevances, "relevances")
    if array.ndim != 5:
        ways = {
            2: "[relevances]",
            3: "[relevances] of one map (C, H, W), list(relevances) of several (H, W)",
            4: "list(relevances) of (N, C, H, W), list(relevances.reshape(-1, H, W)) of (B, K, H, W)",
        }
        hint = f": give its maps in a list, {ways[array.ndim]}" if array.ndim in ways else ""
        raise ValueError(f"relevances must be (B, K, C, H, W) or a list of maps, got {array.shape}{hint}")
    check_finite(array, "relevances")
    return iter((array.sum(2),) if array.size else ())
