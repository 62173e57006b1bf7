"""Attention's output and the logarithm of each query's sum, by an online softmax.

One program has a tile of queries of one head and goes over the tiles of keys: it keeps the largest score so far, the
sum of the exponentials below it, and the sum of the values that they weigh, and rescales both sums whenever a larger
score comes. With ``causal`` it ends at the diagonal; under a mask it goes from the first tile of keys that one of its
queries attends to, to the last. Offsets are 64-bit, sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.attention.call import Call
from fastlrp.kernels.attention.scores import keys_of_tile, masked, put, rows, tanh_ratio
from fastlrp.kernels.configs import Config
from fastlrp.kernels.launch import Launch
from fastlrp.kernels.rounding import raised


@triton.jit(do_not_specialize=["H", "S", "T", "heads_per_key"])
def attention_forward_kernel(
    query,  # (B, H, S, D)
    key,  # (B, G, T, D)
    value,  # (B, G, T, E)
    mask,  # (B, H, S, T) or None
    spans,  # (B, H, S, 2): the keys of each query, or None
    output,  # (B, H, S, E)
    log_sum,  # (B, H, S)
    H,
    S,
    T,
    heads_per_key,  # H / G
    scale,
    cap,
    query_b,
    query_head,
    query_s,
    query_e,
    key_b,
    key_head,
    key_t,
    key_e,
    value_b,
    value_head,
    value_t,
    value_e,
    mask_b,
    mask_head,
    mask_s,
    mask_t,
    spans_b,
    spans_head,
    spans_i,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,  # queries
    BLOCK_N: tl.constexpr,  # keys
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """``softmax(s) value`` and ``log sum exp(s)`` of one tile of queries; the longest tiles of a head come first."""
    tiles = tl.cdiv(S, BLOCK_M)
    tile = tiles - 1 - tl.program_id(0) % tiles
    b_h = tl.program_id(0) // tiles
    b = (b_h // H).to(tl.int64)
    h = (b_h % H).to(tl.int64)
    g = h // heads_per_key
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_query = i < S
    spans_start = b * spans_b + h * spans_head
    begin, end = keys_of_tile(spans, spans_start, spans_i, tile, i, is_query, T, CAUSAL, BLOCK_M, BLOCK_N)
    q = rows(query, b * query_b + h * query_head, i, query_s, is_query, query_e, D, BLOCK_D)
    mask_start = b * mask_b + h * mask_head
    key_start = b * key_b + g * key_head
    value_start = b * value_b + g * value_head

    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    for first in range(begin, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        is_key = j < T
        k = rows(key, key_start, j, key_t, is_key, key_e, D, BLOCK_D)
        s = scale * tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if CAPPED:
            s = s * tanh_ratio(s / cap)
        s = masked(s, i[:, None], j[None, :], S, T, mask, mask_start, mask_s, mask_t, CAUSAL)
        higher = tl.maximum(largest, tl.max(s, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        kept = tl.exp(largest - base)
        p = tl.exp(s - base[:, None])
        weight = weight * kept + tl.sum(p, 1)
        v = rows(value, value_start, j, value_t, is_key, value_e, E, BLOCK_E)
        total = tl.dot(raised(p.to(v.dtype), PRECISION), v, total * kept[:, None], input_precision=PRECISION)
        largest = higher

    some = weight > 0
    weight = tl.where(some, weight, 1.0)
    at = b_h.to(tl.int64) * S
    put(output, at * E, i, is_query, total / weight[:, None], E, BLOCK_E)
    found = tl.where(some, largest + tl.log(weight), -float("inf"))
    tl.store(log_sum + at + i, found.to(log_sum.dtype.element_ty), mask=is_query)


def forward_launch(call: Call, config: Config, output: Tensor, log_sum: Tensor) -> Launch:
    """The launch that fills ``output`` and ``log_sum``, both contiguous."""
    values = call.values() | call.keys_seen() | {"output": output, "log_sum": log_sum}
    # A mask and a cap together take registers: 64 keys of float32 left two addresses on the stack (sm_80). So does a
    # mask whose rows are not aligned, as with 197 tokens, because each element is loaded alone: 128 keys left 1208
    # bytes (sm_90).
    odd = call.mask is not None and any(n % 16 for n in call.mask.stride()[:3]) and config.block_n > 64
    narrow = call.mask is not None and (call.cap > 0 or odd) and config.block_n > 32
    values |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n // 2 if narrow else config.block_n}
    grid = (call.B * call.H * triton.cdiv(call.S, config.block_m),)
    return call.launch(attention_forward_kernel, grid, values, config)
