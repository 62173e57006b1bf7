"""Relevance through layer norm, RMS norm and group norm with sigma held fixed.

``c = gain g / sigma``, less its mean over the normalised axis where the norm has one; see
:func:`fastlrp.reference.norm.norm_relevance`. A program has the rows of a few positions and a block of targets: gain
and 1 / sigma are read once and serve all of them. Rows that are longer than a tile are gone over in parts, twice where
their mean is needed. Offsets are 64-bit, sums are float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.launch import Launch, power_of_two

_TILE = 4096
"""Numbers of a tile: rows of several positions, or a part of one."""

_TARGETS = 4
_WARPS = 4


@triton.jit
def _scaled(relevance, place, inside, gain, gain_place, known, inverse):
    """``gain g / sigma``, float32. ``known``: the gain is in registers already."""
    c = tl.load(relevance + place, mask=inside, other=0.0).to(tl.float32)
    if known is not None:
        c = c * known
    elif gain is not None:
        c = c * tl.load(gain + gain_place, mask=inside, other=0.0).to(tl.float32) * inverse
    else:
        c = c * inverse
    return c


@triton.jit(do_not_specialize=["K", "L", "positions"])
def norm_kernel(
    relevance,  # g, (B, K, L, N)
    gain,  # (B, L, N) or None
    inverse_sigma,  # (B, L)
    out,  # (B, K, L, N)
    K,
    L,
    positions,  # B L
    N,
    relevance_b,
    relevance_k,
    relevance_l,
    relevance_n,
    gain_b,
    gain_l,
    gain_n,
    inverse_sigma_b,
    inverse_sigma_l,
    CENTRE: tl.constexpr,
    WHOLE: tl.constexpr,  # a tile has whole rows
    BLOCK_L: tl.constexpr,  # positions
    BLOCK_N: tl.constexpr,
    TARGETS: tl.constexpr,
):
    """``out = centre(gain g / sigma)`` of a few positions and targets."""
    blocks = tl.cdiv(K, TARGETS)
    first_k = (tl.program_id(0) % blocks) * TARGETS
    position = (tl.program_id(0) // blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
    is_row = position < positions
    b = (position // L).to(tl.int64)
    l = (position % L).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    inverse = tl.load(inverse_sigma + b * inverse_sigma_b + l * inverse_sigma_l, mask=is_row, other=0.0)
    inverse = inverse.to(tl.float32)[:, None]
    gain_place = (b * gain_b + l * gain_l)[:, None] + n.to(tl.int64)[None, :] * gain_n
    place = (b * relevance_b + l * relevance_l)[:, None] + n.to(tl.int64)[None, :] * relevance_n
    row = (b * K * L + l) * N
    if WHOLE:
        inside = is_row[:, None] & (n < N)[None, :]
        known = inverse
        if gain is not None:
            known = inverse * tl.load(gain + gain_place, mask=inside, other=0.0).to(tl.float32)
    for t in tl.static_range(TARGETS):
        k = tl.cast(first_k + t, tl.int64)
        is_there = is_row & (k < K)
        at = out + k * L * N + row[:, None] + n[None, :]
        if WHOLE:
            inside = is_there[:, None] & (n < N)[None, :]
            c = _scaled(relevance, k * relevance_k + place, inside, gain, gain_place, known, inverse)
            if CENTRE:
                c = c - tl.sum(c, 1)[:, None] / N
            tl.store(at, c.to(out.dtype.element_ty), mask=inside)
        else:
            mean = tl.zeros((BLOCK_L, 1), tl.float32)
            if CENTRE:
                for first in range(0, N, BLOCK_N):
                    moved = tl.cast(first, tl.int64)
                    inside = is_there[:, None] & (first + n < N)[None, :]
                    start = k * relevance_k + moved * relevance_n
                    c = _scaled(relevance, start + place, inside, gain, moved * gain_n + gain_place, None, inverse)
                    mean += tl.sum(c, 1)[:, None]
                mean = mean / N
            for first in range(0, N, BLOCK_N):
                moved = tl.cast(first, tl.int64)
                inside = is_there[:, None] & (first + n < N)[None, :]
                start = k * relevance_k + moved * relevance_n
                c = _scaled(relevance, start + place, inside, gain, moved * gain_n + gain_place, None, inverse)
                tl.store(at + moved, (c - mean).to(out.dtype.element_ty), mask=inside)


def norm_relevance(relevance: Tensor, gain: Tensor | None, inverse_sigma: Tensor, centre: bool) -> Tensor:
    """``centre(gain g / sigma)``, (B, K, *L, N); see :func:`fastlrp.reference.norm.norm_relevance`."""
    B, K, *sizes, N = relevance.shape
    L = math.prod(sizes)
    result = relevance.new_empty(relevance.shape)
    if result.numel() == 0:
        return result
    flow, inverse = relevance.reshape(B, K, L, N), inverse_sigma.reshape(B, L)
    whole = None if gain is None else gain.expand(B, *sizes, N).reshape(B, L, N)
    with torch.cuda.device_of(relevance):
        _launch(flow, whole, inverse, centre, result).run()
    return result


def _launch(relevance: Tensor, gain: Tensor | None, inverse_sigma: Tensor, centre: bool, result: Tensor) -> Launch:
    B, K, L, N = relevance.shape
    block_n = min(power_of_two(N), _TILE)
    block_l = min(_TILE // block_n, power_of_two(B * L))
    targets = min(_TARGETS, power_of_two(K))
    values: dict[str, Any] = {"relevance": relevance, "gain": gain, "inverse_sigma": inverse_sigma, "out": result}
    values |= {"K": K, "L": L, "positions": B * L, "N": N}
    for name, t, axes in (
        ("relevance", relevance, "bkln"),
        ("gain", gain, "bln"),
        ("inverse_sigma", inverse_sigma, "bl"),
    ):
        for number, axis in enumerate(axes):
            values[f"{name}_{axis}"] = 0 if t is None or t.shape[number] == 1 else t.stride(number)
    values |= {"CENTRE": centre, "WHOLE": block_n >= N, "BLOCK_L": block_l, "BLOCK_N": block_n, "TARGETS": targets}
    programs = triton.cdiv(B * L, block_l) * triton.cdiv(K, targets)
    return Launch(norm_kernel, (programs,), values, _WARPS, 1)


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel that the launcher may run, on samples of norms."""
    for N, centre, with_gain in ((768, True, True), (4096, False, True), (64, True, False), (16384, True, True)):
        flow = torch.empty(2, 32, 128, N, dtype=dtype, device="meta")
        gain = torch.empty(N, dtype=dtype, device="meta").expand(2, 128, N) if with_gain else None
        inverse = torch.empty(2, 128, dtype=torch.float32, device="meta")
        yield _launch(flow, gain, inverse, centre, flow).compilation(f"norm of {N}", False)
