"""The way down through attention for a block of targets: one kernel over queries, then one over keys.

A tile of P is made once, from query, key and the logarithm of the sum, and serves ``BLOCK_K`` targets one after the
other; K x S x T numbers are never stored.

- *Queries*: a program has a tile of queries of one head with the arriving relevance of its targets, goes over the keys
  and sums ``c_query``. It makes ``delta = sum over e of g output`` on the way, which the second kernel reads.
- *Keys*: a program has a tile of keys of one key head, goes over all heads that share it and over their queries, and
  sums ``c_key`` and ``c_value``. Nobody else adds to them, so that results are the same each time. Its tiles of scores
  stand with the keys down, because P transposed is then the left operand as it lies in registers. It can sum one of the
  two alone: heads of more than 128 features take one launch for each, because both sums fill the registers.

With one target these are the two kernels of flash attention's backward pass. With ``causal`` both leave out the tiles
beyond the diagonal, and under a mask those before the first and behind the last that are not hidden: a sliding window
costs its width. Sums of several targets are kept in a tuple, which loops over targets unroll. Offsets are 64-bit,
sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlrp.kernels.attention.call import Call, strides
from fastlrp.kernels.attention.scores import keys_of_tile, log_sums, probabilities, put, queries_of_program, rows, span
from fastlrp.kernels.configs import Config
from fastlrp.kernels.launch import Launch, power_of_two
from fastlrp.kernels.rounding import raised

_NOT_SPECIALIZED = ["K", "H", "G", "S", "T", "heads_per_key"]


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)
def attention_query_kernel(
    relevance,  # g, (B, K, H, S, E)
    query,  # (B, H, S, D)
    key,  # (B, G, T, D)
    value,  # (B, G, T, E)
    output,  # (B, H, S, E)
    log_sum,  # (B, H, S)
    mask,  # (B, H, S, T) or None
    spans,  # (B, H, S, 2): the keys of each query, or None
    delta,  # float32 (B, K, H, S)
    c_query,  # (B, K, H, S, D)
    K,
    H,
    S,
    T,
    heads_per_key,  # H / G
    scale,
    cap,
    epsilon,
    share,  # of the query
    relevance_b,
    relevance_k,
    relevance_head,
    relevance_s,
    relevance_e,
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
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    STABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,  # queries
    BLOCK_N: tl.constexpr,  # keys
    BLOCK_K: tl.constexpr,  # targets
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """``c_query = share scale sum over j of c_s key``, ``c_s = P (g value - delta)``, of one tile of queries."""
    first_k, tile, b, h = queries_of_program(K, H, S, BLOCK_K, BLOCK_M)
    g = h // heads_per_key
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_query = i < S
    key_start = b * key_b + g * key_head
    value_start = b * value_b + g * value_head

    flows = ()
    deltas = ()
    sums = ()
    o = rows(output, b * output_b + h * output_head, i, output_s, is_query, output_e, E, BLOCK_E).to(tl.float32)
    for t in tl.static_range(BLOCK_K):
        k = tl.cast(first_k + t, tl.int64)
        is_row = is_query & (k < K)
        start = b * relevance_b + k * relevance_k + h * relevance_head
        flow = rows(relevance, start, i, relevance_s, is_row, relevance_e, E, BLOCK_E)
        d = tl.sum(flow.to(tl.float32) * o, 1)
        tl.store(delta + ((b * K + k) * H + h) * S + i, d, mask=is_row)
        flows = flows + (raised(flow.to(value.dtype.element_ty), PRECISION),)
        deltas = deltas + (d,)
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_D), tl.float32),)
    q = rows(query, b * query_b + h * query_head, i, query_s, is_query, query_e, D, BLOCK_D)
    lse = log_sums(log_sum, b * log_sum_b + h * log_sum_head + i.to(tl.int64) * log_sum_s, is_query)

    spans_start = b * spans_b + h * spans_head
    begin, end = keys_of_tile(spans, spans_start, spans_i, tile, i, is_query, T, CAUSAL, BLOCK_M, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        is_key = j < T
        key_tile = rows(key, key_start, j, key_t, is_key, key_e, D, BLOCK_D)
        value_tile = tl.trans(rows(value, value_start, j, value_t, is_key, value_e, E, BLOCK_E))
        u = scale * tl.dot(q, tl.trans(key_tile), input_precision=PRECISION)
        _, left = probabilities(
            u, i[:, None], j[None, :], S, T, mask, b * mask_b + h * mask_head, mask_s, mask_t, lse[:, None], cap,
            epsilon, CAUSAL, CAPPED, STABLE,
        )  # fmt: skip
        added = ()
        for t in tl.static_range(BLOCK_K):
            c_s = left * (tl.dot(flows[t], value_tile, input_precision=PRECISION) - deltas[t][:, None])
            c_s = raised(c_s.to(key_tile.dtype), PRECISION)
            added = added + (tl.dot(c_s, key_tile, sums[t], input_precision=PRECISION),)
        sums = added

    for t in tl.static_range(BLOCK_K):
        k = tl.cast(first_k + t, tl.int64)
        put(c_query, ((b * K + k) * H + h) * S * D, i, is_query & (k < K), sums[t] * (share * scale), D, BLOCK_D)


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)
def attention_key_kernel(
    relevance,  # g, (B, K, H, S, E)
    query,  # (B, H, S, D)
    key,  # (B, G, T, D)
    value,  # (B, G, T, E), or None without c_key
    log_sum,  # (B, H, S)
    mask,  # (B, H, S, T) or None
    spans,  # (B, H, T, 2): the queries of each key, or None
    delta,  # float32 (B, K, H, S), or None without c_key
    c_key,  # (B, K, G, T, D) or None
    c_value,  # (B, K, G, T, E) or None
    K,
    H,
    G,
    S,
    T,
    heads_per_key,  # H / G
    scale,
    cap,
    epsilon,
    share_key,
    share_value,
    relevance_b,
    relevance_k,
    relevance_head,
    relevance_s,
    relevance_e,
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
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    STABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,  # queries
    BLOCK_N: tl.constexpr,  # keys
    BLOCK_K: tl.constexpr,  # targets
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """``c_value = share_value sum of P g`` and ``c_key = share_key scale sum of c_s query``, over the queries of all
    heads that share one key head, of one tile of keys.
    """
    blocks = tl.cdiv(K, BLOCK_K)
    tiles = tl.cdiv(T, BLOCK_N)
    first_k = (tl.program_id(0) % blocks) * BLOCK_K
    rest = tl.program_id(0) // blocks
    tile = rest % tiles
    b = (rest // tiles // G).to(tl.int64)
    g = (rest // tiles % G).to(tl.int64)
    j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_key = j < T
    key_tile = rows(key, b * key_b + g * key_head, j, key_t, is_key, key_e, D, BLOCK_D)
    values = ()
    keys = ()
    for _ in tl.static_range(BLOCK_K):
        if c_value is not None:
            values = values + (tl.zeros((BLOCK_N, BLOCK_E), tl.float32),)
        if c_key is not None:
            keys = keys + (tl.zeros((BLOCK_N, BLOCK_D), tl.float32),)
    if c_key is not None:
        value_tile = rows(value, b * value_b + g * value_head, j, value_t, is_key, value_e, E, BLOCK_E)

    # One loop over the tiles of queries of all heads; with CAUSAL each head begins at the diagonal.
    first_tile = 0
    if CAUSAL:
        first_tile = tile * BLOCK_N // BLOCK_M
    end = S
    if spans is not None:
        begin = S
        last = 0
        for step in range(0, heads_per_key):
            start = b * spans_b + (g * heads_per_key + step) * spans_head
            low, high = span(spans + start, j, spans_i, is_key, S)
            begin = tl.minimum(begin, low)
            last = tl.maximum(last, high)
        first_tile = tl.maximum(first_tile, begin // BLOCK_M)
        end = tl.minimum(end, last)
    of_head = tl.maximum(tl.cdiv(end, BLOCK_M) - first_tile, 0)
    for step in range(0, heads_per_key * of_head):
        h = g * heads_per_key + step // of_head
        i = (first_tile + step % of_head) * BLOCK_M + tl.arange(0, BLOCK_M)
        is_query = i < S
        q = rows(query, b * query_b + h * query_head, i, query_s, is_query, query_e, D, BLOCK_D)
        lse = log_sums(log_sum, b * log_sum_b + h * log_sum_head + i.to(tl.int64) * log_sum_s, is_query)
        u = scale * tl.dot(key_tile, tl.trans(q), input_precision=PRECISION)
        p, left = probabilities(
            u, i[None, :], j[:, None], S, T, mask, b * mask_b + h * mask_head, mask_s, mask_t, lse[None, :], cap,
            epsilon, CAUSAL, CAPPED, STABLE,
        )  # fmt: skip
        weights = raised(p.to(q.dtype), PRECISION)
        new_values = ()
        new_keys = ()
        for t in tl.static_range(BLOCK_K):
            k = tl.cast(first_k + t, tl.int64)
            is_row = is_query & (k < K)
            start = b * relevance_b + k * relevance_k + h * relevance_head
            flow = rows(relevance, start, i, relevance_s, is_row, relevance_e, E, BLOCK_E)
            flow = raised(flow.to(q.dtype), PRECISION)
            if c_value is not None:
                new_values = new_values + (tl.dot(weights, flow, values[t], input_precision=PRECISION),)
            if c_key is not None:
                d = tl.load(delta + ((b * K + k) * H + h) * S + i, mask=is_row, other=0.0)
                c_p = tl.dot(value_tile, tl.trans(flow), input_precision=PRECISION)
                c_s = raised((left * (c_p - d[None, :])).to(q.dtype), PRECISION)
                new_keys = new_keys + (tl.dot(c_s, q, keys[t], input_precision=PRECISION),)
        values = new_values
        keys = new_keys

    for t in tl.static_range(BLOCK_K):
        k = tl.cast(first_k + t, tl.int64)
        is_row = is_key & (k < K)
        at = ((b * K + k) * G + g) * T
        if c_value is not None:
            put(c_value, at * E, j, is_row, values[t] * share_value, E, BLOCK_E)
        if c_key is not None:
            put(c_key, at * D, j, is_row, keys[t] * (share_key * scale), D, BLOCK_D)


def at_once(config: Config, targets: int, call: Call) -> int:
    """How many targets share a tile of P: no more than there are, and half as many where a mask takes registers."""
    most = config.block_k if call.mask is None else max(1, config.block_k // 2)
    return min(most, power_of_two(targets))


def query_launch(
    call: Call,
    relevance: Tensor,
    output: Tensor,
    log_sum: Tensor,
    share: float,
    epsilon: float,
    delta: Tensor,
    c_query: Tensor,
    config: Config,
) -> Launch:
    """The launch that fills ``delta`` and ``c_query``, both contiguous."""
    K = relevance.shape[1]
    values = call.values() | call.keys_seen() | {"relevance": relevance, "output": output, "log_sum": log_sum, "K": K}
    values |= {"delta": delta, "c_query": c_query, "share": float(share), "epsilon": float(epsilon)}
    values |= strides("relevance", relevance, ("b", "k", "head", "s", "e"))
    values |= strides("output", output, ("b", "head", "s", "e")) | strides("log_sum", log_sum, ("b", "head", "s"))
    values |= {"STABLE": epsilon > 0, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    values["BLOCK_K"] = at_once(config, K, call)
    tiles = triton.cdiv(call.S, config.block_m) * triton.cdiv(K, values["BLOCK_K"])
    return call.launch(attention_query_kernel, (call.B * call.H * tiles,), values, config)


def key_launch(
    call: Call,
    relevance: Tensor,
    log_sum: Tensor,
    shares: tuple[float, float],
    epsilon: float,
    delta: Tensor | None,
    c_key: Tensor | None,
    c_value: Tensor | None,
    config: Config,
) -> Launch:
    """The launch that fills ``c_key``, which needs ``delta``, and ``c_value``, or one of them; both contiguous."""
    K = relevance.shape[1]
    values = call.values() | call.queries_seen()
    values |= {"relevance": relevance, "log_sum": log_sum, "delta": delta, "K": K}
    values |= {"c_key": c_key, "c_value": c_value, "epsilon": float(epsilon)}
    values |= {"share_key": float(shares[0]), "share_value": float(shares[1])}
    values |= strides("relevance", relevance, ("b", "k", "head", "s", "e"))
    values |= strides("log_sum", log_sum, ("b", "head", "s"))
    values["STABLE"] = epsilon > 0 and c_key is not None
    values |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": at_once(config, K, call)}
    tiles = triton.cdiv(call.T, config.block_n) * triton.cdiv(K, values["BLOCK_K"])
    return call.launch(attention_key_kernel, (call.B * call.G * tiles,), values, config)
