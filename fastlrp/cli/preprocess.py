"""From a picture to the model's input, as torchvision's evaluation transforms do it: resize, crop, scale, normalise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastlrp.cli.errors import Failure, need
from fastlrp.cli.parse import Size
from fastlrp.viz.arrays import MAX_PIXELS, picture_of

if TYPE_CHECKING:
    from PIL.Image import Image

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Interpolations by Pillow's number."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """``x = (low + (high - low) * pixel / 255 - mean) / std`` of the resized and cropped picture.

    Attributes:
        source: where this comes from, for people.
        resize: length of the shorter side, or (height, width); None leaves the picture's size.
        crop: (height, width) around the centre, with black where the picture is smaller.
        interpolation: of resizing. low, high: what black and white become. mean, std: one number, or one for each
            channel. grey: one channel instead of three.
    """

    source: str = "pixels in [0, 1]"
    resize: Size | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    grey: bool = False

    def __post_init__(self) -> None:
        channels = 1 if self.grey else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise Failure(f"--{name} has {len(values)} numbers for {channels} channels: give 1 or {channels}")
        if min(self.std) <= 0:
            raise Failure(f"--std must be positive, got {min(self.std):g}")

    def picture(self, image: Image) -> Image:
        """What the model sees: RGB (mode L if grey), upright, resized and cropped.

        Transparent pixels become white.
        """
        upright: Image = need("PIL.ImageOps", "pillow").exif_transpose(image)
        upright.format = image.format  # Which a copy forgets, and says how many bits the numbers have.
        image = picture_of(upright)
        if self.grey:
            image = image.convert("L")
        target = self._resized(image.height, image.width)
        if target[0] * target[1] > MAX_PIXELS:  # A strip of one pixel by many thousands.
            raise ValueError(f"resized it would be {target[1]} x {target[0]} pixels, more than {MAX_PIXELS}")
        if target != image.size:
            image = image.resize(target, FILTERS.index(self.interpolation))
        if self.crop is not None and self.crop != (image.height, image.width):
            sizes = zip((image.height, image.width), self.crop, strict=True)
            # As torchvision rounds, which first pads a smaller picture; Pillow's crop fills what is outside with black.
            top, left = (round((a - b) / 2) if a >= b else -((b - a) // 2) for a, b in sizes)
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return image

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(width, height) after resizing."""
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        longer = int(self.resize * max(height, width) / min(height, width))
        return (self.resize, longer) if width <= height else (longer, self.resize)

    def tensor(self, picture: Image) -> Tensor:
        """``(C, H, W)`` float32 of a :meth:`picture`."""
        pixels = torch.from_numpy(np.array(picture, np.uint8))
        pixels = pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)
        x = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if (self.low, self.high) != (0.0, 1.0):
            x.mul_(self.high - self.low).add_(self.low)
        if set(self.mean) != {0.0} or set(self.std) != {1.0}:
            x.sub_(_column(self.mean)).div_(_column(self.std))
        return x

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest input that a picture can become, ``(1, C, 1, 1)``: the box of the box rule."""
        low, high = ((value - _column(self.mean)) / _column(self.std) for value in (self.low, self.high))
        return low.unsqueeze(0), high.unsqueeze(0)

    def facts(self) -> dict[str, Any]:
        """What the result depends on."""
        return {
            "resize": self.resize, "crop": self.crop, "interpolation": self.interpolation,
            "range": [self.low, self.high], "mean": list(self.mean), "std": list(self.std), "grey": self.grey,
        }  # fmt: skip

    def __str__(self) -> str:
        parts = []
        if self.resize is not None:
            shorter = isinstance(self.resize, int)
            parts.append(f"{'shorter side' if shorter else 'resize'} {_size(self.resize)} ({self.interpolation})")
        if self.crop is not None:
            parts.append(f"crop {_size(self.crop)}")
        if self.grey:
            parts.append("grey")
        if (self.low, self.high) != (0.0, 1.0):
            parts.append(f"range {self.low:g} to {self.high:g}")
        if set(self.mean) != {0.0} or set(self.std) != {1.0}:
            parts += [f"mean {_list(self.mean)}", f"std {_list(self.std)}"]
        return f"{self.source}: {', '.join(parts)}" if parts else self.source


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def _size(size: Size) -> str:
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def _list(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


IMAGENET = Preprocessing(
    "ImageNet defaults", resize=256, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD
)  # fmt: skip


def chosen(base: Preprocessing | None, options: dict[str, Any]) -> Preprocessing:
    """A model's own preprocessing with what the options change.

    Raises:
        Failure: for options that do not fit together.
    """
    base = Preprocessing() if base is None or options["preprocessing"] == "none" else base
    given: dict[str, Any] = {
        name: options[name] for name in ("resize", "crop", "interpolation", "mean", "std") if options[name] is not None
    }
    if options["range"] is not None:
        given["low"], given["high"] = options["range"]
    if options["grey"]:
        given["grey"] = True
        for name in ("mean", "std"):
            if len(getattr(base, name)) == 3 and name not in given:
                raise Failure(f"--grey: the model's {name} is for three channels: give --{name} with one number")
    if options["resize"] is not None and options["crop"] is None and base.crop is not None:
        given["crop"] = None  # A crop of the model's own belongs to its own resizing.
    if not given:
        return base
    source = "by options" if base.source == Preprocessing.source else f"{base.source}, changed by options"
    return replace(base, source=source, **given)


def is_changed(options: dict[str, Any]) -> bool:
    """Whether any option is about preprocessing."""
    names = ("resize", "crop", "interpolation", "mean", "std", "range")
    return options["grey"] or any(options[name] is not None for name in names)
