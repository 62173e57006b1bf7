"""The product kernel for a network's input: few input channels, so a direct convolution.

``R = sum_j m_j W_j^T (u_j F)``. Along an axis with stride ``s``, output ``i`` of the layer and tap ``t`` meet the input
position ``s i - p + d t``. The positions of one residue modulo ``s`` meet the same taps, and their neighbours meet
neighbouring outputs:

    position s q + r,  taps t with d t = r + p (mod s), every ``s / gcd(s, d)``-th,  output i = q + (r + p - d t) / s

A program computes ``BLOCK_M`` positions of one residue for one target: a product of (positions, output channels) with
(output channels, slots) for each tap, where the slots are the terms side by side, each with its input channels. So
``F`` is read from memory once for all terms and channels, and by the other taps and residues, which run at the same
time, from the caches. Coefficients multiply it once for all terms that share them. The epilogue multiplies by ``m_j``
and adds up slots, of channels too with ``reduce``: the last and largest map is written once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.configs import Config
from fastlrp.kernels.input_rules.maps import SIZES, as_flow, by_axis, geometry, is_last, load_tile, strides
from fastlrp.kernels.launch import Launch, interpreted, power_of_two
from fastlrp.kernels.rounding import raised

MOST_TERMS = 3
_INTERPRETED = tl.constexpr(interpreted())
_STEPS = [f"{name}_{axis}" for name in "ea" for axis in "zyx"]


@triton.jit
def _taps(residue, taps, stride, padding, dilation, step):
    """Of one axis: the first tap that meets a residue, how many do, and which output that tap meets at q = 0."""
    first = taps
    for t in range(step):
        # r + p - d t modulo s, without a negative number: C and Python divide those differently.
        meets = (residue + padding + (stride - 1) * dilation * t) % stride == 0
        first = tl.where(meets & (t < taps), t, first)
    return first, tl.cdiv(taps - first, step), (residue + padding - dilation * first) // stride


@triton.jit
def _scaled(flow, coefficient, LAST: tl.constexpr):
    """``u F``, (positions, channels), in the dtype of the tensor cores' operands."""
    s = (flow.to(tl.float32) * coefficient.to(tl.float32)).to(flow.dtype)
    if not LAST:
        s = tl.trans(s)
    return s


@triton.jit
def _dot(s, weight, total, PRECISION: tl.constexpr):
    if _INTERPRETED and s.dtype == tl.bfloat16:  # which NumPy has not
        return tl.dot(s.to(tl.float32), weight.to(tl.float32), total)
    return tl.dot(raised(s, PRECISION), raised(weight, PRECISION), total, input_precision=PRECISION)


@triton.jit
def _weights(w, w1, w2, place, wanted, term, of: tl.constexpr, OF_1: tl.constexpr, OF_2: tl.constexpr):
    """The terms of one coefficient, each in its own slots, 0 in the others."""
    source = w
    mine = (term == 0) & (of == 0)
    if OF_1 >= 0:
        source = tl.where(term == 1, w1, source)
        mine |= (term == 1) & (of == OF_1)
    if OF_2 >= 0:
        source = tl.where(term == 2, w2, source)
        mine |= (term == 2) & (of == OF_2)
    if OF_1 >= 0:
        source = source[None, :]
    return tl.load(source + place, mask=wanted & mine[None, :], other=0.0)


@triton.jit
def _multiplied(total, m, place, wanted):
    """The slots that are wanted times their multipliers."""
    return total * tl.load(m + place, mask=wanted, other=1.0).to(tl.float32)


# fmt: off
@triton.jit(do_not_specialize=["K", "tiles", *SIZES, *_STEPS])
def relevance_kernel(
    flow,  # F, (B, K, Co, O_z, O_y, O_x)
    u,  # (B, Co, O_z, O_y, O_x), each that is not None
    u1,
    u2,
    w,  # (Co, CI, k_z, k_y, k_x)
    w1,
    w2,
    m,  # (B, CI, S_z, S_y, S_x), or None: 1
    m1,
    m2,
    out,  # (B, K, CI or 1, S_z, S_y, S_x)
    K,
    Co,
    tiles,  # of the positions of a residue
    S_z, S_y, S_x,
    O_z, O_y, O_x,
    k_z, k_y, k_x,
    s_z, s_y, s_x,  # stride
    p_z, p_y, p_x,  # padding
    d_z, d_y, d_x,  # dilation
    e_z, e_y, e_x,  # every how many taps meet a position: s / gcd(s, d)
    a_z, a_y, a_x,  # how far apart the outputs are that they meet: d / gcd(s, d)
    flow_b, flow_k, flow_c, flow_z, flow_y, flow_x,
    u_b, u_c, u_z, u_y, u_x,
    w_o, w_c, w_z, w_y, w_x,
    m_b, m_c, m_z, m_y, m_x,
    out_b, out_k, out_c, out_z, out_y, out_x,
    OF_1: tl.constexpr,  # which coefficient the second term has: 0, 1, or -1 where there is no such term
    OF_2: tl.constexpr,  # and the third: 0, 1, 2 or -1
    CI: tl.constexpr,
    CHANNELS: tl.constexpr,  # CI, padded to a power of two
    REDUCE: tl.constexpr,
    LAST: tl.constexpr,  # whether channels of F are innermost in memory
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # positions
    BLOCK_N: tl.constexpr,  # slots: a multiple of CHANNELS
    BLOCK_K: tl.constexpr,  # output channels
):
    """``out[b, k, c, x] = sum_j m_j[b, c, x] sum_{t, o} W_j[o, c, t] (u_j F)[b, k, o, i]``

    where ``s i - p + d t = x = s q + r``, for one ``b``, ``k``, residue ``r`` and tile of ``q``. Residues run fastest,
    then targets, because what they share is then in the caches.
    """
    program = tl.program_id(0)
    residue = program % (s_z * s_y * s_x)
    program = program // (s_z * s_y * s_x)
    k = (program % K).to(tl.int64)
    tile = program // K % tiles
    b = (program // K // tiles).to(tl.int64)
    r_x = residue % s_x
    r_y = residue // s_x % s_y
    r_z = residue // (s_x * s_y)

    q = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    Q_x = tl.cdiv(S_x, s_x)
    Q_y = tl.cdiv(S_y, s_y)
    q_x = q % Q_x
    q_y = q // Q_x % Q_y
    q_z = q // (Q_x * Q_y)
    x = q_x * s_x + r_x
    y = q_y * s_y + r_y
    z = q_z * s_z + r_z
    inside = (x < S_x) & (y < S_y) & (z < S_z)

    slot = tl.arange(0, BLOCK_N)
    term = slot // CHANNELS
    c = (slot % CHANNELS).to(tl.int64)
    is_channel = c < CI

    first_x, taps_x, start_x = _taps(r_x, k_x, s_x, p_x, d_x, e_x)
    first_y, taps_y, start_y = _taps(r_y, k_y, s_y, p_y, d_y, e_y)
    first_z, taps_z, start_z = _taps(r_z, k_z, s_z, p_z, d_z, e_z)
    flow_start = b * flow_b + k * flow_k
    chunks = tl.cdiv(Co, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(taps_z * taps_y * taps_x * chunks):
        tap = step // chunks
        o = step % chunks * BLOCK_K + tl.arange(0, BLOCK_K)
        n_x = tap % tl.maximum(taps_x, 1)
        n_y = tap // tl.maximum(taps_x, 1) % tl.maximum(taps_y, 1)
        n_z = tap // tl.maximum(taps_x * taps_y, 1)
        i_x = q_x + start_x - n_x * a_x
        i_y = q_y + start_y - n_y * a_y
        i_z = q_z + start_z - n_z * a_z
        meets = inside & (i_x >= 0) & (i_x < O_x) & (i_y >= 0) & (i_y < O_y) & (i_z >= 0) & (i_z < O_z)
        i_x, i_y, i_z, o = i_x.to(tl.int64), i_y.to(tl.int64), i_z.to(tl.int64), o.to(tl.int64)
        is_o = o < Co
        place = flow_start + i_z * flow_z + i_y * flow_y + i_x * flow_x
        u_place = b * u_b + i_z * u_z + i_y * u_y + i_x * u_x
        t_x, t_y, t_z = first_x + n_x * e_x, first_y + n_y * e_y, first_z + n_z * e_z
        tap_place = t_z.to(tl.int64) * w_z + t_y.to(tl.int64) * w_y + t_x.to(tl.int64) * w_x
        w_place = tap_place + o[:, None] * w_o + c[None, :] * w_c
        weighs = is_o[:, None] & is_channel[None, :]

        f = load_tile(flow, place, o, flow_c, meets, is_o, LAST)
        s = _scaled(f, load_tile(u, u_place, o, u_c, meets, is_o, LAST), LAST)
        total = _dot(s, _weights(w, w1, w2, w_place, weighs, term, 0, OF_1, OF_2), total, PRECISION)
        if u1 is not None:
            s = _scaled(f, load_tile(u1, u_place, o, u_c, meets, is_o, LAST), LAST)
            total = _dot(s, _weights(w, w1, w2, w_place, weighs, term, 1, OF_1, OF_2), total, PRECISION)
        if u2 is not None:
            s = _scaled(f, load_tile(u2, u_place, o, u_c, meets, is_o, LAST), LAST)
            total = _dot(s, _weights(w, w1, w2, w_place, weighs, term, 2, OF_1, OF_2), total, PRECISION)

    x, y, z = x.to(tl.int64), y.to(tl.int64), z.to(tl.int64)
    place = b * m_b + z * m_z + y * m_y + x * m_x
    m_place = place[:, None] + c[None, :] * m_c
    wanted = inside[:, None] & is_channel[None, :]
    if m is not None:
        total = _multiplied(total, m, m_place, wanted & (term == 0)[None, :])
    if m1 is not None:
        total = _multiplied(total, m1, m_place, wanted & (term == 1)[None, :])
    if m2 is not None:
        total = _multiplied(total, m2, m_place, wanted & (term == 2)[None, :])
    place = out + b * out_b + k * out_k + z * out_z + y * out_y + x * out_x
    if REDUCE:
        tl.store(place, tl.sum(total, 1).to(out.dtype.element_ty), mask=inside)
    else:
        result = tl.sum(tl.reshape(total, (BLOCK_M, BLOCK_N // CHANNELS, CHANNELS)), 1)
        c = tl.arange(0, CHANNELS).to(tl.int64)
        wanted = inside[:, None] & (c < CI)[None, :]
        tl.store(place[:, None] + c[None, :] * out_c, result.to(out.dtype.element_ty), mask=wanted)
# fmt: on


def relevance_launch(
    relevance: Tensor,
    weights: Sequence[Tensor],
    coefficients: Sequence[Tensor],
    multipliers: Sequence[Tensor | None],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    reduce: bool,
    precision: str,
    config: Config,
    result: Tensor,
) -> Launch:
    (B, K, Co, *output), (_, channels, *kernel), input_size = relevance.shape, weights[0].shape, result.shape[3:]
    us, of = _distinct(coefficients)
    us, weights = _alike([as_flow(u, relevance) for u in us]), _alike(weights)
    given = _alike([m for m in multipliers if m is not None])
    rest = iter(given)
    ms = [None if m is None else next(rest) for m in multipliers]
    tiles = triton.cdiv(math.prod(triton.cdiv(n, s) for n, s in zip(input_size, stride, strict=True)), config.block_m)
    common = [math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    padded = power_of_two(channels)
    arguments = {
        "flow": relevance,
        **dict(zip(("u", "u1", "u2"), _three(us), strict=True)),
        **dict(zip(("w", "w1", "w2"), _three(weights), strict=True)),
        **dict(zip(("m", "m1", "m2"), _three(ms), strict=True)),
        "out": result,
        "K": K,
        "Co": Co,
        "tiles": tiles,
        **geometry(input_size, output, kernel, stride, padding, dilation),
        **by_axis("e", [s // g for s, g in zip(stride, common, strict=True)], 1),
        **by_axis("a", [d // g for d, g in zip(dilation, common, strict=True)], 1),
        **strides("flow_bkczyx", relevance),
        **strides("u_bczyx", us[0]),
        **strides("w_oczyx", weights[0]),
        **strides("m_bczyx", given[0] if given else None),
        **strides("out_bkczyx", result),
        "OF_1": of[1],
        "OF_2": of[2],
        "CI": channels,
        "CHANNELS": padded,
        "REDUCE": reduce,
        "LAST": is_last(relevance, 2),
        "PRECISION": precision,
        "BLOCK_M": config.block_m,
        "BLOCK_N": max(16, power_of_two(len(weights)) * padded),
        "BLOCK_K": config.block_k,
    }
    grid = (B * K * tiles * math.prod(stride),)
    return Launch(relevance_kernel, grid, arguments, config.num_warps, config.num_stages)


def _distinct(coefficients: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The coefficients without repetitions, and which of them each term has; -1 for terms that there are not."""
    found: list[Tensor] = []
    of = []
    for u in coefficients:
        place = next((n for n, other in enumerate(found) if other is u), len(found))
        found += [u] if place == len(found) else []
        of.append(place)
    return found, of + [-1] * (MOST_TERMS - len(of))


def _alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values, all with the same strides: copies in the order of the first where they differ."""
    if all(t.stride() == tensors[0].stride() for t in tensors):
        return list(tensors)
    return [torch.empty_like(tensors[0]).copy_(t) for t in tensors]


def _three(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [*tensors, *[None] * (MOST_TERMS - len(tensors))]
