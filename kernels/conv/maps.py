"""Element-wise kernels around a convolution's product: coefficients and winners before it, sign and input after it.

They walk over tiles of rows (sample, target, position) and channels; maps are channels-last.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.conv.call import SIZES, Call, map_stride_names
from fastlrp.kernels.conv.geometry import scaled, window_place, wrapped
from fastlrp.kernels.launch import Launch, empty_map, taken

_TILE = 1024  # elements of one program, 8 of each thread
_WIDTHS = (16, 64, 256)  # of a tile, in channels


@triton.jit
def _tile_rows(size_d, size_h, size_w, targets, channels, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of a program's tile: sample and target of each row, both 64-bit, position along each axis; and the channels."""
    blocks = tl.cdiv(channels, BLOCK_N)
    tile = tl.program_id(0) // blocks
    co = (tl.program_id(0) - tile * blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tile.to(tl.int64) * BLOCK_M
    count = size_d * size_h * size_w
    map = first // count
    rest = (first - map * count).to(tl.int32)
    line = rest // size_w
    plane = line // size_h
    sample = map // targets
    carry, w = wrapped(rest - line * size_w + tl.arange(0, BLOCK_M), size_w, BLOCK_M)
    carry, h = wrapped(line - plane * size_h + carry, size_h, BLOCK_M)
    carry, d = wrapped(plane + carry, size_d, BLOCK_M)
    carry, k = wrapped((map - sample * targets).to(tl.int32) + carry, targets, BLOCK_M)
    return sample + carry, k.to(tl.int64), d, h, w, co


@triton.jit(do_not_specialize=SIZES)
def scale_kernel(
    relevance,  # F, (B, K, Co, *S'); with a pool (B, K, Co, *P), or None, which stands for ones
    index,  # (B, Co, *P) int64, or None
    u,  # (B, Co, *S') or None
    v,  # (B, Co, *S') or None
    first,  # u F, or F itself where neither u nor v is given: (B, K, Co, *S'), or None
    second,  # v F, with the same strides, or None
    batch,
    targets,
    channels,
    output_d,
    output_h,
    output_w,
    pooled_d,
    pooled_h,
    pooled_w,
    relevance_b,  # strides: of sample (b), target (k), position (p); the channels' is 1
    relevance_k,
    relevance_p,
    index_b,
    index_p,
    u_b,
    u_p,
    v_b,
    v_p,
    first_b,
    first_k,
    first_p,
    POOL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``u F`` and ``v F``, or F; of a pool, F is the sum over the windows of what each hands to its winner."""
    b, k, d, h, w, co = _tile_rows(output_d, output_h, output_w, targets, channels, BLOCK_M, BLOCK_N)
    place = ((d * output_h + h) * output_w + w).to(tl.int64)
    mask = (b < batch)[:, None] & (co < channels)[None, :]
    row = b * relevance_b + k * relevance_k
    if POOL is None:
        flow = tl.load(relevance + ((row + place * relevance_p)[:, None] + co[None, :]), mask=mask, other=0.0)
    else:
        WINDOWS: tl.constexpr = POOL[0][2] * POOL[1][2] * POOL[2][2]
        flow = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for number in tl.static_range(WINDOWS):
            window, held = window_place(d, h, w, number, pooled_d, pooled_h, pooled_w, POOL)
            held = mask & held[:, None]
            winner = tl.load(index + ((b * index_b + window * index_p)[:, None] + co[None, :]), mask=held, other=-1)
            won = winner == place[:, None]
            if relevance is None:
                flow += won.to(tl.float32)
            else:
                handed = tl.load(relevance + ((row + window * relevance_p)[:, None] + co[None, :]), mask=won, other=0.0)
                flow += handed.to(tl.float32)
    places = (b * first_b + k * first_k + place * first_p)[:, None] + co[None, :]
    if u is not None:
        coefficient = tl.load(u + ((b * u_b + place * u_p)[:, None] + co[None, :]), mask=mask, other=0.0)
        tl.store(first + places, scaled(flow, coefficient), mask=mask)
    if v is not None:
        coefficient = tl.load(v + ((b * v_b + place * v_p)[:, None] + co[None, :]), mask=mask, other=0.0)
        tl.store(second + places, scaled(flow, coefficient), mask=mask)
    if u is None and v is None:
        tl.store(first + places, flow.to(first.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(
    first,  # the term of u, (B, K, Ci, *S), or None
    above,  # the term of v, with W+ where the layer is signed, or None
    below,  # the term of v with W- where the layer is signed, or None
    x,  # (B, Ci, *S) or None
    result,  # (B, K, Ci, *S); may be ``first``
    batch,
    targets,
    channels,
    input_d,
    input_h,
    input_w,
    first_b,  # strides: of sample (b), target (k), position (p); the channels' is 1
    first_k,
    first_p,
    above_b,  # of ``above`` and ``below``
    above_k,
    above_p,
    x_b,
    x_p,
    result_b,
    result_k,
    result_p,
    SIGNED: tl.constexpr,
    MULTIPLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sum of the products, the sign's choice among them, and the product with the input."""
    b, k, d, h, w, ci = _tile_rows(input_d, input_h, input_w, targets, channels, BLOCK_M, BLOCK_N)
    place = ((d * input_h + h) * input_w + w).to(tl.int64)
    mask = (b < batch)[:, None] & (ci < channels)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if SIGNED or MULTIPLY:
        factor = tl.load(x + ((b * x_b + place * x_p)[:, None] + ci[None, :]), mask=mask, other=0.0).to(tl.float32)
    if first is not None:
        places = (b * first_b + k * first_k + place * first_p)[:, None] + ci[None, :]
        total += tl.load(first + places, mask=mask, other=0.0).to(tl.float32)
    if above is not None:
        places = (b * above_b + k * above_k + place * above_p)[:, None] + ci[None, :]
        if SIGNED:
            total += tl.load(above + places, mask=mask & (factor > 0), other=0.0).to(tl.float32)
            total += tl.load(below + places, mask=mask & (factor < 0), other=0.0).to(tl.float32)
        else:
            total += tl.load(above + places, mask=mask, other=0.0).to(tl.float32)
    if MULTIPLY:
        total *= factor
    places = (b * result_b + k * result_k + place * result_p)[:, None] + ci[None, :]
    tl.store(result + places, total.to(result.dtype.element_ty), mask=mask)


def without_pool(call: Call) -> Call:
    """The same with relevance on the convolution's own output, the sum over its pool's windows."""
    batch, targets, channels = call.relevance.shape[:3]
    flow = empty_map(call.relevance, batch, targets, channels, call.spatial(call.layer.output_size))
    scale_launch(replace(call, u=None, v=None), flow, None).run()
    return replace(call, layer=replace(call.layer, pool=None), relevance=flow, index=None)


def with_winners(call: Call) -> Call:
    """The same with coefficients that are 0 where no window's winner is, so that the index is not needed any more.

    For windows that do not overlap. Coefficients have no target axis: this is little beside the product.
    """
    u, v = (None if t is None else empty_map(t, t.shape[0], 1, t.shape[1], t.shape[2:]) for t in (call.u, call.v))
    scale_launch(call, u, v, ones=True).run()
    return replace(call, index=None, u=None if u is None else u[:, 0], v=None if v is None else v[:, 0])


def scale_launch(call: Call, first: Tensor | None, second: Tensor | None, ones: bool = False) -> Launch:
    """The launch of :func:`scale_kernel`; ``ones``: one target, with 1 instead of its relevance."""
    batch, targets, channels = call.relevance.shape[:3]
    values = call.arguments() | {"first": first, "second": second, "channels": channels}
    if ones:
        targets = 1
        values |= {"relevance": None, "targets": 1}
    values |= map_stride_names("first", first if first is not None else second)
    return _launch(scale_kernel, values, batch * targets * prod(call.layer.output_size), channels)


def finish_launch(call: Call, first: Tensor | None, above: Tensor | None, below: Tensor | None) -> Launch:
    """The launch of :func:`finish_kernel` into the call's result."""
    batch, targets, channels = *call.relevance.shape[:2], call.channels
    values = call.arguments() | {"first": first, "above": above, "below": below, "channels": channels}
    values |= map_stride_names("first", first) | map_stride_names("above", above)
    return _launch(finish_kernel, values, batch * targets * prod(call.layer.input_size), channels)


def _launch(kernel: Any, values: dict[str, Any], rows: int, channels: int) -> Launch:
    width = next((n for n in _WIDTHS if n >= channels), _WIDTHS[-1])
    values |= {"BLOCK_M": _TILE // width, "BLOCK_N": width}
    programs = -(-rows * width // _TILE) * -(-channels // width)
    return Launch(kernel, (programs,), taken(kernel, values), 4, 1)
