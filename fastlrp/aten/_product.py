"""Matrix products with a weight by the faster of the two libraries that PyTorch has for them on a CPU.

PyTorch sends float32 products to MKL, whose kernels for processors of other makers use half of their vector units. With
oneDNN, which PyTorch has for convolutions and compiled models, and which needs no other layout of the weight, GPT-2's
products ran at 205 to 255 GFLOP/s instead of 110 (AMD EPYC, AVX-512, 1 thread, 128 to 4,096 rows).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastlrp.looking import may_look

LEAST_ROWS = 8
"""With fewer rows the weight's way through memory is what a product costs, in either library."""

LEAST_WORK = 1 << 21
"""Multiplications from which on the longer call (10 instead of 1 microsecond) pays."""

MOST_ALIVE = 0.75
"""Share of the columns of an operand up to which a product of the others alone pays for another copy of them."""


@cache
def onednn_linear() -> Callable[..., Tensor] | None:
    """``(x, weight (O, I), bias, "none", [], "") -> x W^T + b``; None where PyTorch has no oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return None
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if found is None else found.default


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b``, (*, I) -> (*, O) with ``weight`` (O, I)."""
    if not _fits(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    call: Any = onednn_linear()
    rows: Tensor = call(x.reshape(-1, x.shape[-1]), weight, bias, "none", [], "")
    return rows.view(*x.shape[:-1], len(weight))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x W``, (*, O) -> (*, I) with ``weight`` (O, I); without the first and last columns of x that are zero.

    One row reads only what it multiplies of the weight.
    """
    # What a small network asks in every layer is looked at first, without a view.
    if x.numel() * weight.shape[1] < LEAST_WORK:
        return x @ weight
    if x.numel() == len(weight) and weight.is_contiguous() and may_look(x) and _is_plain(x, weight):
        return _row_of_alive(x, weight)
    if not _fits(x, weight.t()):
        return x @ weight
    alive = alive_columns(x)
    if alive is not None:
        x, weight = x[..., alive], weight[alive]
    return linear(x, weight.t(), None)


def _row_of_alive(x: Tensor, weight: Tensor) -> Tensor:
    """``x W`` for one row x, as a sum of those rows of W whose entry in x is not zero.

    Behind a ReLU half of a large weight stays unread: 4,096 by 25,088 numbers take 7.0 instead of 14.9 ms (AMD EPYC,
    one thread). The columns of W are in parts, of which each thread takes some.
    """
    entries = x.reshape(-1)
    alive = entries.nonzero().flatten()
    if len(alive) > MOST_ALIVE * len(entries):
        return x @ weight
    columns = weight.shape[1]
    parts = next(n for n in range(min(torch.get_num_threads(), columns), 0, -1) if columns % n == 0)
    rows = (alive * parts + torch.arange(parts).unsqueeze(1)).flatten()
    found = torch.nn.functional.embedding_bag(
        rows,
        weight.view(-1, columns // parts),
        torch.arange(0, len(rows), len(alive)) if len(alive) else torch.zeros(parts, dtype=torch.long),
        mode="sum",
        per_sample_weights=entries[alive].repeat(parts),
    )
    return found.view(*x.shape[:-1], columns)


def alive_columns(x: Tensor) -> slice | None:
    """From the first column of x that is not zero to the last; None if that is nearly all of them.

    Where queries, keys and values are one product and only the values take relevance, two thirds are zero.
    """
    if not may_look(x) or (_has_any(x[..., 0]) and _has_any(x[..., -1])):
        return None
    columns = x.flatten(0, -2).any(0).nonzero()
    if not len(columns):
        return slice(0, 1)
    found = slice(int(columns[0]), int(columns[-1]) + 1)
    return found if (found.stop - found.start) <= MOST_ALIVE * x.shape[-1] else None


def _has_any(column: Tensor) -> bool:
    """Whether an entry is not zero. Those at the first position, as a rule enough to know, are looked at first."""
    return bool(column.select(-1, 0).any()) or bool(column.any())


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes these operands and is likely to be faster."""
    outputs, inputs = weight.shape
    work = x.numel() * outputs
    if work < LEAST_WORK or work < LEAST_ROWS * inputs * outputs or 1 not in weight.stride():
        return False
    return _is_plain(x, weight) and onednn_linear() is not None


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether both are plain arrays of float32 on a CPU, whose product no switch or transform changes."""
    if not x.dtype == weight.dtype == torch.float32 or x.device.type != "cpu" or weight.device.type != "cpu":
        return False
    # Derivatives and transforms know the usual operation alone, and so do PyTorch's switches for reduced precision.
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    plain = type(x) is Tensor and type(weight) in (Tensor, torch.nn.Parameter)
    exact = torch.get_float32_matmul_precision() == "highest" and _switch() in ("none", "ieee")
    return plain and exact and not _is_transformed(x)


def _switch() -> str:
    """``torch.backends.mkldnn.matmul.fp32_precision``."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return str(getattr(matmul, "fp32_precision", "none"))


def _is_transformed(x: Tensor) -> bool:
    return torch._C._functorch.maybe_get_level(x) != -1
