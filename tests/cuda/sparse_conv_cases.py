"""The CUDA product of shared sparsity, emulated, and what its operands, as the kernel rounds them, give in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import extension
from tests.cuda.emulated import emulated
from tests.sparse.cases import Layer, alive, pattern_of

CPU = extension()


@dataclass(frozen=True)
class Kind:
    """One way to multiply. Tolerance: relative, in the 2-norm."""

    name: str
    dtype: torch.dtype
    tf32: bool
    tolerance: float

    @property
    def wide(self) -> torch.dtype:
        """What sums are kept in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def operand(self, number: Tensor) -> Tensor:
        """What a product sees of a number of the wide type."""
        return to_tf32(number) if self.tf32 else number.to(self.dtype)


@contextlib.contextmanager
def allowing_tf32(convolutions: bool, products: bool) -> Iterator[None]:
    """PyTorch's switches for convolutions and for matrix products."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch, allowed in zip(switches, (convolutions, products), strict=True):
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def to_tf32(number: Tensor) -> Tensor:
    """Float32 rounded to 10 bits of mantissa, to the nearest, ties away from zero."""
    assert number.dtype == torch.float32
    return ((number.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


# Worst measured over all tests, times 1.5: sums in float32 of up to 2000 terms, and results in 16 bits.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("float32", torch.float32, False, 1e-6),
        Kind("tf32", torch.float32, True, 1e-6),
        Kind("float16", torch.float16, False, 4e-4),
        Kind("bfloat16", torch.bfloat16, False, 3e-3),
        Kind("float64", torch.float64, False, 3e-15),
    )
}


def wide(value: Any) -> Any:
    """Tensors in a dtype that the CPU's kernels have; anything that holds them likewise."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return type(value)(map(wide, value)) if isinstance(value, (list, tuple)) else value


def pattern(*masks: Tensor) -> tuple[Tensor, Tensor]:
    """Entries where any of the masks is not zero."""
    return pattern_of(*map(wide, masks))


def rows_of(register: Tensor, entries: tuple[Tensor, Tensor]) -> tuple[Tensor, None, Tensor, Tensor]:
    """A register as the kernels take it, NaN in the lanes behind the last target."""
    values = CPU.sparse_from_dense(wide(register), entries).to(register.dtype)
    values[:, register.shape[1] :] = torch.nan
    return values, None, *entries


def jacobian(layer: Layer, weight: Tensor) -> Tensor:
    """``(Co * S', Ci * S)``: the weight that joins each output with each input, or zero."""
    size = (layer.outputs, *layer.result)
    units = torch.eye(torch.Size(size).numel(), dtype=torch.float64).unflatten(1, size)
    return layer.transpose(weight, units.unsqueeze(0)).flatten(2)[0]


class Case:
    """One product with a layer. The register is NaN wherever all coefficients are zero."""

    def __init__(
        self, layer: Layer, kind: Kind, count: int, products: int = 1, above: float = 0.5, below: float = 0.5
    ) -> None:
        self.layer, self.kind, self.count = layer, kind, count
        sizes = (layer.batch, layer.outputs, *layer.result)
        self.weights = [layer.weight(kind.wide).to(kind.dtype) for _ in range(products)]
        self.coefficients = [self.alive(*sizes, density=above) for _ in range(products)]
        self.mask = self.alive(layer.batch, layer.inputs, *layer.size, density=below)
        register = torch.randn(sizes[0], count, *sizes[1:], dtype=kind.wide).to(kind.dtype)
        reached = torch.stack([u != 0 for u in self.coefficients]).any(0)
        self.register = register.masked_fill(~reached.unsqueeze(1), torch.nan)

    def alive(self, *size: int, density: float) -> Tensor:
        """Normal numbers, most of them (or few, or all) exactly zero."""
        return alive(*size, density=density, dtype=self.kind.wide).to(self.kind.dtype)

    def operand(self, number: Tensor) -> Tensor:
        """As a product sees it; layers with few channels per group are multiplied in the wide type."""
        thin = self.layer.groups > 1 and self.layer.inputs // self.layer.groups < 16
        return number if thin else self.kind.operand(number)

    @property
    def arriving(self) -> tuple[Any, ...]:
        return rows_of(self.register, pattern(*self.coefficients))

    @property
    def leaving(self) -> tuple[Tensor, Tensor]:
        return pattern(self.mask)

    def operands(self, weights: Sequence[Tensor]) -> Tensor:
        """``(B, Co * S', Ci * S)``: the weights times their coefficients, summed over the products and rounded."""
        total = torch.zeros((), dtype=self.kind.wide)
        for weight, coefficient in zip(weights, self.coefficients, strict=True):
            u, joining = coefficient.to(total.dtype), jacobian(self.layer, weight).to(total.dtype)
            total = total + u.flatten(1).unsqueeze(2) * joining
        return self.operand(total).double()

    def everywhere(self, weights: Sequence[Tensor] | None = None) -> Tensor:
        """``(B, K, Ci, *S)`` in float64, for all inputs."""
        values = self.operand(self.register.nan_to_num(0.0).to(self.kind.wide)).double().flatten(2)
        result = values @ self.operands(self.weights if weights is None else weights)
        return result.unflatten(2, (self.layer.inputs, *self.layer.size))

    def expected(self) -> Tensor:
        return self.everywhere() * (self.mask != 0).unsqueeze(1)

    def call(self, channels: int | None = None, **changed: Any) -> Tensor:
        """The kernel's result: rows, or a dense tensor if ``channels`` are given."""
        layer, take = self.layer, changed.get
        given = take("weights", [layer.canonical(w) for w in self.weights])
        module = take("module", None) or emulated()
        packed = [module.sparse_pack(w) if layer.size else w[0, :, :, 0].contiguous() for w in given]
        with take("allowing", allowing_tf32(self.kind.tf32, self.kind.tf32)):
            result: Tensor = module.sparse_conv_relevance(
                take("arriving", self.arriving), layer.batch, take("count", self.count),
                list(take("coefficients", self.coefficients)), packed, list(given[0].shape[1:3]),
                take("leaving", self.leaving), list(layer.size), layer.result, layer.each("kernel"),
                layer.each("stride"), layer.each("padding"), layer.each("dilation"), layer.transposed, channels,
                list(take("factors", ())), list(take("initial", ())), None,
            )  # fmt: skip
        return result

    def dense(self, rows: Tensor) -> Tensor:
        """Rows of the mask's pattern as ``(B, K, Ci, *S)``."""
        size = [self.layer.inputs, *self.layer.size]
        assert rows.shape == (int((self.mask != 0).sum()), -(-self.count // 16) * 16)
        return CPU.sparse_to_dense((wide(rows), None, *self.leaving), self.layer.batch, self.count, size)

    def close(self, found: Tensor, expected: Tensor) -> None:
        """Equal up to rounding."""
        assert found.shape == expected.shape
        error, norm = float((found.double() - expected).norm()), float(expected.norm())
        assert expected.isfinite().all()
        assert error <= self.kind.tolerance * norm, f"{self.kind.name} {self.layer}: {error / norm:.3g}"
