"""One relevance pass through a convolution as its kernels see it: sizes, axes, tensors, and the arguments they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd, prod
from typing import Any

from torch import Tensor

from fastlrp.kernels.launch import empty_map, line_stride, map_strides

SIZES = (
    "batch",
    "targets",
    "row_blocks",
    "channel_blocks",
    "zero",
    "positions",
    *(f"{name}_{axis}" for name in ("input", "output", "pooled") for axis in "dhw"),
)
"""Arguments of the kernels for which Triton shall not compile anew."""

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution, and the max-pool after it if its relevance arrives pooled."""

    input_size: Numbers
    output_size: Numbers
    axes: tuple[Numbers, ...]
    transposed: bool
    groups: int
    pooled_size: Numbers = (1, 1, 1)
    pool: tuple[Numbers, ...] | None = None

    @property
    def phases(self) -> int:
        return 1 if self.transposed else prod(axis[1] for axis in self.axes)

    @property
    def positions(self) -> int:
        """The most input positions that a phase has."""
        strides = [1 if self.transposed else axis[1] for axis in self.axes]
        return prod(-(-size // stride) for size, stride in zip(self.input_size, strides, strict=True))

    @property
    def windows(self) -> int:
        """How many windows of the pool can hold a position."""
        return 1 if self.pool is None else prod(axis[2] for axis in self.pool)


@lru_cache(maxsize=1024)
def layer_of(
    kernel: Numbers,
    input_size: Numbers,
    output_size: Numbers,
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    transposed: bool,
    groups: int,
    pooled_size: Numbers = (),
    pool: tuple[Numbers, Numbers, Numbers, Numbers] | None = None,
) -> Layer:
    """A layer with one to three axes; ``pool`` is kernel, stride, padding and dilation of the pool after it."""
    axes = []
    for k, s, p, d in zip(_three(kernel), _three(stride), _three(padding, 0), _three(dilation), strict=True):
        common = gcd(s, d)
        axes.append((k, s, p, d, *((1, 1, s, -d) if transposed else (s // common, s, 1, d // common))))
    windows = None
    if pool is not None:
        lists = (_three(pool[0]), _three(pool[1]), _three(pool[2], 0), _three(pool[3]))
        windows = tuple((s, p, (k - 1) * d // s + 1) for k, s, p, d in zip(*lists, strict=True))
    sizes = (_three(input_size), _three(output_size))
    return Layer(*sizes, tuple(axes), transposed, groups, _three(pooled_size), windows)


def _three(values: Numbers, missing: int = 1) -> Numbers:
    return (*[missing] * (3 - len(values)), *values)


@dataclass(frozen=True)
class Call:
    """The arguments of one operation; maps are channels-last, and what the terms do not need is None.

    Shapes: ``relevance (B, K, Co, *S')``, or ``(B, K, Co, *P)`` with ``index (B, Co, *P)``; ``u, v (B, Co, *S')``;
    ``x (B, Ci, *S)``; ``result (B, K, Ci, *S)``. ``positive`` is max(W, 0), or None.
    """

    layer: Layer
    relevance: Tensor
    index: Tensor | None
    weight: Tensor
    positive: Tensor | None
    u: Tensor | None
    v: Tensor | None
    x: Tensor | None
    signed: bool
    multiply: bool
    result: Tensor | None = None

    @property
    def channels(self) -> int:
        """``Ci``."""
        return self.weight.shape[0] if self.layer.transposed else self.weight.shape[1] * self.layer.groups

    def spatial(self, sizes: Numbers) -> Numbers:
        """Of three sizes those of the axes that the tensors have."""
        return sizes[6 - self.relevance.dim() :]

    def with_result(self) -> Call:
        """This call with an uninitialised result."""
        batch, targets = self.relevance.shape[:2]
        size = self.spatial(self.layer.input_size)
        return replace(self, result=empty_map(self.relevance, batch, targets, self.channels, size))

    def arguments(self) -> dict[str, Any]:
        """Pointers, sizes and strides by the names that the kernels give them."""
        layer, found = self.layer, {"batch": self.relevance.shape[0], "targets": self.relevance.shape[1]}
        for name, sizes in (
            ("input", layer.input_size),
            ("output", layer.output_size),
            ("pooled", layer.pooled_size),
        ):
            found |= {f"{name}_{axis}": size for axis, size in zip("dhw", sizes, strict=True)}
        for name, t in (("relevance", self.relevance), ("result", self.result)):
            found |= map_stride_names(name, t)
        for name, t in (("index", self.index), ("u", self.u), ("v", self.v), ("x", self.x)):
            strides = [0, 0] if t is None else map_strides(t, 1)
            found |= dict(zip((f"{name}_b", f"{name}_p"), strides, strict=True))
        tensors = ("relevance", "index", "weight", "positive", "u", "v", "x", "result")
        return {
            **{name: getattr(self, name) for name in tensors},
            **found,
            **self._weight_strides(),
            "AXES": layer.axes,
            "POOL": layer.pool,
            "TRANSPOSED": layer.transposed,
            "SIGNED": self.signed,
            "MULTIPLY": self.multiply,
        }

    def _weight_strides(self) -> dict[str, int | None]:
        out, into = (1, 0) if self.layer.transposed else (0, 1)
        w = self.weight
        return {
            "weight_g": w.stride(0) * (w.shape[0] // self.layer.groups),
            "weight_co": w.stride(out),
            "weight_ci": w.stride(into),
            "weight_tap": line_stride(w, range(2, w.dim())),
        }


def map_stride_names(name: str, t: Tensor | None) -> dict[str, int]:
    """Strides of samples, targets and positions of a (B, K, C, *S) by the names that the kernels give them."""
    strides = [0, 0, 0] if t is None else map_strides(t, 2)
    return dict(zip((f"{name}_b", f"{name}_k", f"{name}_p"), strides, strict=True))
