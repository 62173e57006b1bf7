"""What the kernels of attention share on the device: one tile of scores, as it is masked, capped and stabilised.

A tile stands either way: queries down and keys across, or keys down and queries across. The functions here take the
numbers of queries and keys as a column and a row, so that they serve both.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh_ratio(x):
    """``tanh(x) / x``, 1 at 0: a series near 0, where the quotient would lose digits."""
    size = tl.abs(x)
    square = tl.minimum(x * x, 1.0)
    near = 1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / ((1.0 + decay) * tl.maximum(size, 0.25))
    return tl.where(size < 0.25, near, far)


@triton.jit
def masked(s, i, j, S, T, mask, mask_start, mask_s, mask_t, CAUSAL: tl.constexpr):
    """Scores of queries ``i`` and keys ``j``, one a column and one a row; minus infinity where a query does not attend.

    ``mask`` is None, or has strides ``mask_s`` and ``mask_t``: what is added to a score, or for whole numbers whether
    the query attends.
    """
    attends = (j < T) & (i < S)
    if CAUSAL:
        attends = attends & (j <= i)
    if mask is not None:
        place = mask_start + i.to(tl.int64) * mask_s + j.to(tl.int64) * mask_t
        found = tl.load(mask + place, mask=attends, other=0)
        if mask.dtype.element_ty.is_floating():
            s += found.to(tl.float32)
        else:
            attends = attends & (found != 0)
    return tl.where(attends, s, -float("inf"))


@triton.jit
def probabilities(
    u, i, j, S, T, mask, mask_start, mask_s, mask_t, log_sum, cap, epsilon, CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr, STABLE: tl.constexpr,
):  # fmt: skip
    """``P``, and ``P`` times what the cap and the stabilizer of the score ``u`` leave of its coefficient.

    ``log_sum`` is plus infinity where there is nothing to attend: then ``P`` is 0.
    """
    s = u
    if CAPPED:
        ratio = tanh_ratio(u / cap)
        s = u * ratio
    p = tl.exp(masked(s, i, j, S, T, mask, mask_start, mask_s, mask_t, CAUSAL) - log_sum)
    left = p
    if CAPPED:
        left = left * ratio
    if STABLE:  # u / st(u)
        size = tl.abs(u)
        left = left * (size / (size + epsilon))
    return p, left


@triton.jit
def span(spans, row, stride, inside, nothing):
    """The least first and the largest last of the spans of some rows; ``nothing`` and 0 where there are none."""
    place = spans + row.to(tl.int64) * stride
    first = tl.min(tl.load(place, mask=inside, other=nothing), 0)
    last = tl.max(tl.load(place + 1, mask=inside, other=0), 0)
    return first, last


@triton.jit
def keys_of_tile(
    spans, start, stride, tile, i, is_query, T, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """From which key to which the queries ``i`` of a tile look, the first one at the edge of a tile of keys.

    Up to the diagonal with ``CAUSAL``, and under a mask no further than the keys that one of them attends to, whose
    ``spans`` begin at ``start``; None without a mask.
    """
    end = T
    if CAUSAL:
        end = tl.minimum(T, (tile + 1) * BLOCK_M)
    begin = 0
    if spans is not None:
        begin, last = span(spans + start, i, stride, is_query, T)
        begin = begin // BLOCK_N * BLOCK_N
        end = tl.minimum(end, last)
    return begin, end


@triton.jit
def queries_of_program(K, H, S, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr):
    """The first target, the tile of queries, the sample and the head of this program; the last tiles come first."""
    blocks = tl.cdiv(K, BLOCK_K)
    tiles = tl.cdiv(S, BLOCK_M)
    first_k = (tl.program_id(0) % blocks) * BLOCK_K
    rest = tl.program_id(0) // blocks
    return first_k, tiles - 1 - rest % tiles, (rest // tiles // H).to(tl.int64), (rest // tiles % H).to(tl.int64)


@triton.jit
def log_sums(log_sum, place, inside):
    """The logarithms of the sums, plus infinity where nothing is attended or where there is no query."""
    found = tl.load(log_sum + place, mask=inside, other=float("inf")).to(tl.float32)
    return tl.where(found == -float("inf"), float("inf"), found)


@triton.jit
def rows(tensor, start, row, stride, inside, features_stride, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of whole rows, ``BLOCK`` wide, 0 where there are none."""
    column = tl.arange(0, BLOCK)
    place = start + row.to(tl.int64)[:, None] * stride + column.to(tl.int64)[None, :] * features_stride
    if FEATURES == BLOCK:
        found = tl.load(tensor + place, mask=inside[:, None], other=0.0)
    else:
        found = tl.load(tensor + place, mask=inside[:, None] & (column < FEATURES)[None, :], other=0.0)
    return found


@triton.jit
def put(tensor, start, row, inside, tile, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    """Store a tile of whole rows of a contiguous result."""
    column = tl.arange(0, BLOCK)
    place = start + row.to(tl.int64)[:, None] * FEATURES + column[None, :]
    tl.store(tensor + place, tile.to(tensor.dtype.element_ty), mask=inside[:, None] & (column < FEATURES)[None, :])
