"""The flat rule's kernels: every input channel gets the same.

A first kernel sums ``u F`` over output channels, a second one filters the sum, a small map in float32, with a box and
writes the result to every channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.input_rules.maps import SIZES, as_flow, by_axis, geometry, is_last, load_tile, strides
from fastlrp.kernels.launch import Launch, power_of_two

_SUM_TILE = (32, 64)
"""Positions and channels where these are innermost in memory, else channels and positions."""

_BOX_POSITIONS = 256
_MOST_CHANNELS = 8  # that a program writes at once
_WARPS = 4


# fmt: off
@triton.jit(do_not_specialize=["K", "tiles", "O_z", "O_y", "O_x"])
def flat_sum_kernel(
    flow,  # F, (B, K, Co, O_z, O_y, O_x)
    u,  # (B, Co, O_z, O_y, O_x)
    out,  # (B, K, O_z, O_y, O_x) float32, dense
    K,
    Co,
    tiles,
    O_z, O_y, O_x,
    flow_b, flow_k, flow_c, flow_z, flow_y, flow_x,
    u_b, u_c, u_z, u_y, u_x,
    LAST: tl.constexpr,  # whether channels of F are innermost in memory
    BLOCK_M: tl.constexpr,  # positions
    BLOCK_K: tl.constexpr,  # channels
):
    """``out[b, k, i] = sum_o u[b, o, i] F[b, k, o, i]`` for a tile of positions of one target."""
    program = tl.program_id(0)
    k = (program % K).to(tl.int64)
    tile = program // K % tiles
    b = (program // K // tiles).to(tl.int64)
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    positions = O_z * O_y * O_x
    inside = i < positions
    x = (i % O_x).to(tl.int64)
    y = (i // O_x % O_y).to(tl.int64)
    z = (i // (O_x * O_y)).to(tl.int64)
    flow_place = b * flow_b + k * flow_k + z * flow_z + y * flow_y + x * flow_x
    u_place = b * u_b + z * u_z + y * u_y + x * u_x
    total = tl.zeros((BLOCK_M, BLOCK_K) if LAST else (BLOCK_K, BLOCK_M), dtype=tl.float32)
    for start in range(0, Co, BLOCK_K):
        o = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        f = load_tile(flow, flow_place, o, flow_c, inside, o < Co, LAST)
        total += f.to(tl.float32) * load_tile(u, u_place, o, u_c, inside, o < Co, LAST).to(tl.float32)
    tl.store(out + (b * K + k) * positions + i, tl.sum(total, 1 if LAST else 0), mask=inside)


@triton.jit(do_not_specialize=["tiles", *SIZES, "n_z", "n_y", "n_x", "factor", "channels"])
def flat_box_kernel(
    summed,  # (maps, O_z, O_y, O_x) float32, dense
    out,  # (maps, S_z, S_y, S_x, channels), dense
    tiles,
    S_z, S_y, S_x,
    O_z, O_y, O_x,
    k_z, k_y, k_x,
    s_z, s_y, s_x,
    p_z, p_y, p_x,
    d_z, d_y, d_x,
    n_z, n_y, n_x,  # how many outputs a window of taps spans
    factor,  # an integer
    channels,
    BLOCK_M: tl.constexpr,  # positions
    BLOCK_N: tl.constexpr,  # channels
):
    """``out[x, c] = factor sum_i summed[i]`` over the outputs ``i`` with ``x = s i - p + d t`` for a tap ``t``."""
    program = tl.program_id(0)
    tile = program % tiles
    map = (program // tiles).to(tl.int64)
    position = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    positions = S_z * S_y * S_x
    inside = position < positions
    x = position % S_x + p_x
    y = position // S_x % S_y + p_y
    z = position // (S_x * S_y) + p_z
    start = summed + map * (O_z * O_y * O_x)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for n in range(n_z * n_y * n_x):
        i_x = x // s_x - n % n_x
        i_y = y // s_y - n // n_x % n_y
        i_z = z // s_z - n // (n_x * n_y)
        # The taps times the dilation; never negative.
        e_x = x - i_x * s_x
        e_y = y - i_y * s_y
        e_z = z - i_z * s_z
        meets = inside & (i_x >= 0) & (i_x < O_x) & (e_x % d_x == 0) & (e_x // d_x < k_x)
        meets &= (i_y >= 0) & (i_y < O_y) & (e_y % d_y == 0) & (e_y // d_y < k_y)
        meets &= (i_z >= 0) & (i_z < O_z) & (e_z % d_z == 0) & (e_z // d_z < k_z)
        total += tl.load(start + (i_z.to(tl.int64) * O_y + i_y) * O_x + i_x, mask=meets, other=0.0)
    value = (total * factor).to(out.dtype.element_ty)
    place = (map * positions + position) * channels
    for first in range(0, channels, BLOCK_N):
        c = first + tl.arange(0, BLOCK_N)
        wanted = inside[:, None] & (c < channels)[None, :]
        tl.store(out + place[:, None] + c[None, :], tl.broadcast_to(value[:, None], (BLOCK_M, BLOCK_N)), mask=wanted)
# fmt: on


def flat_sum_launch(relevance: Tensor, u: Tensor, summed: Tensor) -> Launch:
    B, K, Co, *output = relevance.shape
    u, last = as_flow(u, relevance), is_last(relevance, 2)
    block_m, block_k = _SUM_TILE if last else reversed(_SUM_TILE)
    tiles = triton.cdiv(math.prod(output), block_m)
    arguments = {
        "flow": relevance,
        "u": u,
        "out": summed,
        "K": K,
        "Co": Co,
        "tiles": tiles,
        **by_axis("O", output, 1),
        **strides("flow_bkczyx", relevance),
        **strides("u_bczyx", u),
        "LAST": last,
        "BLOCK_M": block_m,
        "BLOCK_K": block_k,
    }
    return Launch(flat_sum_kernel, (B * K * tiles,), arguments, _WARPS, 1)


def flat_box_launch(
    summed: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    factor: int,
    result: Tensor,
) -> Launch:
    B, K, channels, *input_size = result.shape
    tiles = triton.cdiv(math.prod(input_size), _BOX_POSITIONS)
    arguments = {
        "summed": summed,
        "out": result,
        "tiles": tiles,
        **geometry(input_size, summed.shape[2:], kernel, stride, padding, dilation),
        **by_axis("n", [d * (k - 1) // s + 1 for k, s, d in zip(kernel, stride, dilation, strict=True)], 1),
        "factor": factor,
        "channels": channels,
        "BLOCK_M": _BOX_POSITIONS,
        "BLOCK_N": min(power_of_two(channels), _MOST_CHANNELS),
    }
    return Launch(flat_box_kernel, (B * K * tiles,), arguments, _WARPS, 1)
