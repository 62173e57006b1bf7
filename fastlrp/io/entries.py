"""The layers of a file, as plain data in the LRP Toolbox's layout: NHWC, y = x W + B."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

PLAIN_KINDS = ("Rect", "Tanh", "SoftMax", "Flatten")
POOL_KINDS = ("SumPool", "MaxPool")
KINDS = ("Linear", "Convolution", *POOL_KINDS, *PLAIN_KINDS)


@dataclass(frozen=True, eq=False)
class LinearEntry:
    """Weight (m, n), bias (n,)."""

    weight: np.ndarray
    bias: np.ndarray

    def header(self) -> str:
        """As the first line of the entry in a text file."""
        return f"Linear {self.weight.shape[0]} {self.weight.shape[1]}"


@dataclass(frozen=True, eq=False)
class ConvolutionEntry:
    """Weight (h, w, d, n), bias (n,), stride (rows, columns); cross-correlation without padding."""

    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int]

    def header(self) -> str:
        """As the first line of the entry in a text file."""
        return " ".join(map(str, ("Convolution", *self.weight.shape, *self.stride)))


@dataclass(frozen=True)
class PoolEntry:
    """Window and stride, each (rows, columns)."""

    kind: Literal["SumPool", "MaxPool"]
    pool: tuple[int, int]
    stride: tuple[int, int]

    def header(self) -> str:
        """The line of the entry in a text file."""
        return " ".join(map(str, (self.kind, *self.pool, *self.stride)))


@dataclass(frozen=True)
class PlainEntry:
    """A layer without parameters."""

    kind: Literal["Rect", "Tanh", "SoftMax", "Flatten"]

    def header(self) -> str:
        """The line of the entry in a text file."""
        return self.kind


Entry = LinearEntry | ConvolutionEntry | PoolEntry | PlainEntry


@dataclass(frozen=True)
class Size:
    """What is known of the values between two layers; None is not known.

    Attributes:
        flat: features (True) or maps (False). channels: of maps, or the number of features.
        height, width: of maps. multiple: the number of features is a multiple of it.
    """

    flat: bool | None = None
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    multiple: int = field(default=1)

    def after(self, entry: Entry) -> Size:
        """The size behind a layer.

        Raises:
            ValueError: the layer does not fit; the message says why.
        """
        if isinstance(entry, LinearEntry):
            return self._after_linear(entry)
        if isinstance(entry, (ConvolutionEntry, PoolEntry)):
            return self._after_window(entry)
        if entry.kind == "Flatten":
            return self._after_flatten()
        if entry.kind == "SoftMax" and self.flat is False:
            raise ValueError("SoftMax stands behind maps: it is defined on features, a Flatten is missing before it")
        return self

    def _after_linear(self, entry: LinearEntry) -> Size:
        m, n = entry.weight.shape
        if self.flat is False:
            raise ValueError(f"{entry.header()} stands behind maps: a Flatten is missing before it")
        if self.channels is not None and self.channels != m:
            raise ValueError(f"{entry.header()} takes {m} features, but {self.channels} come from the layers before it")
        if m % self.multiple:
            raise ValueError(
                f"{entry.header()} takes {m} features, but the layers before it give a multiple of {self.multiple}, "
                "the number of channels before Flatten"
            )
        return Size(flat=True, channels=n)

    def _after_window(self, entry: ConvolutionEntry | PoolEntry) -> Size:
        if self.flat:
            raise ValueError(f"{entry.header()} takes maps, but features come from the layers before it")
        channels = self.channels
        if isinstance(entry, ConvolutionEntry):
            window, (depth, channels) = entry.weight.shape[:2], entry.weight.shape[2:]
            if self.channels is not None and self.channels != depth:
                raise ValueError(
                    f"{entry.header()} takes {depth} channels, but {self.channels} come from the layers before it"
                )
        else:
            window = entry.pool
        height = _slide(entry, self.height, window[0], entry.stride[0], "high")
        width = _slide(entry, self.width, window[1], entry.stride[1], "wide")
        return Size(flat=False, channels=channels, height=height, width=width)

    def _after_flatten(self) -> Size:
        if self.flat:
            return self
        if self.channels is not None and self.height is not None and self.width is not None:
            return Size(flat=True, channels=self.channels * self.height * self.width)
        return Size(flat=True, multiple=self.channels or 1)


def _slide(entry: Entry, size: int | None, window: int, stride: int, side: str) -> int | None:
    if size is None:
        return None
    if window > size:
        raise ValueError(f"{entry.header()} has a window {window} {side}, but the maps before it are {size} {side}")
    return (size - window) // stride + 1
