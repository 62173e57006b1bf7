"""The product of a convolution's relevance pass, as an implicit matrix product.

``c = W^T (u F) + W+^T (v F)`` and ``x c``, with the sign of the input where it may be negative:
``[x > 0] W+^T (v F) + [x < 0] W-^T (v F)``; see :func:`fastlrp.reference.conv.conv_relevance`.

Rows of the product are (sample, input position, target), columns the input channels of a group, and the sum runs over
taps and output channels. A tile has ``TARGETS`` targets of each of its positions: coefficients, a pool's winners and
the input have no target axis and are read once for all of them. The coefficients are multiplied in before the product;
W+ and W- are taken from the tile of W, or W+ is read where the caller has prepared it. All taps of a block of output
channels follow one another, so that what neighbouring positions share is still in the cache.

With one position per tile the sign of the input is the same down each column: it chooses between W+ and W- before the
product. Else both products are made, and the sign chooses at the end.

Relevance can arrive in front of a max-pool whose windows do not overlap: then a position reads that of its window, and
its coefficient is 0 unless it is the winner. Groups of few channels are put side by side, with a block-diagonal weight.
Strided layers are cut into phases (:mod:`fastlrp.kernels.conv.geometry`). Offsets are 64-bit; one sample has less than
2^31 positions.
"""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.configs import Config
from fastlrp.kernels.conv.call import SIZES, Call
from fastlrp.kernels.conv.geometry import (
    arriving,
    negative_part,
    next_tap,
    over_targets,
    part_of_sign,
    phases_of,
    place_of_tap,
    position_of_row,
    positive_part,
    reached,
    scaled,
)
from fastlrp.kernels.launch import Launch, interpreted, line_stride, taken
from fastlrp.kernels.rounding import raised

INTERPRETED = tl.constexpr(interpreted())
_MERGED = 16  # channels of groups that are put side by side
_BAND = 8  # row tiles that go through all tiles of channels together


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """The product of what arrives with weights, which the launcher has raised."""
    a = raised(a, PRECISION)
    if INTERPRETED:  # its product takes bfloat16 for integers
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    relevance,  # F, (B, K, Co, *S'); with a pool (B, K, Co, *P)
    weight,  # W, (Co, Ci / groups, *k); of a transposed layer (Ci, Co / groups, *k)
    positive,  # max(W, 0), or None
    u,  # (B, Co, *S') or None
    v,  # (B, Co, *S') or None
    x,  # (B, Ci, *S) or None
    result,  # (B, K, Ci, *S)
    batch,
    targets,
    row_blocks,
    channel_blocks,
    zero,
    reduction,  # output channels of a group
    channels,  # input channels of a group
    input_d,
    input_h,
    input_w,
    output_d,
    output_h,
    output_w,
    pooled_d,
    pooled_h,
    pooled_w,
    relevance_b,  # strides: of sample (b), target (k), position (p); the channels' is 1
    relevance_k,
    relevance_p,
    u_b,
    u_p,
    v_b,
    v_p,
    x_b,
    x_p,
    result_b,
    result_k,
    result_p,
    weight_g,  # strides: of group (g), output channel, input channel, tap
    weight_co,
    weight_ci,
    weight_tap,
    AXES: tl.constexpr,
    POOL: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SIGNED: tl.constexpr,
    MULTIPLY: tl.constexpr,
    MERGED: tl.constexpr,  # (Co, Ci) of the layer's groups where several make one here, or None
    PRECISION: tl.constexpr,
    TARGETS: tl.constexpr,
    BLOCK_M: tl.constexpr,  # positions times targets
    BLOCK_N: tl.constexpr,  # input channels
    BLOCK_K: tl.constexpr,  # output channels
    BAND: tl.constexpr,
):
    """One tile of ``result[b, k, ci, i] = sum over taps and co of W[co, ci, tap] (u F)[b, k, co, o(i, tap)] + ...``."""
    POSITIONS: tl.constexpr = BLOCK_M // TARGETS
    # Programs that run at the same time share weights (BAND tiles of rows) and relevance (all tiles of channels).
    row_tiles = row_blocks * tl.cdiv(targets, TARGETS)
    band = tl.program_id(0) // (BAND * channel_blocks)
    within = tl.program_id(0) - band * (BAND * channel_blocks)
    height = tl.minimum(row_tiles - band * BAND, BAND)
    column = within // height
    row_tile = band * BAND + within - column * height
    target_block = row_tile // row_blocks
    ci = column * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1).to(tl.int64)
    phase_d, phase_h, phase_w = phases_of(tl.program_id(2), input_d, input_h, input_w, AXES, TRANSPOSED)
    first = (row_tile - target_block * row_blocks).to(tl.int64) * POSITIONS
    if first >= batch.to(tl.int64) * (phase_d[1] * phase_h[1] * phase_w[1]):
        return

    # Rows: position m // TARGETS, target m % TARGETS. What has c_ in front is of the positions alone.
    m = tl.arange(0, BLOCK_M)
    c_b, c_place, c_d, c_h, c_w = position_of_row(
        first, tl.arange(0, POSITIONS), phase_d, phase_h, phase_w, input_h, input_w, AXES, POSITIONS
    )
    b, _, d, h, w = position_of_row(first, m // TARGETS, phase_d, phase_h, phase_w, input_h, input_w, AXES, POSITIONS)
    k = (target_block * TARGETS + m % TARGETS).to(tl.int64)
    valid = (b < batch) & (k < targets)
    o = tl.arange(0, BLOCK_K)
    row = b * relevance_b + k * relevance_k + group * reduction
    if POOL is None:
        row += ((d * output_h + h) * output_w + w).to(tl.int64) * relevance_p
    c_start = ((c_d * output_h + c_h) * output_w + c_w).to(tl.int64)
    u_tile = (c_b * u_b + c_start * u_p + group * reduction)[:, None] + o[None, :]
    v_tile = (c_b * v_b + c_start * v_p + group * reduction)[:, None] + o[None, :]
    if MERGED is None:
        w_tile = group * weight_g + o[:, None].to(tl.int64) * weight_co + ci[None, :].to(tl.int64) * weight_ci
    else:
        CO: tl.constexpr = MERGED[0]
        CI: tl.constexpr = MERGED[1]
        own = (group * (reduction // CO) + o // CO)[:, None] * weight_g
        w_tile = own + (o % CO)[:, None].to(tl.int64) * weight_co + (ci % CI)[None, :].to(tl.int64) * weight_ci
    if SIGNED and POSITIONS == 1:
        x_tile = (c_b * x_b + c_place * x_p + group * channels)[:, None] + ci[None, :]
        sign = tl.load(x + x_tile, mask=(c_b < batch)[:, None] & (ci < channels)[None, :], other=0.0).to(tl.float32)

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    above = total
    below = total
    start = tl.cast(0, tl.int32)
    tap_d, tap_h, tap_w = start, start, start
    for _ in range(0, phase_d[3] * phase_h[3] * phase_w[3] * tl.cdiv(reduction, BLOCK_K)):
        tap, back_d, back_h, back_w = place_of_tap(tap_d, tap_h, tap_w, phase_d, phase_h, phase_w, AXES)
        back = tl.cast((back_d * output_h + back_h) * output_w + back_w, tl.int64)
        is_co = start + o < reduction
        there = valid & reached(d - back_d, h - back_h, w - back_w, output_d, output_h, output_w, AXES)
        c_there = (c_b < batch) & reached(c_d - back_d, c_h - back_h, c_w - back_w, output_d, output_h, output_w, AXES)
        flow = arriving(
            relevance + start, row, back, d - back_d, h - back_h, w - back_w, there, o, is_co,
            pooled_d, pooled_h, pooled_w, relevance_p, POOL,
        )  # fmt: skip
        c_mask = c_there[:, None] & is_co[None, :]
        w_mask = is_co[:, None] & (ci < channels)[None, :]
        if MERGED is not None:
            w_mask &= (o // CO)[:, None] == (ci // CI)[None, :]
        w_place = tl.cast(start, tl.int64) * weight_co + tl.cast(tap, tl.int64) * weight_tap
        if u is not None or positive is None:
            matrix = tl.load(weight + w_place + w_tile, mask=w_mask, other=0.0)
        if u is not None:
            coefficient = tl.load(u + (start - back * u_p) + u_tile, mask=c_mask, other=0.0)
            s = scaled(flow, over_targets(coefficient, POSITIONS, TARGETS, BLOCK_K))
            total = dot(s, matrix, total, PRECISION)
        if u is None and v is None:
            total = dot(flow, matrix, total, PRECISION)
        if v is not None:
            coefficient = tl.load(v + (start - back * v_p) + v_tile, mask=c_mask, other=0.0)
            s = scaled(flow, over_targets(coefficient, POSITIONS, TARGETS, BLOCK_K))
            if not SIGNED:
                if positive is None:
                    matrix_part = positive_part(matrix)
                else:
                    matrix_part = tl.load(positive + w_place + w_tile, mask=w_mask, other=0.0)
                total = dot(s, matrix_part, total, PRECISION)
            elif POSITIONS == 1:
                total = dot(s, part_of_sign(matrix, sign), total, PRECISION)
            else:
                above = dot(s, positive_part(matrix), above, PRECISION)
                below = dot(s, negative_part(matrix), below, PRECISION)
        tap_d, tap_h, tap_w, over = next_tap(tap_d, tap_h, tap_w, phase_d, phase_h, phase_w)
        start += over * BLOCK_K

    # Rows once more: the compiler, which does not know ``zero``, need not hold them in registers through the loop.
    first += zero
    if MULTIPLY or (SIGNED and POSITIONS > 1):
        c_b, c_place, c_d, c_h, c_w = position_of_row(
            first, tl.arange(0, POSITIONS), phase_d, phase_h, phase_w, input_h, input_w, AXES, POSITIONS
        )
        x_tile = (c_b * x_b + c_place * x_p + group * channels)[:, None] + ci[None, :]
        x_mask = (c_b < batch)[:, None] & (ci < channels)[None, :]
        factor = tl.load(x + x_tile, mask=x_mask, other=0.0).to(tl.float32)
        factor = over_targets(factor, POSITIONS, TARGETS, BLOCK_N)
        if SIGNED and POSITIONS > 1:
            total += tl.where(factor > 0, above, tl.where(factor < 0, below, 0.0))
        if MULTIPLY:
            total *= factor
    b, place, d, h, w = position_of_row(
        first, m // TARGETS, phase_d, phase_h, phase_w, input_h, input_w, AXES, POSITIONS
    )
    k = (target_block * TARGETS + m % TARGETS + zero).to(tl.int64)
    places = b * result_b + k * result_k + place * result_p + group * channels
    mask = ((b < batch) & (k < targets))[:, None] & (ci < channels)[None, :]
    tl.store(result + (places[:, None] + ci[None, :]), total.to(result.dtype.element_ty), mask=mask)


def product_launch(call: Call, config: Config, targets: int, precision: str) -> Launch:
    """The launch for any layer; ``targets`` in a tile divides ``block_m``."""
    call = _with_packed_weight(call)
    batch, K, outputs = call.relevance.shape[:3]
    merged = merged_groups(call)
    groups = call.layer.groups // merged
    reduction, channels = outputs // groups, call.channels // groups
    row_blocks = -(-batch * call.layer.positions // (config.block_m // targets))
    channel_blocks = -(-channels // config.block_n)
    values = call.arguments() | {
        "row_blocks": row_blocks,
        "channel_blocks": channel_blocks,
        "zero": 0,
        "reduction": reduction,
        "channels": channels,
        "MERGED": None if merged == 1 else (reduction // merged, channels // merged),
        "PRECISION": precision,
        "TARGETS": targets,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BAND": _BAND,
    }
    grid = (row_blocks * -(-K // targets) * channel_blocks, groups, call.layer.phases)
    return Launch(conv_kernel, grid, taken(conv_kernel, values), config.num_warps, config.num_stages)


def merged_groups(call: Call) -> int:
    """How many groups are put side by side: all together they have no more than ``_MERGED`` channels on either side."""
    groups = call.layer.groups
    most = _MERGED // max(call.relevance.shape[2] // groups, call.channels // groups)
    return max(n for n in range(1, max(most, 1) + 1) if groups % n == 0)


def _with_packed_weight(call: Call) -> Call:
    """Weights whose input or output channels are neighbours; a prepared W+ is only taken in the same memory order."""
    positive = call.positive
    if call.signed or call.v is None or (positive is not None and positive.stride() != call.weight.stride()):
        positive = None
    weight, packed = call.weight, _packed(call.weight, call.layer.transposed)
    if packed is not weight and positive is not None:
        positive = _packed(positive, call.layer.transposed)
    return replace(call, weight=packed, positive=positive)


def _packed(weight: Tensor, transposed: bool) -> Tensor:
    """The weight itself if its memory will do, else a copy with output channels innermost.

    That order is the best one: tensor cores take float32 with neighbours along the reduction only.
    """
    out = 1 if transposed else 0
    neighbours = any(weight.stride(axis) == 1 and weight.shape[axis] > 1 for axis in (0, 1))
    if (neighbours or weight.shape[2:].numel() == 1) and line_stride(weight, range(2, weight.dim())) is not None:
        return weight
    return weight.movedim(out, -1).contiguous().movedim(-1, out)
