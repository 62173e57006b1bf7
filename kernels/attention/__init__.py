"""Attention for a block of targets: forward, the way down to query, key and value, and that to the value alone.

``u = scale query key^T``; the score ``s`` is ``u``, or ``cap tanh(u / cap)`` with a cap, plus the mask;
``P = exp(s - log_sum)``. With ``g`` the relevance per unit of the output and ``delta = sum over e of g output``,

    c_value = share_value P^T g
    c_s = P (g value^T - delta), times tanh(u / cap) / (u / cap) with a cap, times u / st(u) with an epsilon
    c_query = share_query scale c_s key        c_key = share_key scale c_s^T query

see :mod:`fastlrp.reference.attention`. Two ways, of which the configuration chooses:

- :mod:`fastlrp.kernels.attention.forward`, :mod:`fastlrp.kernels.attention.relevance` and, for the way up,
  :mod:`fastlrp.kernels.attention.up`: tiles of P are made where they are needed, once for several targets or groups.
  ``block_m`` is a tile's queries, ``block_n`` its keys, ``block_k`` the targets that share it;
- the library's products, as the ``torch`` backend composes them: where products have no tensor cores. What the row of
  ``attention_query`` says holds for the whole way down.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastlrp.aten import attention as composed
from fastlrp.kernels.attention.call import TOGETHER, Call, call_of, shape_class
from fastlrp.kernels.attention.compilations import compiled_samples
from fastlrp.kernels.attention.forward import forward_launch
from fastlrp.kernels.attention.relevance import key_launch, query_launch
from fastlrp.kernels.attention.up import up_launch
from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.configs import configuration
from fastlrp.kernels.launch import matmul_precision
from fastlrp.kernels.rounding import raised_copy


def _call_of(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    E: int,
) -> Call:
    """The call, its operands raised for its precision: all targets' products read them."""
    precision = matmul_precision() if query.dtype == torch.float32 else "ieee"
    if precision == "tf32":
        query, key, value = raised_copy(query), raised_copy(key), None if value is None else raised_copy(value)
    return call_of(query, key, value, mask, causal, scale, cap, E, precision)


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Output ``(B, H, S, E)`` and log-sum-exp ``(B, H, S)``; see :mod:`fastlrp.reference.attention`."""
    B, H, S, D = query.shape
    E = value.shape[3]
    output, log_sum = query.new_empty(B, H, S, E), query.new_empty(B, H, S, dtype=torch.float32)
    if log_sum.numel() == 0:
        return output, log_sum
    config = configuration("attention_forward", shape_class(D, E), query.device, query.dtype)
    if config.route == "library":
        return composed.attention_forward(query, key, value, mask, causal, scale, cap)
    call = _call_of(query, key, value, mask, causal, scale, cap, E)
    with torch.cuda.device_of(query):
        forward_launch(call, config, output, log_sum).run()
    return output, log_sum


def attention_relevance(
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    share_query: float,
    share_key: float,
    share_value: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``c_query`` ``(B, K, H, S, D)``, ``c_key`` ``(B, K, G, T, D)``, ``c_value`` ``(B, K, G, T, E)``.

    See :mod:`fastlrp.reference.attention`.
    """
    B, K, H, S, E = relevance.shape
    _, G, T, D = key.shape
    width = shape_class(D, E)
    rows = configuration("attention_query", width, query.device, query.dtype)
    if rows.route == "library":
        given = (relevance, query, key, value, output, log_sum, mask, causal, scale, cap)
        return composed.attention_relevance(*given, share_query, share_key, share_value, epsilon)
    call = _call_of(query, key, value, mask, causal, scale, cap, E)
    c_query = relevance.new_empty(B, K, H, S, D)
    c_key, c_value = relevance.new_empty(B, K, G, T, D), relevance.new_empty(B, K, G, T, E)
    delta = relevance.new_empty(B, K, H, S, dtype=torch.float32)
    with torch.cuda.device_of(relevance):
        if delta.numel():
            query_launch(call, relevance, output, log_sum, share_query, epsilon, delta, c_query, rows).run()
        if c_value.numel():
            columns = configuration("attention_key", width, query.device, query.dtype)
            both = c_value if width in TOGETHER else None
            shares = share_key, share_value
            key_launch(call, relevance, log_sum, shares, epsilon, delta, c_key, both, columns).run()
            if both is None:
                columns = configuration("attention_value", width, query.device, query.dtype)
                key_launch(call, relevance, log_sum, shares, 0.0, None, None, c_value, columns).run()
    return c_query, c_key, c_value


def attention_value_relevance(
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    log_sum: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
) -> Tensor:
    """``c_value = P^T g``, ``(B, K, G, T, E)``; see :mod:`fastlrp.reference.attention`."""
    B, K, _, _, E = relevance.shape
    _, G, T, D = key.shape
    c_value = relevance.new_empty(B, K, G, T, E)
    if c_value.numel() == 0:
        return c_value
    config = configuration("attention_value", shape_class(D, E), query.device, query.dtype)
    if config.route == "library":
        return composed.attention_value_relevance(relevance, query, key, log_sum, mask, causal, scale, cap)
    call = _call_of(query, key, None, mask, causal, scale, cap, E)
    with torch.cuda.device_of(relevance):
        key_launch(call, relevance, log_sum, (0.0, 1.0), 0.0, None, None, c_value, config).run()
    return c_value


def attention_up(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    up_query: Tensor | None,
    up_key: Tensor | None,
    up_value: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    share_query: float,
    share_key: float,
    share_value: float,
    epsilon: float,
) -> Tensor:
    """``(B, K, H, S, E)``: what K groups bring to the output; see :mod:`fastlrp.reference.attention`."""
    arriving, shares = (up_query, up_key, up_value), (share_query, share_key, share_value)
    K = next(t for t in arriving if t is not None).shape[1]
    B, H, S, D = query.shape
    E = value.shape[3]
    result = query.new_empty(B, K, H, S, E)
    if result.numel() == 0:
        return result
    config = configuration("attention_up", shape_class(D, E), query.device, query.dtype)
    if config.route == "library":
        given = query, key, value, output, log_sum, *arriving, mask, causal, scale, cap, *shares, epsilon
        return composed.attention_up(*given)
    call = _call_of(query, key, value, mask, causal, scale, cap, E)
    with torch.cuda.device_of(query):
        up_launch(call, output, log_sum, arriving, shares, epsilon, result, config).run()
    return result


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel that the launchers may run, with every configuration that a table holds."""
    yield from compiled_samples(dtype)
