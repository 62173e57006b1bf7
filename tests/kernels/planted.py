"""Kernels that are wrong on a GPU, each in its own way, and one that is not: the check of compiles tells them apart."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fastlrp.kernels.compilation import POINTERS, Compilation


@triton.jit
def good(x, y, x_r, rows, columns, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, BLOCK)
    inside = (r < rows)[:, None] & (c < columns)[None, :]
    tile = tl.load(x + r.to(tl.int64)[:, None] * x_r + c[None, :], mask=inside, other=0.0)
    product = tl.dot(tile, tile, input_precision=PRECISION)
    tl.store(y + r.to(tl.int64)[:, None] * columns + c[None, :], product.to(y.dtype.element_ty), mask=inside)


@triton.jit
def narrow_stride(x, y, x_r, rows, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + r, tl.load(x + (r * x_r).to(tl.int64), mask=r < rows, other=0.0), mask=r < rows)


@triton.jit
def narrow_product(x, y, rows, columns, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    place = tl.program_id(0) * columns + c
    tl.store(y + place, tl.load(x + place.to(tl.int64), mask=c < columns, other=0.0), mask=c < columns)


@triton.jit
def atomic(x, y, rows, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(y + r % 7, tl.load(x + r, mask=r < rows, other=0.0), mask=r < rows)


@triton.jit
def spilling(x, y, rows, BLOCK: tl.constexpr):
    r = tl.arange(0, BLOCK)
    values = tl.load(x + r, mask=r < rows, other=0.0)
    tl.store(y + r, values - tl.max(values), mask=r < rows)


@triton.jit
def hungry(x, y, rows, columns, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    r = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, columns, BLOCK):
        place = r.to(tl.int64)[:, None] * columns + (start + r)[None, :]
        inside = (r < rows)[:, None] & (start + r < columns)[None, :]
        tile = tl.load(x + place, mask=inside, other=0.0)
        other = tl.load(y + place, mask=inside, other=0.0)
        total = tl.dot(tile, tl.trans(other), total, input_precision=PRECISION)
    tl.store(y + r.to(tl.int64)[:, None] * BLOCK + r[None, :], total.to(y.dtype.element_ty))


@triton.jit
def broken(x, y, rows, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), tl.arange(0, 2 * BLOCK))


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """One of each, named after what is wrong with it."""
    if dtype != torch.float32:
        return
    pointers = {"x": POINTERS[dtype], "y": POINTERS[dtype]}
    sizes = {"rows": "i32", "columns": "i32"}
    aligned = ("x", "y", "x_r", "columns")

    def one(name, kernel, constants, numbers, warps=4, stages=1, cores=False):
        signature = {**pointers, **numbers}
        divisible = tuple(n for n in aligned if n in signature)
        return Compilation(name, kernel, signature, constants, divisible, warps, stages, cores)

    tile = {"BLOCK": 64, "PRECISION": "tf32"}
    product = {"x_r": "i32", **sizes}
    yield one("good", good, tile, product, cores=True)
    yield one("no tensor cores", good, {**tile, "PRECISION": "ieee"}, product, cores=True)
    yield one("tensor cores nobody asked for", good, tile, product)
    yield one("no type", good, {"BLOCK": 64}, product, cores=True)
    yield one("narrow stride", narrow_stride, {"BLOCK": 128}, {"x_r": "i32", "rows": "i32"})
    yield one("narrow product", narrow_product, {"BLOCK": 128}, sizes)
    yield one("atomic", atomic, {"BLOCK": 128}, {"rows": "i32"})
    yield one("spilling", spilling, {"BLOCK": 16384}, {"rows": "i32"}, warps=1)
    yield one("hungry", hungry, {"BLOCK": 128, "PRECISION": "tf32"}, sizes, warps=8, stages=4, cores=True)
    yield one("broken", broken, {"BLOCK": 64}, {"rows": "i32"})
