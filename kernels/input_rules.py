"""Relevance of a network's input: few input channels, so direct convolutions; see :mod:`fastlrp.reference.input_rules`.

``R = sum_j m_j W_j^T (u_j F)``. Along an axis with stride ``s``, output ``i`` of the layer and tap ``t`` meet the input
position ``s i - p + d t``. The positions of one residue modulo ``s`` meet the same taps, and their neighbours meet
neighbouring outputs:

    position s q + r,  taps t with d t = r + p (mod s), every ``s / gcd(s, d)``-th,  output i = q + (r + p - d t) / s

A program computes ``BLOCK_M`` positions of one residue for one target: a product of (positions, output channels) with
(output channels, slots) for each tap, where the slots are the terms side by side, each with its input channels. So
``F`` is read from memory once for all terms and channels, and by the other taps and residues, which run at the same
time, from the caches. Coefficients multiply it once for all terms that share them. The epilogue multiplies by ``m_j``
and adds up slots, of channels too with ``reduce``: the last and largest map is written once.

Flat: a first kernel sums ``u F`` over output channels, a second one filters the sum, a small map in float32, with a box
and writes the result to every channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlrp.aten import input_rules as composed
from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.configs import Config, configuration, configurations
from fastlrp.kernels.launch import Launch, convolution_precision, empty_map, interpreted, power_of_two

MOST_TERMS, MOST_CHANNELS, MOST_TAPS = 3, 8, 128

_SUM_TILE = (32, 64)
"""Positions and channels where these are innermost in memory, else channels and positions."""

_BOX_POSITIONS = 256
_WARPS = 4
_INTERPRETED = tl.constexpr(interpreted())


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
def _load(map, place, o, stride, inside, is_o, LAST: tl.constexpr):
    """A tile (positions, channels) where channels are innermost in memory, else (channels, positions)."""
    if LAST:
        tile = tl.load(map + place[:, None] + o[None, :] * stride, mask=inside[:, None] & is_o[None, :], other=0.0)
    else:
        tile = tl.load(map + o[:, None] * stride + place[None, :], mask=is_o[:, None] & inside[None, :], other=0.0)
    return tile


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
    return tl.dot(s, weight, total, input_precision=PRECISION)


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


_AXES = ("z", "y", "x")
_SIZES = [f"{name}_{axis}" for name in ("S", "O", "k", "s", "p", "d") for axis in _AXES]
_STEPS = [f"{name}_{axis}" for name in ("e", "a") for axis in _AXES]


# fmt: off
@triton.jit(do_not_specialize=["K", "tiles", *_SIZES, *_STEPS])
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

        f = _load(flow, place, o, flow_c, meets, is_o, LAST)
        s = _scaled(f, _load(u, u_place, o, u_c, meets, is_o, LAST), LAST)
        total = _dot(s, _weights(w, w1, w2, w_place, weighs, term, 0, OF_1, OF_2), total, PRECISION)
        if u1 is not None:
            s = _scaled(f, _load(u1, u_place, o, u_c, meets, is_o, LAST), LAST)
            total = _dot(s, _weights(w, w1, w2, w_place, weighs, term, 1, OF_1, OF_2), total, PRECISION)
        if u2 is not None:
            s = _scaled(f, _load(u2, u_place, o, u_c, meets, is_o, LAST), LAST)
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
        f = _load(flow, flow_place, o, flow_c, inside, o < Co, LAST)
        total += f.to(tl.float32) * _load(u, u_place, o, u_c, inside, o < Co, LAST).to(tl.float32)
    tl.store(out + (b * K + k) * positions + i, tl.sum(total, 1 if LAST else 0), mask=inside)


@triton.jit(do_not_specialize=["tiles", *_SIZES, "n_z", "n_y", "n_x", "factor", "channels"])
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


def cannot(weights: Sequence[Tensor], groups: int) -> str | None:
    """Why the kernel does not take a layer, or None. Then the launcher composes PyTorch's operations."""
    _, channels, *kernel = weights[0].shape
    if groups != 1:
        return f"the layer has {groups} groups, the kernel is for layers without"
    if channels > MOST_CHANNELS:
        return f"the layer has {channels} input channels, the kernel is for at most {MOST_CHANNELS}"
    if len(weights) > MOST_TERMS:
        return f"there are {len(weights)} terms, the kernel is for at most {MOST_TERMS}"
    if math.prod(kernel) > MOST_TAPS:
        return f"its kernel has {math.prod(kernel)} taps, each of which reads the relevance again: at most {MOST_TAPS}"
    return None


def input_relevance(
    relevance: Tensor,
    weights: list[Tensor],
    coefficients: list[Tensor],
    multipliers: list[Tensor | None],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    reduce: bool,
) -> Tensor:
    """``sum_j m_j W_j^T (u_j F)``, (B, K, Co, *S') -> (B, K, Ci, *S) or (B, K, 1, *S); see the reference's namesake.

    What :func:`cannot` names is composed of PyTorch's operations.
    """
    if cannot(weights, groups) is not None:
        return composed.input_relevance(
            relevance, weights, coefficients, multipliers, input_size, stride, padding, dilation, groups, reduce
        )
    channels = 1 if reduce else weights[0].shape[1]
    result = empty_map(relevance, *relevance.shape[:2], channels, input_size)
    if result.numel() == 0 or relevance.numel() == 0:
        return result.zero_()
    config = configuration("input_relevance", "*", relevance.device, relevance.dtype)
    precision = convolution_precision() if relevance.dtype == torch.float32 else "ieee"
    with torch.cuda.device_of(relevance):
        _relevance_launch(
            relevance, weights, coefficients, multipliers, stride, padding, dilation, reduce, precision, config, result
        ).run()
    return result


def input_flat_relevance(
    relevance: Tensor,
    u: Tensor,
    channels: int,
    kernel_size: list[int],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    reduce: bool,
) -> Tensor:
    """``1^T (u F)``, (B, K, Co, *S') -> (B, K, Ci, *S) or (B, K, 1, *S); see the reference's namesake."""
    B, K, _, *output = relevance.shape
    result = empty_map(relevance, B, K, 1 if reduce else channels, input_size)
    if result.numel() == 0 or relevance.numel() == 0:
        return result.zero_()
    summed = torch.empty(B, K, *output, dtype=torch.float32, device=relevance.device)
    factor = channels if reduce else 1
    with torch.cuda.device_of(relevance):
        _flat_sum_launch(relevance, u, summed).run()
        _flat_box_launch(summed, kernel_size, stride, padding, dilation, factor, result).run()
    return result


def _relevance_launch(
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
    us, weights = _alike([_as_flow(u, relevance) for u in us]), _alike(weights)
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
        **_geometry(input_size, output, kernel, stride, padding, dilation),
        **_by_axis("e", [s // g for s, g in zip(stride, common, strict=True)], 1),
        **_by_axis("a", [d // g for d, g in zip(dilation, common, strict=True)], 1),
        **_strides("flow_bkczyx", relevance),
        **_strides("u_bczyx", us[0]),
        **_strides("w_oczyx", weights[0]),
        **_strides("m_bczyx", given[0] if given else None),
        **_strides("out_bkczyx", result),
        "OF_1": of[1],
        "OF_2": of[2],
        "CI": channels,
        "CHANNELS": padded,
        "REDUCE": reduce,
        "LAST": _is_last(relevance, 2),
        "PRECISION": precision,
        "BLOCK_M": config.block_m,
        "BLOCK_N": max(16, power_of_two(len(weights)) * padded),
        "BLOCK_K": config.block_k,
    }
    grid = (B * K * tiles * math.prod(stride),)
    return Launch(relevance_kernel, grid, arguments, config.num_warps, config.num_stages)


def _flat_sum_launch(relevance: Tensor, u: Tensor, summed: Tensor) -> Launch:
    B, K, Co, *output = relevance.shape
    u, last = _as_flow(u, relevance), _is_last(relevance, 2)
    block_m, block_k = _SUM_TILE if last else reversed(_SUM_TILE)
    tiles = triton.cdiv(math.prod(output), block_m)
    arguments = {
        "flow": relevance,
        "u": u,
        "out": summed,
        "K": K,
        "Co": Co,
        "tiles": tiles,
        **_by_axis("O", output, 1),
        **_strides("flow_bkczyx", relevance),
        **_strides("u_bczyx", u),
        "LAST": last,
        "BLOCK_M": block_m,
        "BLOCK_K": block_k,
    }
    return Launch(flat_sum_kernel, (B * K * tiles,), arguments, _WARPS, 1)


def _flat_box_launch(
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
        **_geometry(input_size, summed.shape[2:], kernel, stride, padding, dilation),
        **_by_axis("n", [d * (k - 1) // s + 1 for k, s, d in zip(kernel, stride, dilation, strict=True)], 1),
        "factor": factor,
        "channels": channels,
        "BLOCK_M": _BOX_POSITIONS,
        "BLOCK_N": min(power_of_two(channels), MOST_CHANNELS),
    }
    return Launch(flat_box_kernel, (B * K * tiles,), arguments, _WARPS, 1)


def _distinct(coefficients: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The coefficients without repetitions, and which of them each term has; -1 for terms that there are not."""
    found: list[Tensor] = []
    of = []
    for u in coefficients:
        place = next((n for n, other in enumerate(found) if other is u), len(found))
        found += [u] if place == len(found) else []
        of.append(place)
    return found, of + [-1] * (MOST_TERMS - len(of))


def _is_last(tensor: Tensor, channel: int) -> bool:
    """Whether channels are innermost in memory."""
    return tensor.shape[channel] > 1 and tensor.stride(channel) == 1


def _as_flow(u: Tensor, relevance: Tensor) -> Tensor:
    """The coefficient in the relevance's memory order: every target reads it again."""
    last = _is_last(relevance, 2)
    if _is_last(u, 1) == last:
        return u
    return u.movedim(1, -1).contiguous().movedim(-1, 1) if last else u.contiguous()


def _alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values, all with the same strides: copies in the order of the first where they differ."""
    if all(t.stride() == tensors[0].stride() for t in tensors):
        return list(tensors)
    return [torch.empty_like(tensors[0]).copy_(t) for t in tensors]


def _three(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [*tensors, *[None] * (MOST_TERMS - len(tensors))]


def _geometry(*numbers: Sequence[int]) -> dict[str, int]:
    """Sizes of input and output, kernel, stride, padding, dilation, for three axes."""
    return {
        name: value
        for letter, each, missing in zip("SOkspd", numbers, (1, 1, 1, 1, 0, 1), strict=True)
        for name, value in _by_axis(letter, each, missing).items()
    }


def _by_axis(letter: str, numbers: Sequence[int], missing: int) -> dict[str, int]:
    """One for each of three axes, the leading ones ``missing`` where there are fewer."""
    padded = [missing] * (3 - len(numbers)) + list(numbers)
    return {f"{letter}_{axis}": number for axis, number in zip("zyx", padded, strict=True)}


def _strides(names: str, tensor: Tensor | None) -> dict[str, int]:
    """Strides under the name and the axes' letters, those of missing spatial axes 0."""
    name, letters = names.split("_")
    given = [] if tensor is None else list(tensor.stride())
    leading = len(letters) - 3
    missing = [0] * (len(letters) - len(given))
    return dict(zip((f"{name}_{axis}" for axis in letters), given[:leading] + missing + given[leading:], strict=True))


_CASES = (
    ("0", 1, True),
    ("0", 3, False),
    ("00", 3, False),
    ("00", 3, True),
    ("01", 8, False),
    ("000", 8, True),
    ("001", 3, False),
    ("010", 3, False),
    ("011", 3, False),
    ("012", 8, False),
)
"""Which coefficient each term has, input channels, reduce: what decides how many products and slots there are."""


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel in every configuration, for maps with the channels innermost and outermost."""
    for last in (True, False):
        order = "last" if last else "first"
        for precision in ("tf32", "ieee") if dtype == torch.float32 else ("ieee",):
            kind = precision if dtype == torch.float32 else None
            for name, config in configurations("input_relevance", dtype, kind).items():
                for of, channels, reduce in _CASES:
                    launch = _sample(dtype, of, channels, reduce, last, precision, config)
                    what = f"{precision}-{of}-{channels}{'-reduced' if reduce else ''}-{order}"
                    on_cores = precision == "tf32" or dtype.itemsize == 2
                    yield launch.compilation(f"input_relevance-{name}-{what}", on_cores)
        relevance, u = _map(dtype, (2, 2, 64, 16, 16), last), _map(dtype, (2, 64, 16, 16), last)
        summed = torch.empty(2, 2, 16, 16)
        yield _flat_sum_launch(relevance, u, summed).compilation(f"input_flat_sum-{order}", False)
    for channels in (1, 3, 8):
        result = _map(dtype, (2, 2, channels, 16, 16), True)
        launch = _flat_box_launch(summed, [3, 3], [1, 1], [1, 1], [1, 1], 1, result)
        yield launch.compilation(f"input_flat_box-{channels}", False)


def _sample(
    dtype: torch.dtype, of: str, channels: int, reduce: bool, last: bool, precision: str, config: Config
) -> Launch:
    """A launch with these terms."""
    relevance = _map(dtype, (2, 2, 64, 16, 16), last)
    result = _map(dtype, (2, 2, 1 if reduce else channels, 16, 16), True)
    us = [_map(dtype, (2, 64, 16, 16), last) for _ in of]
    weights = [torch.empty(64, channels, 3, 3, dtype=dtype) for _ in of]
    ms = [_map(dtype, (2, channels, 16, 16), False) for _ in of]
    rest = ([1, 1], [1, 1], [1, 1], reduce, precision, config, result)
    return _relevance_launch(relevance, weights, [us[int(n)] for n in of], ms, *rest)


def _map(dtype: torch.dtype, size: tuple[int, ...], last: bool) -> Tensor:
    """Any values, channels innermost or before the two spatial axes."""
    if not last:
        return torch.empty(size, dtype=dtype)
    return torch.empty(*size[:-3], *size[-2:], size[-3], dtype=dtype).movedim(-1, -3)
