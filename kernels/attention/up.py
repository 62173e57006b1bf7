"""The way up through attention for a block of groups: one kernel over queries, the transpose of the way down.

A program has a tile of queries of one head with what its groups bring to them, goes over the keys and values and what
the groups bring to those, and sums what arrives at the output:

    t_s = P scale (share_query t_q key^T + share_key query t_k^T)
    t_g = share_value P t_v + t_s value - (sum over keys of t_s) output

with the shares of a cap and a stabilizer as on the way down. A tile of P is made once and serves ``BLOCK_K`` groups;
nobody else adds to a result, so that it is the same each time. What tiles leave out is as
in the kernel over queries of the way down (:mod:`fastlrp.kernels.attention.relevance`); four operands stream past
instead of two, so that tiles are smaller.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.attention.call import Call, strides
from fastlrp.kernels.attention.relevance import at_once
from fastlrp.kernels.attention.scores import keys_of_tile, log_sums, probabilities, put, queries_of_program, rows
from fastlrp.kernels.configs import Config
from fastlrp.kernels.launch import Launch
from fastlrp.kernels.rounding import raised

_NOT_SPECIALIZED = ["K", "H", "S", "T", "heads_per_key"]


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)
def attention_up_kernel(
    query,  # (B, H, S, D)
    key,  # (B, G, T, D)
    value,  # (B, G, T, E)
    output,  # (B, H, S, E)
    log_sum,  # (B, H, S)
    mask,  # (B, H, S, T) or None
    spans,  # (B, H, S, 2): the keys of each query, or None
    up_query,  # (B, K, H, S, D) or None
    up_key,  # (B, K, G, T, D) or None
    up_value,  # (B, K, G, T, E) or None
    result,  # (B, K, H, S, E)
    K,
    H,
    S,
    T,
    heads_per_key,  # H / G
    scale,
    cap,
    epsilon,
    share_query,
    share_key,
    share_value,
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
    output_b,
    output_head,
    output_s,
    output_e,
    log_sum_b,
    log_sum_head,
    log_sum_s,
    mask_b,
    mask_head,
    mask_s,
    mask_t,
    spans_b,
    spans_head,
    spans_i,
    up_query_b,
    up_query_k,
    up_query_head,
    up_query_s,
    up_query_e,
    up_key_b,
    up_key_k,
    up_key_head,
    up_key_t,
    up_key_e,
    up_value_b,
    up_value_k,
    up_value_head,
    up_value_t,
    up_value_e,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    STABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,  # queries
    BLOCK_N: tl.constexpr,  # keys
    BLOCK_K: tl.constexpr,  # groups
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """``t_g`` of one tile of queries."""
    first_k, tile, b, h = queries_of_program(K, H, S, BLOCK_K, BLOCK_M)
    g = h // heads_per_key
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_query = i < S
    arriving = ()
    sums = ()
    totals = ()
    for t in tl.static_range(BLOCK_K):
        if up_query is not None:
            k = tl.cast(first_k + t, tl.int64)
            start = b * up_query_b + k * up_query_k + h * up_query_head
            of_queries = rows(up_query, start, i, up_query_s, is_query & (k < K), up_query_e, D, BLOCK_D)
            arriving = arriving + (raised(of_queries.to(key.dtype.element_ty), PRECISION),)
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_E), tl.float32),)
        totals = totals + (tl.zeros((BLOCK_M,), tl.float32),)
    q = rows(query, b * query_b + h * query_head, i, query_s, is_query, query_e, D, BLOCK_D)
    lse = log_sums(log_sum, b * log_sum_b + h * log_sum_head + i.to(tl.int64) * log_sum_s, is_query)

    spans_start = b * spans_b + h * spans_head
    begin, end = keys_of_tile(spans, spans_start, spans_i, tile, i, is_query, T, CAUSAL, BLOCK_M, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        is_key = j < T
        key_tile = rows(key, b * key_b + g * key_head, j, key_t, is_key, key_e, D, BLOCK_D)
        u = scale * tl.dot(q, tl.trans(key_tile), input_precision=PRECISION)
        p, left = probabilities(
            u, i[:, None], j[None, :], S, T, mask, b * mask_b + h * mask_head, mask_s, mask_t, lse[:, None], cap,
            epsilon, CAUSAL, CAPPED, STABLE,
        )  # fmt: skip
        if up_query is not None or up_key is not None:
            value_tile = rows(value, b * value_b + g * value_head, j, value_t, is_key, value_e, E, BLOCK_E)
        new_sums = ()
        new_totals = ()
        for t in tl.static_range(BLOCK_K):
            k = tl.cast(first_k + t, tl.int64)
            total = sums[t]
            row = totals[t]
            if up_query is not None or up_key is not None:
                scores = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                if up_query is not None:
                    scores += share_query * tl.dot(arriving[t], tl.trans(key_tile), input_precision=PRECISION)
                if up_key is not None:
                    start = b * up_key_b + k * up_key_k + g * up_key_head
                    of_keys = rows(up_key, start, j, up_key_t, is_key & (k < K), up_key_e, D, BLOCK_D)
                    of_keys = raised(of_keys.to(q.dtype), PRECISION)
                    scores += share_key * tl.dot(q, tl.trans(of_keys), input_precision=PRECISION)
                scores = scale * left * scores
                row += tl.sum(scores, 1)
                factor = raised(scores.to(value_tile.dtype), PRECISION)
                total = tl.dot(factor, value_tile, total, input_precision=PRECISION)
            if up_value is not None:
                start = b * up_value_b + k * up_value_k + g * up_value_head
                of_values = rows(up_value, start, j, up_value_t, is_key & (k < K), up_value_e, E, BLOCK_E)
                of_values = raised(of_values.to(q.dtype), PRECISION)
                weights = raised((share_value * p).to(q.dtype), PRECISION)
                total = tl.dot(weights, of_values, total, input_precision=PRECISION)
            new_sums = new_sums + (total,)
            new_totals = new_totals + (row,)
        sums = new_sums
        totals = new_totals

    if up_query is not None or up_key is not None:
        o = rows(output, b * output_b + h * output_head, i, output_s, is_query, output_e, E, BLOCK_E).to(tl.float32)
    for t in tl.static_range(BLOCK_K):
        k = tl.cast(first_k + t, tl.int64)
        found = sums[t]
        if up_query is not None or up_key is not None:
            found -= totals[t][:, None] * o
        put(result, ((b * K + k) * H + h) * S * E, i, is_query & (k < K), found, E, BLOCK_E)


def up_launch(
    call: Call,
    output: Tensor,
    log_sum: Tensor,
    arriving: tuple[Tensor | None, Tensor | None, Tensor | None],
    shares: tuple[float, float, float],
    epsilon: float,
    result: Tensor,
    config: Config,
) -> Launch:
    """The launch that fills ``result``, which is contiguous, from what arrives at query, key and value."""
    K = result.shape[1]
    values = call.values() | call.keys_seen() | {"output": output, "log_sum": log_sum, "K": K, "result": result}
    values |= strides("output", output, ("b", "head", "s", "e")) | strides("log_sum", log_sum, ("b", "head", "s"))
    for name, t, share in zip(("query", "key", "value"), arriving, shares, strict=True):
        position = "s" if name == "query" else "t"
        values |= {f"up_{name}": t, f"share_{name}": float(share)}
        values |= strides(f"up_{name}", t, ("b", "k", "head", position, "e"))
    values |= {"epsilon": float(epsilon), "STABLE": epsilon > 0, "BLOCK_K": at_once(config, K, call)}
    values |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    tiles = triton.cdiv(call.S, config.block_m) * triton.cdiv(K, values["BLOCK_K"])
    return call.launch(attention_up_kernel, (call.B * call.H * tiles,), values, config)
