"""Segmentation maps over their picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.viz.arrays import as_array, picture_of
from fastlrp.viz.libraries import need

if TYPE_CHECKING:
    from PIL.Image import Image

PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb5500", "#55aa88", "#8855bb", "#999933",
)  # fmt: skip


def segments(
    classes: Any,
    image: Any,
    *,
    alpha: float = 0.45,
    background: int | None = 0,
    colors: Mapping[int, str] | None = None,
) -> Image:
    """The class of each pixel as a tint over the picture, with a line where it changes.

    Args:
        classes: ``(H, W)`` whole numbers, ``scores.argmax(0)`` of a segmentation model's ``(C, H, W)``.
        image: as :func:`fastlrp.viz.overlay` takes it; a smaller map is scaled to it.
        alpha: opacity in [0, 1]. background: a class without a tint; None for none.
        colors: of classes; others go through a palette of ten.

    Raises:
        ValueError: for shapes or options that do not fit. ImportError: without Pillow.

    Example::

        classes = torch.zeros(16, 16, dtype=torch.long)
        classes[4:9, 4:9] = 3
        picture = viz.segments(classes, x[0])
    """
    below = picture_of(image)
    array = as_array(classes, "classes")
    if array.ndim != 2 or not array.size or (array != np.rint(array)).any():
        raise ValueError(f"classes must be (H, W) whole numbers, such as scores.argmax(0), got {array.shape}")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a number in [0, 1], got {alpha!r}")
    rows = np.arange(below.height) * array.shape[0] // below.height
    columns = np.arange(below.width) * array.shape[1] // below.width
    shown = array.astype(np.int64)[rows][:, columns]
    pixels = np.asarray(below).astype(np.float64)
    to_rgb = need("PIL.ImageColor").getrgb
    for number in np.unique(shown):
        if number != background:
            color = (colors or {}).get(int(number), PALETTE[int(number) % len(PALETTE)])
            here = shown == number
            pixels[here] = (1 - alpha) * pixels[here] + alpha * np.array(to_rgb(color)[:3])
    border = np.zeros(shown.shape, bool)
    border[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    border[1:] |= shown[1:] != shown[:-1]
    pixels[border] = 255
    return need("PIL.Image").fromarray(np.rint(pixels).astype(np.uint8))
