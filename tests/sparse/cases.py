"""Layers for the shared-sparsity kernels, and what they compute by PyTorch's own operations in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import extension

KERNELS = extension()
DTYPES = (torch.float32, torch.float64)
# Relative, in the 2-norm. Worst measured: 2.1e-7 and 6e-16.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Layer:
    """A convolution, or a linear layer: no spatial axes. Numbers hold for every axis."""

    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: int | tuple[int, ...] = 3
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    transposed: bool = False
    output_padding: int | tuple[int, ...] = 0
    batch: int = 2

    def each(self, name: str) -> list[int]:
        """A parameter for each axis."""
        value = getattr(self, name)
        return [value] * len(self.size) if isinstance(value, int) else list(value)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Random, in PyTorch's order: ``(Co, Ci/groups, *k)``, ``(Ci, Co/groups, *k)`` if transposed."""
        first, second = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return torch.randn(first, second // self.groups, *self.each("kernel"), dtype=dtype)

    def canonical(self, weight: Tensor) -> Tensor:
        """As ``sparse_pack`` takes it: ``(groups, Co/groups, Ci/groups, taps)``."""
        weight = weight.flatten(2) if self.size else weight.unsqueeze(2)
        weight = weight.unflatten(0, (self.groups, -1))
        return weight.transpose(1, 2) if self.transposed else weight

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer without bias, by PyTorch."""
        if not self.size:
            return torch.nn.functional.linear(x, weight)
        geometry = [self.each(name) for name in ("stride", "padding", "dilation")]
        return torch.convolution(x, weight, None, *geometry, self.transposed, self.each("output_padding"), self.groups)

    @property
    def result(self) -> list[int]:
        """Spatial sizes of the output."""
        weight = torch.empty(self.weight(torch.float32).shape, device="meta")
        return list(self.apply(torch.empty(1, self.inputs, *self.size, device="meta"), weight).shape[2:])

    def transpose(self, weight: Tensor, s: Tensor) -> Tensor:
        """The transpose of :meth:`apply`, ``(B, K, Co, *S') -> (B, K, Ci, *S)``, by PyTorch's gradient in float64."""
        x = torch.zeros(s.shape[0] * s.shape[1], self.inputs, *self.size, dtype=torch.float64, requires_grad=True)
        y = self.apply(x, weight.double())
        (c,) = torch.autograd.grad(y, x, s.double().flatten(0, 1))
        return c.unflatten(0, s.shape[:2])


def alive(*size: int, density: float, dtype: torch.dtype) -> Tensor:
    """Normal numbers, most of them (or few, or all) exactly zero."""
    return torch.randn(size, dtype=dtype) * (torch.rand(size) < density)


def scaled(coefficient: Tensor, register: Tensor) -> Tensor:
    """``coefficient * register`` where the coefficient is not zero, whatever the register holds elsewhere."""
    u = coefficient.unsqueeze(1)
    return torch.where(u == 0, 0.0, u * register)


@dataclass
class Problem:
    """Arguments of one product with a sparse layer. The register is NaN wherever all coefficients are zero."""

    layer: Layer
    count: int
    dtype: torch.dtype
    products: int = 1
    above: float = 0.5
    below: float = 0.5
    change: Callable[[Tensor], Tensor] = lambda t: t
    weights: list[Tensor] = field(init=False)
    coefficients: list[Tensor] = field(init=False)
    register: Tensor = field(init=False)
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        layer, dtype = self.layer, self.dtype
        sizes = (layer.batch, layer.outputs, *layer.result)
        self.weights = [layer.weight(dtype) for _ in range(self.products)]
        self.coefficients = [alive(*sizes, density=self.above, dtype=dtype) for _ in range(self.products)]
        register = torch.randn(sizes[0], self.count, *sizes[1:], dtype=dtype)
        self.register = register.masked_fill(~self.reached.unsqueeze(1), torch.nan)
        self.mask = alive(layer.batch, layer.inputs, *layer.size, density=self.below, dtype=dtype)

    @property
    def reached(self) -> Tensor:
        """Where any coefficient is not zero."""
        return torch.stack([u != 0 for u in self.coefficients]).any(0)

    @property
    def arriving(self) -> tuple[Any, ...]:
        """The register as rows, NaN in the lanes behind the last target."""
        return rows_of(self.register, pattern_of(*map(self.change, self.coefficients)))

    @property
    def leaving(self) -> tuple[Tensor, Tensor]:
        return pattern_of(self.change(self.mask))

    def expected(self) -> Tensor:
        """``(B, K, Ci, *S)`` in float64, zero where the mask is."""
        return self.everywhere() * (self.mask != 0).unsqueeze(1)

    def everywhere(self) -> Tensor:
        parts = zip(self.coefficients, self.weights, strict=True)
        return sum(self.layer.transpose(w, scaled(u, self.register)) for u, w in parts)

    def call(
        self, arriving: Any = None, leaving: Any = None, channels: int | None = None, count: int = -1,
        initial: Any = (), narrow: bool = False,
    ) -> Tensor:  # fmt: skip
        """The kernel's result: rows, or a dense tensor if ``channels`` are given; ``narrow``: of bfloat16 products."""
        return relevance(
            self.layer, self.arriving if arriving is None else arriving, self.count if count < 0 else count,
            [self.change(u) for u in self.coefficients], [self.layer.canonical(w) for w in self.weights],
            self.leaving if leaving is None else leaving, channels, initial=initial, narrow=narrow,
        )  # fmt: skip

    def dense(self, rows: Tensor, count: int = -1) -> Tensor:
        """Rows of the mask's pattern as ``(B, K, Ci, *S)``."""
        count = self.count if count < 0 else count
        return KERNELS.sparse_to_dense(
            (rows, None, *self.leaving), self.layer.batch, count, [self.layer.inputs, *self.layer.size]
        )


def relevance(
    layer: Layer,
    arriving: Any,
    count: int,
    coefficients: Sequence[Tensor],
    weights: Sequence[Tensor],
    leaving: Any,
    channels: int | None = None,
    factors: Sequence[Tensor] = (),
    initial: Sequence[Any] = (),
    other: Tensor | None = None,
    narrow: bool = False,
) -> Tensor:
    """``sparse_conv_relevance`` of a layer with weights ``(groups, Co/groups, Ci/groups, taps)``."""
    groups, outs, ins, _ = weights[0].shape
    assert groups == layer.groups
    # A linear layer's weight stays as it is.
    if narrow:
        packed = [KERNELS.sparse_pack_pairs(w) for w in weights]
    else:
        packed = [KERNELS.sparse_pack(w) if layer.size else w[0, :, :, 0].contiguous() for w in weights]
    packed = packed if other is None else list(torch.stack(packed))
    return KERNELS.sparse_conv_relevance(
        arriving, layer.batch, count, list(coefficients), packed, [outs, ins], leaving, list(layer.size),
        layer.result, layer.each("kernel"), layer.each("stride"), layer.each("padding"),
        layer.each("dilation"), layer.transposed, channels, list(factors), list(initial), other,
    )  # fmt: skip


def pattern_of(*masks: Tensor) -> tuple[Tensor, Tensor]:
    """Entries where any of the masks is not zero."""
    return KERNELS.sparse_pattern([(mask, None) for mask in masks])


def rows_of(register: Tensor, pattern: tuple[Tensor, Tensor]) -> tuple[Tensor, None, Tensor, Tensor]:
    """A register as the kernels take it, NaN in the lanes behind the last target."""
    values = KERNELS.sparse_from_dense(register, pattern)
    values[:, register.shape[1] :] = torch.nan
    return values, None, *pattern


def assert_close(found: Tensor, expected: Tensor, context: object = "") -> None:
    """Equal up to rounding; exactly zero where everything that is expected is."""
    assert found.shape == expected.shape, f"{context}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert expected.dtype == torch.float64
    assert bool(expected.isfinite().all()), f"{context}: the definition is not finite"
    error = float((found.double() - expected).norm())
    assert error <= TOLERANCE[found.dtype] * float(expected.norm()), f"{context}: {error / float(expected.norm()):.3g}"
