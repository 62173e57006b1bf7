"""The layers: ``torch.nn`` modules, and the Toolbox's pools, with its constructors where they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp.nn.module import LRPModule


class Linear(LRPModule, nn.Linear):
    """``y = x W^T + b``, ``Linear(m, n)`` with m inputs and n outputs; weight ``(n, m)``."""


class Conv2d(LRPModule, nn.Conv2d):
    """``torch.nn.Conv2d``, weight ``(n, d, h, w)``."""


class Convolution(Conv2d):
    """A convolution without padding, by the Toolbox's constructor.

    Args:
        filtersize: ``(h, w, d, n)``: height, width, input channels, output channels.
        stride: rows, columns.
        bias: with a bias.

    Raises:
        ValueError: if ``filtersize`` is not four positive integers.
    """

    def __init__(
        self, filtersize: Sequence[int] = (5, 5, 3, 32), stride: int | Sequence[int] = (2, 2), bias: bool = True
    ) -> None:
        sizes = tuple(filtersize)
        if len(sizes) != 4 or not all(isinstance(n, int) and n > 0 for n in sizes):
            raise ValueError(f"filtersize must be (height, width, input channels, output channels), got {filtersize!r}")
        h, w, d, n = sizes
        super().__init__(d, n, (h, w), _pair("stride", stride), bias=bias)


class ReLU(LRPModule, nn.ReLU):
    """``max(x, 0)``; relevance passes."""

    def __init__(self) -> None:
        super().__init__()


Rect = ReLU


class Tanh(LRPModule, nn.Tanh):
    """``tanh(x)``; relevance passes."""


class Softmax(LRPModule, nn.Softmax):
    """``exp(x) / sum exp(x)`` over axis 1; relevance passes."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__(dim)


class Flatten(LRPModule):
    """``(B, C, H, W)`` to ``(B, C*H*W)``.

    Args:
        order: ``"chw"``, PyTorch's; ``"hwc"``, that of software with images ``(B, H, W, C)``: the LRP Toolbox.
    """

    def __init__(self, order: str = "chw") -> None:
        super().__init__()
        if order not in ("chw", "hwc"):
            raise ValueError(f"order must be 'chw' or 'hwc', got {order!r}")
        self.order = order

    def forward(self, x: Tensor, lrp_aware: bool = False) -> Tensor:
        if lrp_aware:
            return super().forward(x, lrp_aware)
        return (x.movedim(1, -1) if self.order == "hwc" else x).flatten(1)

    def extra_repr(self) -> str:
        return f"order={self.order!r}"


class _Pool(LRPModule):
    """Windows of ``pool`` rows and columns, ``stride`` apart, without padding; ``stride`` is ``pool`` by default."""

    def __init__(self, pool: int | Sequence[int] = (2, 2), stride: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.pool = _pair("pool", pool)
        self.stride = self.pool if stride is None else _pair("stride", stride)

    def forward(self, x: Tensor, lrp_aware: bool = False) -> Tensor:
        return super().forward(x, lrp_aware) if lrp_aware else self._pooled(x)

    def _pooled(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"pool={self.pool}, stride={self.stride}"


class SumPool2d(_Pool):
    """The sum of each window, divided by ``sqrt(h w)`` as in the Toolbox. LRP weighs the plain sum."""

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.pool, self.stride, divisor_override=1) * (1 / math.sqrt(math.prod(self.pool)))


class AvgPool2d(_Pool):
    """The mean of each window. LRP weighs the sum, as the Toolbox does."""

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.pool, self.stride)


class MaxPool2d(_Pool):
    """The maximum of each window. In LRP all entries equal to it share; for ``flat`` and ``ww`` all entries."""

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.pool, self.stride)


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"{name} must be a positive integer or two of them, got {value!r}")
    return pair[0], pair[1]
