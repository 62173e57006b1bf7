"""The kernels of the max-pool's relevance, from each output's winner; see :mod:`fastlrp.kernels.pool.windows`."""

from __future__ import annotations

import triton
import triton.language as tl

from fastlrp.kernels.pool.windows import SIZES, along, flat_index, tile_of


@triton.jit
def _note(spans, total, i, o, known, CHANNELS: tl.constexpr):
    """Widen the spans of the coordinates from the least to the greatest winner ``i`` of an output to hold ``o``."""
    low = tl.min(tl.where(known, i, 2147483647), axis=CHANNELS)
    high = tl.max(tl.where(known, i, -1), axis=CHANNELS)
    o = o.to(tl.int64)
    for step in range(0, tl.max(high - low, axis=0) + 1):
        new = step <= high - low
        first = spans + low.to(tl.int64) + step
        last = first + total
        # A number that is not the newest only costs an atomic: what is there never shrinks.
        seen = tl.load(first, mask=new, other=0, cache_modifier=".cg")
        tl.atomic_max(first, -o, mask=new & (seen < -o), sem="relaxed")
        seen = tl.load(last, mask=new, other=0, cache_modifier=".cg")
        tl.atomic_max(last, o, mask=new & (seen < o), sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def span_kernel(
    index,  # (B, C, m_z m_y m_x), int64
    spans,  # (2, n_z + n_y + n_x), int64: minus the first output with a winner there, and the last one
    channels,
    positions,
    total,
    n_z,
    n_y,
    n_x,
    m_y,
    m_x,
    index_b,
    index_c,
    index_p,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Along each axis and for each coordinate of the input, the outputs that have a winner there. Integer maxima: the
    same in any order.
    """
    b, _, c, p = tile_of(1, channels, positions, 1, BLOCK_C, BLOCK_P, LAST)
    place = b * index_b + c.to(tl.int64) * index_c + p.to(tl.int64) * index_p
    winner = tl.load(index + place, mask=(c < channels) & (p < positions), other=-1)
    CHANNELS: tl.constexpr = 1 if LAST else 0
    SHAPE: tl.constexpr = (BLOCK_P, BLOCK_C) if LAST else (BLOCK_C, BLOCK_P)
    winner = tl.reshape(winner, SHAPE)
    known = (winner >= 0) & (winner < n_z * n_y * n_x)
    i = winner.to(tl.int32)
    o = tl.reshape(p, (BLOCK_P,))
    _note(spans, total, i // (n_y * n_x), o // (m_y * m_x), known, CHANNELS)
    _note(spans + n_z, total, i // n_x % n_y, o // m_x % m_y, known, CHANNELS)
    _note(spans + n_z + n_y, total, i % n_x, o % m_x, known, CHANNELS)


@triton.jit
def _span(spans, total, i, n, LAST: tl.constexpr):
    """First output, last output, and the most that a position of the tile has; ``i`` is a vector.

    It is made into a tile after the loads: a load of a tile with size 1 along an axis is repeated along that axis.
    """
    place = spans + i.to(tl.int64)
    first = -tl.load(place, mask=i < n, other=-1).to(tl.int32)
    last = tl.load(place + total, mask=i < n, other=0).to(tl.int32)
    return along(first, not LAST), along(last, not LAST), tl.max(last - first, axis=0) + 1


@triton.jit(do_not_specialize=SIZES)
def max_kernel(
    flow,  # F, (B, K, C, m_z m_y m_x)
    index,  # (B, C, m_z m_y m_x), int64
    scale,  # (B, C, m_z m_y m_x) or None
    spans,  # (2, n_z + n_y + n_x), int64
    out,  # (B, K, C, n_z n_y n_x)
    targets,
    channels,
    positions,
    total,
    n_z,
    n_y,
    n_x,
    m_y,
    m_x,
    flow_b,
    flow_k,
    flow_c,
    flow_p,
    index_b,
    index_c,
    index_p,
    scale_b,
    scale_c,
    scale_p,
    out_b,
    out_k,
    out_c,
    out_p,
    LAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """``out[i] = sum of F[o] scale[o]`` over the outputs ``o`` whose winner is ``i``."""
    b, k, c, p = tile_of(targets, channels, positions, BLOCK_K, BLOCK_C, BLOCK_P, LAST)
    there = (c < channels) & (p < positions)
    i = tl.reshape(p, (BLOCK_P,))
    first_z, last_z, most_z = _span(spans, total, i // (n_y * n_x), n_z, LAST)
    first_y, last_y, most_y = _span(spans + n_z, total, i // n_x % n_y, n_y, LAST)
    first_x, last_x, most_x = _span(spans + n_z + n_y, total, i % n_x, n_x, LAST)
    flow_start = flow + b * flow_b + k.to(tl.int64) * flow_k + c.to(tl.int64) * flow_c
    result = tl.zeros((BLOCK_K, BLOCK_P if LAST else BLOCK_C, BLOCK_C if LAST else BLOCK_P), dtype=tl.float32)
    for step_z in range(0, most_z):
        o_z = first_z + step_z
        for step_y in range(0, most_y):
            o_y = first_y + step_y
            for step_x in range(0, most_x):
                o_x = first_x + step_x
                exists = there & (o_z <= last_z) & (o_y <= last_y) & (o_x <= last_x)
                o = flat_index(o_z, o_y, o_x, m_y, m_x)
                at = b * index_b + c.to(tl.int64) * index_c + o * index_p
                wins = exists & (tl.load(index + at, mask=exists, other=-1) == p)
                # Not only where it wins: a mask that differs from channel to channel would make the load a narrow one.
                f = tl.load(flow_start + o * flow_p, mask=exists & (k < targets), other=0.0).to(tl.float32)
                if scale is not None:
                    at = b * scale_b + c.to(tl.int64) * scale_c + o * scale_p
                    f *= tl.load(scale + at, mask=exists, other=0.0).to(tl.float32)
                result += tl.where(wins, f, 0.0)
    place = b * out_b + k.to(tl.int64) * out_k + c.to(tl.int64) * out_c + p.to(tl.int64) * out_p
    tl.store(out + place, result.to(out.dtype.element_ty), mask=there & (k < targets))
