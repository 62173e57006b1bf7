"""Factors of TF32 products, so that tensor cores do not make them too small.

Triton gives float32 numbers to tensor cores as they are, and these cut off the last 13 bits. So every factor comes out
too small, by 3.5e-4 on average: of a sum of positive numbers each layer would lose 7e-4, where the libraries' products,
which round, lose next to nothing. A factor that is larger by that much, one instruction, is cut off to as near a number
on average as if it were rounded, which takes three. What has no more than 10 bits stays as it is, and so does what is
not finite.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.launch import Launch

CUT_OFF = tl.constexpr(3.5e-4)
"""The share of a number that is cut off on average: 2^-11 times the mean of 1 / m over mantissas m from 1 to 2, which
is 0.69 where these are spread evenly and 0.72 where their logarithms are."""

_BLOCK = 1024
_WARPS = 4


@triton.jit
def raised(x, PRECISION: tl.constexpr):
    """``x`` as a factor of a product: itself, or with ``"tf32"`` larger by what will be cut off."""
    if PRECISION == "tf32":
        x = x + x * CUT_OFF
    return x


@triton.jit
def raise_kernel(source, out, count, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    """``out[j] = raised(source[j])``."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + j, mask=j < count, other=0.0)
    tl.store(out + j, raised(x, PRECISION), mask=j < count)


def raised_copy(t: Tensor) -> Tensor:
    """The same for what many products read straight from memory: weights, and the operands of attention."""
    t = t.detach()
    out = torch.empty_like(t)
    source = t if out.stride() == t.stride() else out.copy_(t)  # One with gaps has them filled first.
    with torch.cuda.device_of(t):
        raise_launch(source, out).run()
    return out


def raise_launch(source: Tensor, out: Tensor) -> Launch:
    """Of two tensors without gaps in the same memory order."""
    values = {"source": source, "out": out, "count": out.numel(), "PRECISION": "tf32", "BLOCK": _BLOCK}
    return Launch(raise_kernel, (triton.cdiv(out.numel(), _BLOCK),), values, _WARPS, 1)
