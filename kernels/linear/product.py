"""The product of a linear layer's relevance pass: one kernel, and one that adds the parts of a long sum.

One pass over W: a tile of W is loaded once and gives both products, its positive and negative parts being taken in
registers. Rows are ``(b, l, k)`` with the target innermost, because the coefficients and the input have no target axis.
A tile of rows is one of two kinds:

- *one sample*: targets of one ``(b, l)``. The coefficients are one vector, and the sign of the input is the same down
  each column, so that it chooses between W+ and W- before the product: one product where the formula has two.
- *mixed*: rows of several samples, where targets are few. Coefficients are tiles, the signed form has its own
  accumulators, and the sign chooses among them at the end.

Few tiles leave a GPU idle: then the sum over O is cut into parts, each in scratch memory of its own, and a second
kernel adds them in their order, so that results are the same each time. Offsets are 64-bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.configs import Config
from fastlrp.kernels.launch import Launch
from fastlrp.kernels.rounding import raised

_GROUP = 8
_SUM_BLOCK = 1024
_SUM_WARPS = 4


@triton.jit
def positive(w):
    return tl.where(w > 0, w, 0.0).to(w.dtype)


@triton.jit
def negative(w):
    return tl.where(w < 0, w, 0.0).to(w.dtype)


@triton.jit
def sign_of(x, dtype: tl.constexpr):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(dtype)


@triton.jit
def of_sign(w, sign):
    """W+ where the sign of the input is 1, W- where it is -1, else 0."""
    return positive(w * sign) * sign


@triton.jit
def scaled(flow, coefficient):
    """``u F`` in the dtype of the tensor cores' operands."""
    return (flow.to(tl.float32) * coefficient.to(tl.float32)).to(flow.dtype)


@triton.jit(do_not_specialize=["K", "L", "samples", "row_tiles", "column_tiles", "chunk"])
def relevance_kernel(
    flow,  # F, (B, K, L, O)
    weight,  # W, (O, I)
    u,  # (B, L, O) or None
    v,  # (B, L, O) or None
    x,  # (B, L, I) or None
    out,  # (B, K, L, I), or float32 (parts, B, K, L, I)
    K,
    L,
    samples,  # B L
    O,
    I,
    row_tiles,
    column_tiles,
    chunk,  # of O, for one part
    part_stride,
    flow_b,
    flow_k,
    flow_l,
    flow_o,
    weight_o,
    weight_i,
    u_b,
    u_l,
    u_o,
    v_b,
    v_l,
    v_o,
    x_b,
    x_l,
    x_i,
    SIGNED: tl.constexpr,
    MULTIPLY: tl.constexpr,
    ONE_SAMPLE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows
    BLOCK_N: tl.constexpr,  # columns, I
    BLOCK_K: tl.constexpr,  # O
    GROUP: tl.constexpr,
):
    """``out[b, k, l, i] = sum over o of F[b, k, l, o] (u[b, l, o] W[o, i] + v[b, l, o] W+[o, i])``, signed or not, and
    times ``x[b, l, i]`` or not; without u and v ``F[b, k, l, o] W[o, i]``. Neighbouring programs share tiles of W:
    ``GROUP`` row tiles stand beside each other.
    """
    tile = tl.program_id(0)
    part = tile // (row_tiles * column_tiles)
    tile = tile % (row_tiles * column_tiles)
    group = tile // (GROUP * column_tiles)
    height = tl.minimum(row_tiles - group * GROUP, GROUP)
    row_tile = group * GROUP + (tile % (GROUP * column_tiles)) % height
    column_tile = (tile % (GROUP * column_tiles)) // height

    if ONE_SAMPLE:
        tiles_of_sample = tl.cdiv(K, BLOCK_M)
        sample = row_tile // tiles_of_sample
        k = (row_tile % tiles_of_sample) * BLOCK_M + tl.arange(0, BLOCK_M)
        is_row = k < K
    else:
        row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        sample = row // K
        k = row % K
        is_row = sample < samples
    b = (sample // L).to(tl.int64)
    l = (sample % L).to(tl.int64)
    k = k.to(tl.int64)
    i = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = i < I
    start = tl.multiple_of(part * chunk, BLOCK_K)  # else no load along O is wider than one element

    # What moves is a scalar for each tensor; the tiles of offsets stay as they are.
    o = tl.arange(0, BLOCK_K).to(tl.int64)
    flow_place = (b * flow_b + k * flow_k + l * flow_l)[:, None] + o[None, :] * flow_o
    weight_place = o[:, None] * weight_o + i.to(tl.int64)[None, :] * weight_i
    if ONE_SAMPLE:
        u_place = b * u_b + l * u_l + o * u_o
        v_place = b * v_b + l * v_l + o * v_o
    else:
        u_place = (b * u_b + l * u_l)[:, None] + o[None, :] * u_o
        v_place = (b * v_b + l * v_l)[:, None] + o[None, :] * v_o
    if x is not None:
        x_start = b * x_b + l * x_l
        if ONE_SAMPLE:
            x_tile = tl.load(x + x_start + i.to(tl.int64) * x_i, mask=is_column, other=0.0)[None, :]
        else:
            x_place = x_start[:, None] + i.to(tl.int64)[None, :] * x_i
            x_tile = tl.load(x + x_place, mask=is_row[:, None] & is_column[None, :], other=0.0)

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if SIGNED and not ONE_SAMPLE:
        above = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        below = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if SIGNED and ONE_SAMPLE:
        sign = sign_of(x_tile, weight.dtype.element_ty)
    for first in range(start, tl.minimum(start + chunk, O), BLOCK_K):
        moved = tl.cast(first, tl.int64)
        is_o = first + tl.arange(0, BLOCK_K) < O
        is_flow = is_row[:, None] & is_o[None, :]
        f = tl.load(flow + moved * flow_o + flow_place, mask=is_flow, other=0.0)
        w = tl.load(weight + moved * weight_o + weight_place, mask=is_o[:, None] & is_column[None, :], other=0.0)
        w = raised(w, PRECISION)
        if u is not None:
            if ONE_SAMPLE:
                coefficient = tl.load(u + moved * u_o + u_place, mask=is_o, other=0.0)[None, :]
            else:
                coefficient = tl.load(u + moved * u_o + u_place, mask=is_flow, other=0.0)
            total = tl.dot(raised(scaled(f, coefficient), PRECISION), w, total, input_precision=PRECISION)
        if u is None and v is None:
            total = tl.dot(raised(f, PRECISION), w, total, input_precision=PRECISION)
        if v is not None:
            if ONE_SAMPLE:
                coefficient = tl.load(v + moved * v_o + v_place, mask=is_o, other=0.0)[None, :]
            else:
                coefficient = tl.load(v + moved * v_o + v_place, mask=is_flow, other=0.0)
            s = raised(scaled(f, coefficient), PRECISION)
            if not SIGNED:
                total = tl.dot(s, positive(w), total, input_precision=PRECISION)
            elif ONE_SAMPLE:
                total = tl.dot(s, of_sign(w, sign), total, input_precision=PRECISION)
            else:
                above = tl.dot(s, positive(w), above, input_precision=PRECISION)
                below = tl.dot(s, negative(w), below, input_precision=PRECISION)

    if SIGNED and not ONE_SAMPLE:
        total += tl.where(x_tile > 0, above, tl.where(x_tile < 0, below, 0.0))
    if MULTIPLY:
        total *= x_tile.to(tl.float32)
    row_place = ((b * K + k) * L + l) * I
    place = part.to(tl.int64) * part_stride + row_place[:, None] + i[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=["parts"])
def sum_parts_kernel(scratch, out, count, parts, BLOCK: tl.constexpr):
    """``out[j] = scratch[0, j] + scratch[1, j] + ...`` in this order."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in range(0, parts):
        total += tl.load(scratch + tl.cast(part, tl.int64) * count + j, mask=j < count, other=0.0)
    tl.store(out + j, total.to(out.dtype.element_ty), mask=j < count)


@dataclass(frozen=True)
class Product:
    """What goes into one relevance pass, with the same axes for all layers.

    Attributes:
        flow: ``F``, ``(B, K, L, O)``. weight: ``(O, I)``. u, v: ``(B, L, O)`` or None. x: ``(B, L, I)`` or None.
        signed, multiply: as for the operation; both read ``x``.
        precision: of float32 products, ``"tf32"`` or ``"ieee"``.
    """

    flow: Tensor
    weight: Tensor
    u: Tensor | None
    v: Tensor | None
    x: Tensor | None
    signed: bool
    multiply: bool
    precision: str

    def aligned(self) -> bool:
        """Whether 16-byte loads are possible wherever they matter: of W, F and the coefficients."""
        O, I = self.weight.shape
        if O % 16 or I % 16 or not _is_aligned(self.weight, 0 if self.weight.stride(0) == 1 else 1):
            return False
        return all(t is None or _is_aligned(t, t.dim() - 1) for t in (self.flow, self.u, self.v))


def _is_aligned(t: Tensor, inner: int) -> bool:
    rest = (stride for axis, stride in enumerate(strides(t, t.dim())) if axis != inner)
    return t.stride(inner) == 1 and all(stride % 16 == 0 for stride in rest) and t.data_ptr() % 16 == 0


def strides(t: Tensor | None, axes: int) -> list[int]:
    """Of a tensor or None; 0 along an axis of size 1, so that Triton need not compile anew for what is never used."""
    if t is None:
        return [0] * axes
    return [0 if size == 1 else stride for size, stride in zip(t.shape, t.stride(), strict=True)]


def one_sample(p: Product, block_m: int) -> bool:
    """Whether a tile of rows shall hold targets of one sample only: empty rows must not cost more than they save."""
    B, K, L, _ = p.flow.shape
    padded = triton.cdiv(K, block_m) * block_m
    if B * L == 1:
        return True
    if p.signed:
        terms = 1 + (p.u is not None)
        return padded * terms <= K * (terms + 1)
    return 4 * padded <= 5 * K


def modest(config: Config, dtype: torch.dtype, several_sums: bool) -> Config:
    """A configuration that has the registers for loads of single elements."""
    block_m, block_n, block_k = (16, 32, 16) if several_sums else (32, 64, 64 // dtype.itemsize)
    blocks = (min(config.block_m, block_m), min(config.block_n, block_n), min(config.block_k, block_k))
    return Config(*blocks, 4 if blocks[0] <= 16 else 8, min(config.num_stages, 3))


def parts_of(tiles: int, rows: int, O: int, block_k: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts the sum over O is cut, and how much of O each takes (a multiple of ``block_k``).

    So many that the device has two programs for each multiprocessor, but none that is short, and no more scratch
    memory than a quarter of a float32 W.
    """
    wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    blocks = triton.cdiv(O, block_k)
    parts = min(wanted // tiles, blocks // 4, O // (4 * rows))
    chunk = triton.cdiv(blocks, max(parts, 1))
    return triton.cdiv(blocks, chunk), chunk * block_k


def product_launches(p: Product, single: bool, config: Config, result: Tensor) -> list[Launch]:
    """The launches that fill ``result``, a contiguous ``(B, K, *L, I)``; ``single``: tiles of one sample."""
    B, K, L, O = p.flow.shape
    I, rows = p.weight.shape[1], B * K * L
    row_tiles = B * L * triton.cdiv(K, config.block_m) if single else triton.cdiv(rows, config.block_m)
    column_tiles = triton.cdiv(I, config.block_n)
    parts, chunk = parts_of(row_tiles * column_tiles, rows, O, config.block_k, p.flow.device)
    count = rows * I
    out = result if parts == 1 else result.new_empty(parts, count, dtype=torch.float32)
    values = {"flow": p.flow, "weight": p.weight, "u": p.u, "v": p.v, "x": p.x, "out": out}
    values |= {"K": K, "L": L, "samples": B * L, "O": O, "I": I}
    values |= {"row_tiles": row_tiles, "column_tiles": column_tiles, "chunk": chunk, "part_stride": count}
    values |= dict(zip(("flow_b", "flow_k", "flow_l", "flow_o"), strides(p.flow, 4), strict=True))
    values |= dict(zip(("weight_o", "weight_i"), p.weight.stride(), strict=True))
    for name, cache, inner in (("u", p.u, "o"), ("v", p.v, "o"), ("x", p.x, "i")):
        names = (f"{name}_b", f"{name}_l", f"{name}_{inner}")
        values |= dict(zip(names, strides(cache, 3), strict=True))
    values |= {"SIGNED": p.signed, "MULTIPLY": p.multiply, "ONE_SAMPLE": single, "PRECISION": p.precision}
    values |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP": _GROUP}
    grid = (row_tiles * column_tiles * parts,)
    launches = [Launch(relevance_kernel, grid, values, config.num_warps, config.num_stages)]
    if parts > 1:
        values = {"scratch": out, "out": result, "count": count, "parts": parts, "BLOCK": _SUM_BLOCK}
        launches.append(Launch(sum_parts_kernel, (triton.cdiv(count, _SUM_BLOCK),), values, _SUM_WARPS, 1))
    return launches
