"""The operations as ``torch.ops.fastlrp.*``: schema, fake implementation and dispatch to a backend, once.

Results are contiguous and never share memory with an argument, so that the fakes are exact. They are not
differentiable: what they return never requires a gradient. ``elementwise_coefficients`` returns the coefficients that
its rule has (``[u]``, ``[v]`` or ``[u, v]``), because an operator cannot return None. Code in a hurry calls
:func:`fastlrp.backends.dispatch.select` once and then the backend itself, without the dispatcher of PyTorch and without
the copy that contiguity may need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends import dispatch

_LIBRARY = torch.library.Library("fastlrp", "DEF")  # the operations live as long as it does
_POOL_KERNEL = "int[] kernel_size, int[] stride, int[] padding"
_ATTENTION = "Tensor? mask, bool causal, float scale, float cap"

SCHEMAS = {
    "linear_relevance": "(Tensor relevance, Tensor weight, Tensor? u, Tensor? v, Tensor? input,"
    " Tensor? weight_positive, bool signed, bool multiply, *, str backend='auto') -> Tensor",
    "conv_relevance": "(Tensor relevance, Tensor weight, Tensor? u, Tensor? v, Tensor? input,"
    " Tensor? weight_positive, SymInt[] input_size, int[] stride, int[] padding, int[] dilation, bool transposed,"
    " int[] output_padding, int groups, bool signed, bool multiply, *, str backend='auto') -> Tensor",
    "linear_one_hot_relevance": "(Tensor value, Tensor index, Tensor weight, Tensor? u, Tensor? v, Tensor? input,"
    " bool signed, bool multiply, *, str backend='auto') -> Tensor",
    "conv_unpooled_relevance": "(Tensor relevance, Tensor index, Tensor weight, Tensor? u, Tensor? v, Tensor? input,"
    " Tensor? weight_positive, SymInt[] unpooled_size, int[] pool_kernel, int[] pool_stride, int[] pool_padding,"
    " int[] pool_dilation, SymInt[] input_size, int[] stride, int[] padding, int[] dilation, int groups, bool signed,"
    " bool multiply, *, str backend='auto') -> Tensor",
    "input_relevance": "(Tensor relevance, Tensor[] weights, Tensor[] coefficients, Tensor?[] multipliers,"
    " SymInt[] input_size, int[] stride, int[] padding, int[] dilation, int groups, bool reduce,"
    " *, str backend='auto') -> Tensor",
    "input_flat_relevance": "(Tensor relevance, Tensor u, int channels, int[] kernel_size, SymInt[] input_size,"
    " int[] stride, int[] padding, int[] dilation, bool reduce, *, str backend='auto') -> Tensor",
    "pool_max_relevance": "(Tensor relevance, Tensor index, Tensor? scale, SymInt[] input_size,"
    " *, str backend='auto') -> Tensor",
    "pool_ties_relevance": f"(Tensor relevance, Tensor input, Tensor output, Tensor? scale, {_POOL_KERNEL},"
    " int[] dilation, *, str backend='auto') -> Tensor",
    "pool_avg_relevance": f"(Tensor relevance, Tensor? scale, SymInt[] input_size, {_POOL_KERNEL}, bool ceil_mode,"
    " bool count_include_pad, int? divisor_override, *, str backend='auto') -> Tensor",
    "pool_adaptive_avg_relevance": "(Tensor relevance, Tensor? scale, SymInt[] input_size,"
    " *, str backend='auto') -> Tensor",
    "elementwise_coefficients": "(Tensor z, Tensor? positive, Tensor? negative, Tensor? factor, str rule,"
    " float alpha, float epsilon, *, str backend='auto') -> Tensor[]",
    "elementwise_pooled_coefficients": "(Tensor z, Tensor? positive, Tensor? negative, str rule, float alpha,"
    f" float epsilon, {_POOL_KERNEL}, int[] dilation, bool ceil_mode, *, str backend='auto') -> Tensor[]",
    "attention_forward": f"(Tensor query, Tensor key, Tensor value, {_ATTENTION},"
    " *, str backend='auto') -> (Tensor output, Tensor log_sum)",
    "attention_relevance": "(Tensor relevance, Tensor query, Tensor key, Tensor value, Tensor output, Tensor log_sum,"
    f" {_ATTENTION}, float share_query, float share_key, float share_value, float epsilon,"
    " *, str backend='auto') -> (Tensor c_query, Tensor c_key, Tensor c_value)",
    "attention_value_relevance": "(Tensor relevance, Tensor query, Tensor key, Tensor log_sum,"
    f" {_ATTENTION}, *, str backend='auto') -> Tensor",
    "attention_up": "(Tensor query, Tensor key, Tensor value, Tensor output, Tensor log_sum, Tensor? up_query,"
    f" Tensor? up_key, Tensor? up_value, {_ATTENTION}, float share_query, float share_key, float share_value,"
    " float epsilon, *, str backend='auto') -> Tensor",
    "norm_relevance": "(Tensor relevance, Tensor? gain, Tensor inverse_sigma, bool centre,"
    " *, str backend='auto') -> Tensor",
    "recurrence_relevance": "(Tensor relevance, Tensor? final, Tensor weight, Tensor entry, Tensor? scale,"
    " Tensor? carry, Tensor? gates, Tensor? output_entry, Tensor? output_scale, Tensor? reset, Tensor? projection,"
    " Tensor? input_weight, Tensor? spread, *, str backend='auto')"
    " -> (Tensor flows, Tensor first, Tensor first_memory, Tensor spread_sums)",
}


def _linear_shape(relevance: Tensor, weight: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*relevance.shape[:-1], weight.shape[1])


def _conv_shape(relevance: Tensor, weight: Tensor, *rest: Any) -> tuple[int, ...]:
    input_size, transposed, groups = rest[4], rest[8], rest[10]
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    return (*relevance.shape[:2], channels, *input_size)


def _one_hot_shape(value: Tensor, index: Tensor, weight: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*value.shape, weight.shape[1])


def _unpooled_shape(relevance: Tensor, index: Tensor, weight: Tensor, *rest: Any) -> tuple[int, ...]:
    input_size, groups = rest[9], rest[13]
    return (*relevance.shape[:2], weight.shape[1] * groups, *input_size)


def _input_shape(relevance: Tensor, weights: list[Tensor], *rest: Any) -> tuple[int, ...]:
    input_size, groups, reduce = rest[2], rest[6], rest[7]
    return (*relevance.shape[:2], 1 if reduce else weights[0].shape[1] * groups, *input_size)


def _input_flat_shape(relevance: Tensor, u: Tensor, channels: int, *rest: Any) -> tuple[int, ...]:
    return (*relevance.shape[:2], 1 if rest[-1] else channels, *rest[1])


def _pool_max_shape(relevance: Tensor, index: Tensor, scale: Tensor | None, input_size: list[int]) -> tuple[int, ...]:
    return (*relevance.shape[:3], *input_size)


def _pool_ties_shape(relevance: Tensor, input: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*relevance.shape[:3], *input.shape[2:])


def _pool_avg_shape(relevance: Tensor, scale: Tensor | None, input_size: list[int], *rest: Any) -> tuple[int, ...]:
    return (*relevance.shape[:3], *input_size)


def _attention_value_shape(relevance: Tensor, query: Tensor, key: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*relevance.shape[:2], *key.shape[1:3], relevance.shape[4])


def _norm_shape(relevance: Tensor, *rest: Any) -> tuple[int, ...]:
    return tuple(relevance.shape)


_SHAPES: dict[str, Callable[..., tuple[int, ...]]] = {
    "linear_relevance": _linear_shape,
    "linear_one_hot_relevance": _one_hot_shape,
    "conv_relevance": _conv_shape,
    "conv_unpooled_relevance": _unpooled_shape,
    "input_relevance": _input_shape,
    "input_flat_relevance": _input_flat_shape,
    "pool_max_relevance": _pool_max_shape,
    "pool_ties_relevance": _pool_ties_shape,
    "pool_avg_relevance": _pool_avg_shape,
    "pool_adaptive_avg_relevance": _pool_avg_shape,
    "attention_value_relevance": _attention_value_shape,
    "norm_relevance": _norm_shape,
}


def _own(result: Tensor, *arguments: Any) -> Tensor:
    """Contiguous, and no view of an argument."""
    result = result.contiguous()
    mine = result.untyped_storage().data_ptr()
    shared = any(isinstance(a, Tensor) and a.untyped_storage().data_ptr() == mine for a in arguments)
    return result.clone() if shared else result


def _define_relevance(op: str) -> None:
    @torch.no_grad()
    def relevance_by_backend(relevance: Tensor, *arguments: Any, backend: str = "auto") -> Tensor:
        call = dispatch.select(op, backend, relevance.device, relevance.dtype).call
        return _own(call(relevance, *arguments), relevance, *arguments)

    def relevance_without_data(relevance: Tensor, *arguments: Any, backend: str = "auto") -> Tensor:
        return relevance.new_empty(_SHAPES[op](relevance, *arguments))

    _define(op, relevance_by_backend, relevance_without_data)


@torch.no_grad()
def _coefficients(z: Tensor, *arguments: Any, backend: str = "auto") -> list[Tensor]:
    call = dispatch.select("elementwise_coefficients", backend, z.device, z.dtype).call
    return [_own(c, z, *arguments) for c in call(z, *arguments) if c is not None]


def _coefficients_fake(z: Tensor, *arguments: Any, backend: str = "auto") -> list[Tensor]:
    rule = arguments[3]
    return [z.new_empty(z.shape) for _ in range(1 if rule in ("epsilon", "zplus") else 2)]


@torch.no_grad()
def _pooled_coefficients(z: Tensor, *arguments: Any, backend: str = "auto") -> list[Tensor]:
    call = dispatch.select("elementwise_pooled_coefficients", backend, z.device, z.dtype).call
    return [_own(c, z, *arguments) for c in call(z, *arguments) if c is not None]


def _pooled_coefficients_fake(z: Tensor, *arguments: Any, backend: str = "auto") -> list[Tensor]:
    rule, (kernel, stride, padding, dilation, ceil_mode) = arguments[2], arguments[5:]
    size = [
        _windows_along(n, *axis, ceil_mode)
        for n, axis in zip(z.shape[2:], zip(kernel, stride, padding, dilation, strict=True), strict=True)
    ]
    pooled = z.new_empty(*z.shape[:2], *size)
    coefficients = [z.new_empty(z.shape) for _ in range(1 if rule in ("epsilon", "zplus") else 2)]
    return [pooled, pooled.new_empty(pooled.shape, dtype=torch.int64), *coefficients]


def _windows_along(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows of a pool along an axis, as PyTorch counts: with ``ceil_mode`` the last may hang over the end."""
    reach = n + 2 * padding - dilation * (kernel - 1) - 1
    windows = (reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    return windows - 1 if ceil_mode and (windows - 1) * stride >= n + padding else windows


@torch.no_grad()
def _attention_forward(query: Tensor, *arguments: Any, backend: str = "auto") -> tuple[Tensor, ...]:
    call = dispatch.select("attention_forward", backend, query.device, query.dtype).call
    return tuple(_own(result, query, *arguments) for result in call(query, *arguments))


def _attention_forward_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any) -> tuple[Tensor, ...]:
    shape = query.shape[:3]
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty((*shape, value.shape[3])), query.new_empty(shape, dtype=dtype)


@torch.no_grad()
def _attention_relevance(relevance: Tensor, *arguments: Any, backend: str = "auto") -> tuple[Tensor, ...]:
    call = dispatch.select("attention_relevance", backend, relevance.device, relevance.dtype).call
    return tuple(_own(c, relevance, *arguments) for c in call(relevance, *arguments))


def _attention_relevance_fake(
    relevance: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any
) -> tuple[Tensor, ...]:
    B, K = relevance.shape[:2]
    return tuple(relevance.new_empty((B, K, *t.shape[1:])) for t in (query, key, value))


@torch.no_grad()
def _attention_up(query: Tensor, *arguments: Any, backend: str = "auto") -> Tensor:
    call = dispatch.select("attention_up", backend, query.device, query.dtype).call
    return _own(call(query, *arguments), query, *arguments)


def _attention_up_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any) -> Tensor:
    groups = next(t.shape[1] for t in rest[2:5] if t is not None)
    return query.new_empty((query.shape[0], groups, *query.shape[1:3], value.shape[3]))


@torch.no_grad()
def _recurrence_relevance(relevance: Tensor, *arguments: Any, backend: str = "auto") -> tuple[Tensor, ...]:
    call = dispatch.select("recurrence_relevance", backend, relevance.device, relevance.dtype).call
    return tuple(_own(c, relevance, *arguments) for c in call(relevance, *arguments))


def _recurrence_relevance_fake(
    relevance: Tensor, final: Tensor | None, weight: Tensor, *rest: Any, **_: Any
) -> tuple[Tensor, ...]:
    B, K, T, P = relevance.shape
    projection, input_weight, spread = rest[-3:]
    H = P if projection is None else projection.shape[1]
    width = weight.shape[0] if input_weight is None else input_weight.shape[1]
    sums = (0,) if spread is None else (B, K, T)
    return tuple(relevance.new_empty(shape) for shape in ((B, K, T, width), (B, K, P), (B, K, H), sums))


def _define(op: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _LIBRARY.define(op + SCHEMAS[op])
    _LIBRARY.impl(op, run, "CompositeExplicitAutograd")
    _LIBRARY.impl(op, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"fastlrp::{op}", fake, lib=_LIBRARY)


for _op in _SHAPES:
    _define_relevance(_op)
_define("attention_forward", _attention_forward, _attention_forward_fake)
_define("attention_relevance", _attention_relevance, _attention_relevance_fake)
_define("attention_up", _attention_up, _attention_up_fake)
_define("recurrence_relevance", _recurrence_relevance, _recurrence_relevance_fake)
_define("elementwise_coefficients", _coefficients, _coefficients_fake)
_define("elementwise_pooled_coefficients", _pooled_coefficients, _pooled_coefficients_fake)
