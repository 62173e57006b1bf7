"""Relevance through a depthwise convolution: every input channel has its own ``multiplier`` output channels.

``c[ci, i] = sum over taps and m of (u W + v W+)[co(ci, m), o(i, tap)] F[co, o]`` with ``co = ci multiplier + m``.
Channels have nothing to share, so this is arithmetic on tiles of (position and target, channel) without a matrix
product. Coefficient and weight are combined once per position, for all of its targets; the sign of the input is known
where they are, and chooses between W+ and W- there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastlrp.kernels.configs import Config
from fastlrp.kernels.conv.call import SIZES, Call
from fastlrp.kernels.conv.geometry import (
    arriving,
    next_tap,
    over_targets,
    part_of_sign,
    phases_of,
    place_of_tap,
    position_of_row,
    positive_part,
    reached,
)
from fastlrp.kernels.launch import Launch, taken


@triton.jit(do_not_specialize=SIZES)
def depthwise_kernel(
    relevance,  # F, (B, K, Co, *S'); with a pool (B, K, Co, *P)
    weight,  # W, (Co, 1, *k); of a transposed layer (Ci, multiplier, *k)
    u,  # (B, Co, *S') or None
    v,  # (B, Co, *S') or None
    x,  # (B, Ci, *S) or None
    result,  # (B, K, Ci, *S)
    batch,
    targets,
    row_blocks,
    channel_blocks,
    zero,
    channels,
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
    weight_g,  # strides: of input channel, output channel within it, tap
    weight_co,
    weight_tap,
    AXES: tl.constexpr,
    POOL: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SIGNED: tl.constexpr,
    MULTIPLY: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    TARGETS: tl.constexpr,
    BLOCK_M: tl.constexpr,  # positions times targets
    BLOCK_N: tl.constexpr,  # channels
):
    """One tile ``(BLOCK_M, BLOCK_N)`` of the result."""
    POSITIONS: tl.constexpr = BLOCK_M // TARGETS
    row_tile = tl.program_id(0) // channel_blocks
    ci = (tl.program_id(0) - row_tile * channel_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_ci = ci < channels
    target_block = row_tile // row_blocks
    phase_d, phase_h, phase_w = phases_of(tl.program_id(1), input_d, input_h, input_w, AXES, TRANSPOSED)
    first = (row_tile - target_block * row_blocks).to(tl.int64) * POSITIONS
    if first >= batch.to(tl.int64) * (phase_d[1] * phase_h[1] * phase_w[1]):
        return

    # Rows: position m // TARGETS, target m % TARGETS. What has c_ in front is of the positions alone.
    m = tl.arange(0, BLOCK_M)
    c_b, c_place, c_d, c_h, c_w = position_of_row(
        first, tl.arange(0, POSITIONS), phase_d, phase_h, phase_w, input_h, input_w, AXES, POSITIONS
    )
    b, place, d, h, w = position_of_row(
        first, m // TARGETS, phase_d, phase_h, phase_w, input_h, input_w, AXES, POSITIONS
    )
    k = (target_block * TARGETS + m % TARGETS).to(tl.int64)
    valid = (b < batch) & (k < targets)
    row = b * relevance_b + k * relevance_k
    if POOL is None:
        row += ((d * output_h + h) * output_w + w).to(tl.int64) * relevance_p
    c_start = ((c_d * output_h + c_h) * output_w + c_w).to(tl.int64)
    if SIGNED or MULTIPLY:
        x_mask = (c_b < batch)[:, None] & is_ci[None, :]
        factor = tl.load(x + ((c_b * x_b + c_place * x_p)[:, None] + ci[None, :]), mask=x_mask, other=0.0).to(
            tl.float32
        )

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    number = tl.cast(0, tl.int32)  # of the output channel among those of its input channel
    tap_d, tap_h, tap_w = number, number, number
    for _ in range(0, phase_d[3] * phase_h[3] * phase_w[3] * MULTIPLIER):
        tap, back_d, back_h, back_w = place_of_tap(tap_d, tap_h, tap_w, phase_d, phase_h, phase_w, AXES)
        co = ci * MULTIPLIER + number
        back = tl.cast((back_d * output_h + back_h) * output_w + back_w, tl.int64)
        there = valid & reached(d - back_d, h - back_h, w - back_w, output_d, output_h, output_w, AXES)
        c_there = (c_b < batch) & reached(c_d - back_d, c_h - back_h, c_w - back_w, output_d, output_h, output_w, AXES)
        flow = arriving(
            relevance, row, back, d - back_d, h - back_h, w - back_w, there, co, is_ci,
            pooled_d, pooled_h, pooled_w, relevance_p, POOL,
        )  # fmt: skip
        w_place = ci.to(tl.int64) * weight_g + tl.cast(number, tl.int64) * weight_co
        filter = tl.load(weight + w_place + tl.cast(tap, tl.int64) * weight_tap, mask=is_ci, other=0.0).to(tl.float32)
        mask = c_there[:, None] & is_ci[None, :]
        combined = tl.zeros((POSITIONS, BLOCK_N), tl.float32)
        if u is None and v is None:
            combined += filter[None, :]
        if u is not None:
            coefficient = tl.load(
                u + ((c_b * u_b + (c_start - back) * u_p)[:, None] + co[None, :]), mask=mask, other=0.0
            )
            combined += coefficient.to(tl.float32) * filter[None, :]
        if v is not None:
            coefficient = tl.load(
                v + ((c_b * v_b + (c_start - back) * v_p)[:, None] + co[None, :]), mask=mask, other=0.0
            )
            if SIGNED:
                chosen = part_of_sign(filter[None, :], factor)
            else:
                chosen = positive_part(filter)[None, :]
            combined += coefficient.to(tl.float32) * chosen
        total += flow.to(tl.float32) * over_targets(combined, POSITIONS, TARGETS, BLOCK_N)
        tap_d, tap_h, tap_w, over = next_tap(tap_d, tap_h, tap_w, phase_d, phase_h, phase_w)
        number += over

    if MULTIPLY:
        total *= over_targets(factor, POSITIONS, TARGETS, BLOCK_N)
    # Rows once more: the compiler, which does not know ``zero``, need not hold them in registers through the loop.
    b, place, d, h, w = position_of_row(
        first + zero, m // TARGETS, phase_d, phase_h, phase_w, input_h, input_w, AXES, POSITIONS
    )
    k = (target_block * TARGETS + m % TARGETS + zero).to(tl.int64)
    valid = (b < batch) & (k < targets)
    places = b * result_b + k * result_k + place * result_p
    mask = valid[:, None] & is_ci[None, :]
    tl.store(result + (places[:, None] + ci[None, :]), total.to(result.dtype.element_ty), mask=mask)


def depthwise_launch(call: Call, config: Config, targets: int) -> Launch:
    """The launch for a layer with as many groups as input channels; ``targets`` in a tile divides ``block_m``."""
    batch, K, channels = *call.relevance.shape[:2], call.channels
    row_blocks = -(-batch * call.layer.positions // (config.block_m // targets))
    channel_blocks = -(-channels // config.block_n)
    sizes = {"row_blocks": row_blocks, "channel_blocks": channel_blocks, "channels": channels, "zero": 0}
    constants = {
        "MULTIPLIER": call.relevance.shape[2] // channels,
        "TARGETS": targets,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
    }
    arguments = taken(depthwise_kernel, {**call.arguments(), **sizes, **constants})
    grid = (row_blocks * -(-K // targets) * channel_blocks, call.layer.phases)
    return Launch(depthwise_kernel, grid, arguments, config.num_warps, config.num_stages)
