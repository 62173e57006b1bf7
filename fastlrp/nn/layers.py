"""The layers: ``torch.nn`` modules, and the Toolbox's pools, with its constructors where they differ."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp.nn.module import LRPModule
from fastlrp.nn.options import ACTIVATIONS

UNKNOWN = 0
"""Number of inputs of a layer that a network is still to tell."""


class Linear(LRPModule, nn.Linear):
    """``y = x W^T + b``, ``Linear(m, n)`` with m inputs and n outputs; weight ``(n, m)``.

    interprettensor's forms are taken as well: ``Linear(input_dim=m, output_dim=n, act="relu")``, and
    ``Linear(n, act="relu")`` in a :class:`Sequential`, behind a layer that says how many inputs there are.

    Args:
        in_features, out_features, bias, device, dtype: as of :class:`torch.nn.Linear`.
        input_dim, output_dim: the same by interprettensor's names.
        act: what follows the sum, ``"linear"`` (nothing), ``"relu"``, ``"tanh"`` or ``"elu"``; relevance passes.
        batch_size: has no meaning here: any batch will do.

    Raises:
        ValueError, TypeError: for an unknown ``act``, or no number of outputs.

    Example::

        net = fastlrp.nn.Sequential(fastlrp.nn.Linear(input_dim=4, output_dim=3, act="relu"), fastlrp.nn.Linear(2))
        scores = net.forward(torch.rand(5, 4), lrp_aware=True)
        relevance = net.lrp(scores, "epsilon", 0.1)  # (5, 4)
    """

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        input_dim: int | None = None,
        output_dim: int | None = None,
        act: str = "linear",
        batch_size: int | None = None,
    ) -> None:
        if act not in ACTIVATIONS:
            raise ValueError(f"unknown act {act!r}: expected one of {', '.join(ACTIVATIONS)}")
        features, outputs = _features(in_features, out_features, input_dim, output_dim)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of a weight without entries, which is made anew by build.
            super().__init__(features, outputs, bias, device, dtype)
        self.act = act

    def build(self, features: int) -> None:
        """Make the weight for this number of inputs."""
        old = self.weight
        self.in_features = features
        self.weight = nn.Parameter(old.new_empty(self.out_features, features))
        self.reset_parameters()

    def forward(self, x: Tensor, lrp_aware: bool = False) -> Tensor:
        if lrp_aware:
            return super().forward(x, lrp_aware)
        if self.in_features == UNKNOWN:
            n = self.out_features
            raise RuntimeError(
                f"Linear({n}) does not know its number of inputs: Linear(m, {n}), or put it in a Sequential"
            )
        return ACTIVATIONS[self.act](F.linear(x, self.weight, self.bias))

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.act == "linear" else f", act={self.act!r}")


def _features(
    in_features: int | None, out_features: int | None, input_dim: int | None, output_dim: int | None
) -> tuple[int, int]:
    """Numbers of inputs and outputs. A single number without a name is that of the outputs."""
    if in_features is not None and out_features is not None and input_dim is None and output_dim is None:
        return in_features, out_features
    outputs = output_dim if in_features is None else in_features
    if outputs is None or out_features is not None or (in_features is not None and output_dim is not None):
        raise TypeError(
            "Linear takes the numbers of its inputs and outputs, Linear(m, n) or Linear(input_dim=m, output_dim=n), or "
            "that of its outputs alone"
        )
    return UNKNOWN if input_dim is None else input_dim, outputs


class Conv2d(LRPModule, nn.Conv2d):
    """``torch.nn.Conv2d``, weight ``(n, d, h, w)``.

    Example::

        maps = fastlrp.nn.Conv2d(3, 8, 3, padding=1)(torch.rand(1, 3, 8, 8))  # (1, 8, 8, 8)
    """


class Convolution(Conv2d):
    """A convolution without padding, by the Toolbox's constructor.

    Args:
        filtersize: ``(h, w, d, n)``: height, width, input channels, output channels.
        stride: rows, columns.
        bias: with a bias.

    Raises:
        ValueError: if ``filtersize`` is not four positive integers.

    Example::

        maps = fastlrp.nn.Convolution((3, 3, 3, 8), (1, 1))(torch.rand(1, 3, 8, 8))  # (1, 8, 6, 6)
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
    """``max(x, 0)``; relevance passes.

    Example::

        positive = fastlrp.nn.ReLU()(torch.randn(2, 3))
    """

    def __init__(self) -> None:
        super().__init__()


Rect = ReLU


class Tanh(LRPModule, nn.Tanh):
    """``tanh(x)``; relevance passes.

    Example::

        bounded = fastlrp.nn.Tanh()(torch.randn(2, 3))
    """


class Softmax(LRPModule, nn.Softmax):
    """``exp(x) / sum exp(x)`` over axis 1; relevance passes.

    Args:
        dim: the axis of the sum.

    Example::

        probabilities = fastlrp.nn.Softmax()(torch.randn(2, 3))
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__(dim)


class Flatten(LRPModule):
    """``(B, C, H, W)`` to ``(B, C*H*W)``.

    Args:
        order: ``"chw"``, PyTorch's; ``"hwc"``, that of software with images ``(B, H, W, C)``: the LRP Toolbox.

    Raises:
        ValueError: for another order.

    Example::

        flat = fastlrp.nn.Flatten("hwc")(torch.rand(1, 3, 8, 8))  # (1, 192)
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
    """The sum of each window, divided by ``sqrt(h w)`` as in the Toolbox. LRP weighs the plain sum.

    Args:
        pool: rows and columns of a window, one number for both.
        stride: how far apart windows are; ``pool`` unless given.

    Example::

        pooled = fastlrp.nn.SumPool2d(2)(torch.rand(1, 3, 8, 8))  # (1, 3, 4, 4)
    """

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.pool, self.stride, divisor_override=1) * (1 / math.sqrt(math.prod(self.pool)))


class AvgPool2d(_Pool):
    """The mean of each window. LRP weighs the sum, as the Toolbox does.

    Args:
        pool: rows and columns of a window, one number for both.
        stride: how far apart windows are; ``pool`` unless given.

    Example::

        pooled = fastlrp.nn.AvgPool2d(2)(torch.rand(1, 3, 8, 8))  # (1, 3, 4, 4)
    """

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.pool, self.stride)


class MaxPool2d(_Pool):
    """The maximum of each window. In LRP all entries equal to it share; for ``flat`` and ``ww`` all entries.

    Args:
        pool: rows and columns of a window, one number for both.
        stride: how far apart windows are; ``pool`` unless given.

    Example::

        pooled = fastlrp.nn.MaxPool2d(2)(torch.rand(1, 3, 8, 8))  # (1, 3, 4, 4)
    """

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.pool, self.stride)


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"{name} must be a positive integer or two of them, got {value!r}")
    return pair[0], pair[1]
