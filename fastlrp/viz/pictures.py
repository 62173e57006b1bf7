"""Inputs as a model takes them, turned back into pictures: de-normalised where that is known, stretched otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.viz.arrays import channels_last, check_finite, picture_of
from fastlrp.viz.libraries import need

if TYPE_CHECKING:
    from PIL.Image import Image

KNOWN = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,), (0.5,))}
"""Statistics by name: the mean and standard deviation of each channel of a picture in [0, 1]."""
_BEYOND = 0.02


def picture(image: Any, statistics: str | tuple[Any, Any] | None = None, name: str = "image") -> tuple[Image, str]:
    """What a model saw, as a picture, and what was done for that.

    Args:
        image: as :func:`fastlrp.viz.overlay` takes it; floats may lie outside of [0, 1].
        statistics: what the input was normalised with, ``(mean, std)``, one number or one for each channel, or
            ``"imagenet"``, ``"half"`` (0.5 and 0.5). Then the picture is ``image * std + mean``.
        name: for errors.

    Returns:
        a Pillow image, and ``""`` (shown as it is), ``"de-normalised"``, or ``"stretched from −2.1 to 2.6"``: floats
        outside of [0, 1] without statistics, from their smallest value in black to their largest in white.

    Raises:
        ValueError: for statistics that do not fit the image, and as for :func:`fastlrp.viz.overlay`.

    Example::

        image, done = viz.picture(x[0])
    """
    pil = need("PIL.Image")
    if isinstance(image, pil.Image):
        return picture_of(image, name), ""
    array = channels_last(image, name)
    if array.dtype == np.uint8:
        return picture_of(image, name), ""
    check_finite(array, name)
    values = array.astype(np.float64)
    if statistics is not None:
        return picture_of(_restored(values, statistics, name), name), "de-normalised"
    low, high = float(values.min()), float(values.max())
    if low >= -1e-3 and high <= 1 + 1e-3:
        return picture_of(image, name), ""
    said = f"stretched from {low:.2g} to {high:.2g}".replace("-", "−")
    return picture_of((values - low) / ((high - low) or 1.0), name), said


def _restored(values: np.ndarray, statistics: str | tuple[Any, Any], name: str) -> np.ndarray:
    if isinstance(statistics, str):
        if statistics not in KNOWN:
            raise ValueError(f"statistics must be (mean, std) or one of {', '.join(KNOWN)}, got {statistics!r}")
        statistics = KNOWN[statistics]
    channels = values.shape[2] if values.ndim == 3 else 1
    mean, std = (np.atleast_1d(np.asarray(numbers, np.float64)) for numbers in statistics)
    if any(numbers.shape not in ((1,), (channels,)) for numbers in (mean, std)):
        raise ValueError(
            f"statistics has {len(mean)} means and {len(std)} deviations, and {name} has {channels} channels"
        )
    restored: np.ndarray = values * std + mean
    low, high = float(restored.min()), float(restored.max())
    if low < -_BEYOND or high > 1 + _BEYOND:
        raise ValueError(
            f"{name} * std + mean goes from {low:.3g} to {high:.3g}, outside of [0, 1]: these are not the statistics "
            f"that it was normalised with; without statistics it is stretched"
        )
    return restored.clip(0, 1)


def pictures(
    images: Sequence[Any], statistics: str | tuple[Any, Any] | None = None, name: str = "images"
) -> tuple[list[Image | None], str]:
    """:func:`picture` of each, None where there is none; and what was done, for all of them in a few words."""
    found, said = [], set()
    for i, image in enumerate(images):
        made, how = (None, "") if image is None else picture(image, statistics, f"{name}[{i}]")
        found.append(made)
        said.add(how.split(" from ")[0] if len(images) > 1 else how)
    return found, ", ".join(sorted(said - {""}))
