"""Items become tensors, in threads, a few ahead of what is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastlrp.cli import arrays
from fastlrp.cli.errors import InputFailure, need, one_line
from fastlrp.cli.inputs import Item
from fastlrp.cli.preprocess import Preprocessing
from fastlrp.errors import FormatError
from fastlrp.files import opened
from fastlrp.io.arrays import ARRAY_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image


FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
"""Of images, by content. Pillow would go by content alone, and give PostScript to an interpreter of its own."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An item that was read.

    Attributes:
        x: the model's input without the batch axis. picture: what the model sees, for people; None for arrays that are
            no picture. stamp: of the file, from before it was read: what is written to it meanwhile is another input.
    """

    item: Item
    x: Tensor
    picture: Image | None
    stamp: list[int]


@dataclass(frozen=True)
class Reader:
    """How items are read.

    Attributes:
        dtype, device: of the tensors. key, shape: of arrays, see :mod:`fastlrp.cli.arrays`. limit: bytes of the largest
            file that is read.
    """

    preprocessing: Preprocessing
    dtype: torch.dtype
    device: torch.device
    key: str | None = None
    shape: tuple[int, ...] | None = None
    limit: int | None = None

    def read(self, item: Item) -> Sample:
        """One item.

        Raises:
            InputFailure: if it cannot be read; says why.
        """
        if item.error is not None:
            raise InputFailure(item.error)
        stamp = item.stamp()
        if item.is_array:
            x = arrays.sample(item.path, self.key, self.shape, item.sample, self.limit)
            return Sample(item, x.to(self.device, self.dtype), _picture(x), stamp)
        picture = self._open(item.path)
        return Sample(item, self.preprocessing.tensor(picture).to(self.device, self.dtype), picture, stamp)

    def _open(self, path: Path) -> Image:
        pil = need("PIL.Image", "pillow")
        try:
            with opened(path, self.limit or ARRAY_BYTES) as (stream, _), pil.open(stream, formats=FORMATS) as image:
                return self.preprocessing.picture(image)
        except (FileNotFoundError, FormatError) as error:
            raise InputFailure(one_line(error)) from error
        except pil.UnidentifiedImageError as error:
            raise InputFailure(
                f"{path} is no image that Pillow knows, or is damaged from the first bytes on"
            ) from error
        except pil.DecompressionBombError as error:
            raise InputFailure(f"{path}: {one_line(error)}") from error
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
            # Pillow's decoders raise all of these for damaged files.
            raise InputFailure(f"{path} cannot be decoded: {one_line(error)}") from error

    def ahead(
        self, items: Sequence[Item], pool: ThreadPoolExecutor, count: int
    ) -> Generator[tuple[Item, Sample | InputFailure], None, None]:
        """All items in order, at most ``count`` of them read before they are asked for."""
        waiting: deque[tuple[Item, Future[Sample]]] = deque()
        rest = iter(items)
        try:
            while True:
                for item in rest:
                    waiting.append((item, pool.submit(self.read, item)))
                    if len(waiting) >= count:
                        break
                if not waiting:
                    return
                item, future = waiting.popleft()
                try:
                    yield item, future.result()
                except InputFailure as error:
                    yield item, error
        finally:
            for _, future in waiting:
                future.cancel()


def _picture(x: Tensor) -> Image | None:
    """An array ``(1, H, W)``, ``(3, H, W)`` as a picture; stretched to its range unless that lies in [0, 1]."""
    if x.dim() != 3 or x.shape[0] not in (1, 3):
        return None
    values = x.double()
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        values = (values - low) / ((high - low) or 1.0)
    pixels = (values * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return need("PIL.Image", "pillow").fromarray(np.ascontiguousarray(pixels[..., 0] if len(x) == 1 else pixels))
