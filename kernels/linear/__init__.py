"""Relevance through a linear layer for a block of targets, and the rows of W that one-hot targets select.

``c = W^T (u F) + W+^T (v F)`` and ``x c``, with the sign of the input where it may be negative:
``[x > 0] W+^T (v F) + [x < 0] W-^T (v F)``; see :func:`fastlrp.reference.linear.linear_relevance`. Two ways, of which
the configuration chooses:

- :mod:`fastlrp.kernels.linear.product`: one kernel;
- :mod:`fastlrp.kernels.linear.rows`: cuBLAS between two kernels. The kernel of one-hot targets is there too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.configs import Config, configuration, configurations
from fastlrp.kernels.launch import matmul_precision
from fastlrp.kernels.linear.product import Product, modest, one_sample, product_launches
from fastlrp.kernels.linear.rows import finish_launch, library_relevance, one_hot_launch, scale_launch


def shape_class(rows: int) -> str:
    """``"few"`` rows (up to 16) read W from memory and little else; ``"some"`` (up to 64) are one tile; ``"many"``."""
    return "few" if rows <= 16 else "some" if rows <= 64 else "many"


def linear_relevance(
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """``c = W^T (uF) + W+^T (vF)``, (B, K, *L, O) -> (B, K, *L, I); see :mod:`fastlrp.reference.linear`."""
    B, K, *sizes, O = relevance.shape
    I, L = weight.shape[1], math.prod(sizes)
    signed = signed and v is not None
    result = relevance.new_empty(B, K, *sizes, I)
    if result.numel() == 0 or O == 0:
        return result.zero_()
    if u is None and v is not None and not signed and weight_positive is not None:
        weight, u, v = weight_positive, v, None
    u, v = (None if t is None else t.reshape(B, L, O) for t in (u, v))
    x = input.reshape(B, L, I) if input is not None and (signed or multiply) else None
    precision = matmul_precision() if relevance.dtype == torch.float32 else "ieee"
    p = Product(relevance.reshape(B, K, L, O), weight, u, v, x, signed, multiply, precision)
    rows = shape_class(B * K * L)
    config = configuration("linear", rows, relevance.device, relevance.dtype)
    single = one_sample(p, config.block_m)
    several_sums = signed and not single
    if several_sums:
        config = configuration("linear_signed", rows, relevance.device, relevance.dtype)
    with torch.cuda.device_of(relevance):
        if config.route == "library":
            library_relevance(p, weight_positive, result)
            return result
        if not p.aligned():
            config = modest(config, relevance.dtype, several_sums)
        for launch in product_launches(p, single, config, result):
            launch.run()
    return result


def linear_one_hot_relevance(
    value: Tensor,
    index: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """:func:`linear_relevance` of targets that are zero but for one entry: rows of W, gathered.

    Args:
        value: relevance of the entry, ``(B, K)``.
        index: its place among the outputs, ``(B, K)`` int64; a place that does not exist gives NaN.
        weight: ``(O, I)``.
        u, v: ``(B, O)`` or None; at least one is given.
        input: ``(B, I)``; needed by ``multiply``, and by ``signed`` where ``v`` is given.
        signed, multiply: as there.

    Returns:
        ``(B, K, I)``.
    """
    signed = signed and v is not None
    result = value.new_empty(*value.shape, weight.shape[1])
    if result.numel() == 0:
        return result
    x = input if signed or multiply else None
    with torch.cuda.device_of(value):
        one_hot_launch(value, index, weight, u, v, x, signed, multiply, result).run()
    return result


_TERMS = ((True, False), (False, True), (True, True))
_NO_TERM = (False, False)


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel that the launchers may run, with every configuration that a table holds."""
    for precision in ("tf32", "ieee") if dtype == torch.float32 else ("ieee",):
        for kernel, several_sums in (("linear", False), ("linear_signed", True)):
            for name, config in configurations(kernel, dtype, precision).items():
                if config.route == "fused":
                    yield from _products(dtype, precision, f"{precision}-{name}", config, several_sums)
    yield from _rows(dtype)


def _example(
    dtype: torch.dtype, O: int, I: int, u: bool, v: bool, signed: bool, precision: str, K: int = 48
) -> Product:
    """A pass through a layer, without memory."""

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    caches = [empty(2, 3, n) if there else None for n, there in ((O, u), (O, v), (I, signed))]
    multiply = signed or (u, v) == _NO_TERM
    caches[2] = empty(2, 3, I) if multiply else None
    return Product(empty(2, K, 3, O), empty(O, I), *caches, signed, multiply, precision)


def _products(
    dtype: torch.dtype, precision: str, name: str, config: Config, several_sums: bool
) -> Iterator[Compilation]:
    cores = dtype != torch.float32 or precision == "tf32"

    def of(label: str, p: Product, single: bool, config: Config) -> Iterator[Compilation]:
        terms = "u" * (p.u is not None) + "v" * (p.v is not None)
        label = f"linear-{name}-{terms}{'-signed' * p.signed}{'-one' * single}{label}"
        result = p.flow.new_empty(*p.flow.shape[:-1], p.weight.shape[1])
        for number, launch in enumerate(product_launches(p, single, config, result)):
            yield launch.compilation(label + "-sum" * number, cores and number == 0)

    small = modest(config, dtype, several_sums)
    for u, v in _TERMS if several_sums else (*_TERMS, _NO_TERM):
        for signed, single in ((True, False),) if several_sums else ((False, False), (False, True), (True, True)):
            if v or not signed:
                p = _example(dtype, 512, 512, u, v, signed, precision)
                yield from of("", p, single, config)
    for O, I in ((500, 512), (500, 300)):
        yield from of(f"-{O}x{I}", _example(dtype, O, I, True, True, True, precision), not several_sums, small)
    p = _example(dtype, 512, 512, True, True, True, precision)
    yield from of("-transposed", replace(p, weight=p.weight.t()), not several_sums, config)
    p = _example(dtype, 65536, 16, True, True, True, precision, K=1)
    yield from of("-parts", p, not several_sums, config)
    if not several_sums:  # The way up.
        p = _example(dtype, 512, 512, *_NO_TERM, False, precision)
        yield from of("-up", replace(p, weight=p.weight.t()), True, config)


def _rows(dtype: torch.dtype) -> Iterator[Compilation]:
    for n, (u, v) in itertools.product((64, 256, 4096), _TERMS):
        p = _example(dtype, n, n, u, v, True, "ieee")
        label = f"{n}-{'u' * u}{'v' * v}"
        value, index = p.flow[:, :, 0, 0], torch.empty(p.flow.shape[:2], dtype=torch.int64, device="meta")
        rows = p.flow.new_empty(p.flow.shape[:3].numel(), n)
        out_u, out_v = rows if u else None, rows if v else None
        yield scale_launch(p, out_u, out_v).compilation(f"linear-scale-{label}", False)
        yield finish_launch(replace(p, signed=v), rows, out_v, out_v).compilation(f"linear-finish-{label}", False)
        u_row, v_row, x_row = (None if t is None else t[:, 0] for t in (p.u, p.v, p.x))
        launch = one_hot_launch(value, index, p.weight, u_row, v_row, x_row, v, True, p.flow[:, :, 0])
        yield launch.compilation(f"linear-one-hot-{label}", False)
