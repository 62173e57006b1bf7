"""From what people have (tensors, arrays, pictures) to what is drawn; and what is refused, with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastlrp.viz.libraries import need

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970
"""Of a picture that is made: what Pillow by default refuses to open again."""

_PHOTO_SIDE = 16


def as_array(values: Any, name: str) -> np.ndarray:
    """Numbers as a float32 or float64 array on the host: any device, dtype, layout of a tensor; arrays; nested lists.

    Raises:
        TypeError: for a dict, or for what is not real numbers.
    """
    if isinstance(values, dict):
        known = ", ".join(repr(key) for key in list(values)[:6])
        raise TypeError(f"{name} is a dict: take one of its entries ({known}), or give the dict to viz.grid")
    if isinstance(values, Tensor):
        values = values.detach()
        if values.is_floating_point() and values.dtype.itemsize < 4:
            values = values.float()
        values = values.cpu().resolve_conj().resolve_neg().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TypeError(f"{name} must be a tensor or an array, got rows of different lengths") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers, got {type(values).__name__} of {array.dtype}")
    small = array.dtype.kind == "b" or array.dtype.itemsize < (4 if array.dtype.kind in "iu" else 5)
    return array.astype(np.float32 if small else np.float64, copy=False)


def check_finite(array: np.ndarray, name: str) -> None:
    """Raises:
    ValueError: for NaN or infinity, and how many.
    """
    # A finite sum has finite terms; a sum that overflows deserves the second look.
    with np.errstate(over="ignore", invalid="ignore"):
        fine = bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())
    if not fine:
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{name} has {bad} NaN or infinite entries of {array.size}: find where they come from, or draw "
            f"torch.nan_to_num({name})"
        )


def relevance_map(relevance: Any, name: str = "relevance") -> np.ndarray:
    """One map ``(H, W)`` from ``(H, W)`` or ``(C, H, W)``, channels summed.

    Raises:
        ValueError: for another number of axes, an empty map, NaN or infinity. TypeError: for what is not numbers.
    """
    array = as_array(relevance, name)
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must be (H, W) or (C, H, W), got {array.shape}{_which(array.shape, name)}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: {array.shape}")
    if array.ndim == 3:
        channels, height, width = array.shape
        if width == 3 and min(channels, height) >= _PHOTO_SIDE:
            raise ValueError(
                f"{name} of {array.shape} looks like (H, W, 3), but channels come first: give it as (C, H, W), or sum "
                f"over the channels before: {name}.sum(-1)"
            )
        check_finite(array, name)
        with np.errstate(over="ignore"):
            array = array.sum(0) if channels > 1 else array[0]
    check_finite(array, name)
    return array


def _which(shape: tuple[int, ...], name: str) -> str:
    """The index to take, for results of an explainer."""
    if len(shape) == 5:
        return f". A result is (B, K, C, H, W): take one sample and one target, {name}[0, 0]"
    if len(shape) == 4:
        return (
            f". Of (B, K, H, W), with channels already summed, take one sample and one target, {name}[0, 0]; "
            f"of (N, C, H, W) take one entry, {name}[0]"
        )
    if len(shape) == 1:
        return f": reshape it, {name}.reshape(H, W)"
    return ""


def picture_of(image: Any, name: str = "image") -> Image:
    """An RGB picture.

    Args:
        image: a Pillow image; ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)`` as an array; ``(H, W)``,
            ``(1, H, W)`` or ``(3, H, W)`` as a tensor: uint8 in 0 to 255, or floats in [0, 1]. An array with the
            channels first is taken as well.

    Raises:
        ValueError: for another shape, values outside of the range, NaN. TypeError: for another dtype.
    """
    pil = need("PIL.Image")
    if isinstance(image, pil.Image):
        return _rgb_of_pillow(image)
    array = channels_last(image, name)
    if array.dtype != np.uint8:
        array = _bytes_of(array, name)
    if array.ndim == 2 or array.shape[2] == 1:
        array = array.reshape(array.shape[:2])
    return _rgb_of_pillow(pil.fromarray(np.ascontiguousarray(array)))


def _rgb_of_pillow(image: Image) -> Image:
    if 0 in image.size:
        raise ValueError(f"image is empty: {image.size[0]} x {image.size[1]} pixels")
    if image.mode[0] in "IF":
        return need("PIL.Image").fromarray(_bytes_of_numbers(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = need("PIL.Image").new("RGBA", image.size, "white")
        image = need("PIL.Image").alpha_composite(white, image)
    return image.convert("RGB")


def _bytes_of_numbers(image: Image) -> np.ndarray:
    """Of a picture of integers or floats, which Pillow would clip at 0 and 255 instead of scaling them."""
    numbers = np.asarray(image)
    low, high = numbers.min(), numbers.max()
    if image.mode == "F":
        if 0 <= low <= high <= 1:
            numbers = numbers * 255
        elif not 0 <= low <= high <= 255:
            raise ValueError(f"image is of floats from {low:g} to {high:g}: scale them to [0, 1], or to 0 to 255")
        return np.rint(numbers).astype(np.uint8)
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"image is of integers from {low} to {high}: scale them to 8 or 16 bits, 0 to 255 or 65535")
    # Files of 16 bits are scaled by Pillow where their maximum is another; integers of a program may be bytes.
    wide = image.mode != "I" or image.format in ("PNG", "PPM") or high > 255
    return (numbers >> 8 if wide else numbers).astype(np.uint8)


def channels_last(image: Any, name: str) -> np.ndarray:
    """``(H, W)`` or ``(H, W, C)``, uint8 or float."""
    tensor = isinstance(image, Tensor)
    if tensor and image.dtype == torch.uint8:
        array = image.cpu().numpy()
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8:
        array = image
    else:
        array = as_array(image, name)
    if array.ndim not in (2, 3):
        hint = f": take one of them, {name}[0]" if array.ndim == 4 else ""
        raise ValueError(f"{name} must be (H, W, 3) as an array or (3, H, W) as a tensor, got {array.shape}{hint}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: {array.shape}")
    if array.ndim == 2:
        return array
    last, first = array.shape[2] in ((1, 3) if tensor else (1, 3, 4)), array.shape[0] in (1, 3)
    if first and (tensor or not last):
        return np.moveaxis(array, 0, 2)
    if last:
        return array
    raise ValueError(f"{name} must have 1 or 3 channels, got {array.shape}")


def _bytes_of(array: np.ndarray, name: str) -> np.ndarray:
    check_finite(array, name)
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"{name} must be uint8, or floats in [0, 1], got values from {low:.3g} to {high:.3g}: undo the model's "
            f"normalisation ({name} * std + mean), or rescale ({name} - min) / (max - min)"
        )
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)


def check_zoom(zoom: int, height: int, width: int, limit: int = MAX_PIXELS) -> None:
    """Raises:
    TypeError, ValueError: for a zoom that is no whole number of at least 1, or a picture that would be too large.
    """
    if isinstance(zoom, bool) or not isinstance(zoom, (int, np.integer)):
        raise TypeError(f"zoom must be a whole number, got {zoom!r}")
    if zoom < 1:
        raise ValueError(f"zoom must be at least 1, got {zoom}")
    if height * zoom * width * zoom > limit:
        raise ValueError(
            f"a picture of {width * zoom} x {height * zoom} pixels is larger than {limit} pixels: take a smaller zoom "
            f"than {zoom}, or a part of the map"
        )
