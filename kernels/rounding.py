"""Operands of TF32 products, rounded to the nearest number of 10 bits.

Triton gives float32 numbers to tensor cores as they are, and these leave out the last 13 bits. So every factor comes
out too small, by 3.5e-4 on average: of a sum of positive numbers each layer would lose 7e-4, where the libraries'
products, which round, lose next to nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.launch import Launch, interpreted

INTERPRETED = tl.constexpr(interpreted())
_BLOCK = 1024
_WARPS = 4


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """``x`` as a factor of a product: itself, or with ``"tf32"`` rounded, halves away from zero."""
    if PRECISION == "tf32":
        if INTERPRETED:
            bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
            x = tl.where(tl.abs(x) < float("inf"), bits.to(tl.float32, bitcast=True), x)
        else:
            x = tl.inline_asm_elementwise(
                "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
            )
    return x


@triton.jit
def round_kernel(source, out, count, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    """``out[j] = rounded(source[j])``."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + j, mask=j < count, other=0.0)
    tl.store(out + j, rounded(x, PRECISION), mask=j < count)


def rounded_copy(t: Tensor) -> Tensor:
    """A float32 tensor rounded to TF32, for what many products read again: weights, and the operands of attention."""
    t = t.detach()
    out = torch.empty_like(t)
    source = t if out.stride() == t.stride() else out.copy_(t)  # One with gaps has them filled first.
    with torch.cuda.device_of(t):
        round_launch(source, out).run()
    return out


def round_launch(source: Tensor, out: Tensor) -> Launch:
    """Of two tensors without gaps in the same memory order."""
    values = {"source": source, "out": out, "count": out.numel(), "PRECISION": "tf32", "BLOCK": _BLOCK}
    return Launch(round_kernel, (triton.cdiv(out.numel(), _BLOCK),), values, _WARPS, 1)
