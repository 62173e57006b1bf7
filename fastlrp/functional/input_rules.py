"""Relevance of a network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_dim, check_float, check_like, check_map, check_output_size
from fastlrp.functional._checks import sizes as _sizes

_MOST_TERMS = 3


def input_relevance(
    relevance: Tensor,
    weights: Sequence[Tensor],
    coefficients: Sequence[Tensor],
    multipliers: Sequence[Tensor | None] | None = None,
    input_size: Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    reduce: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """``R = sum_j m_j W_j^T (u_j F)``, and with ``reduce`` its sum over channels; ``W^T`` transposes the convolution.

    The box rule is ``(W+, u, x - l)`` and ``(W-, u, x - h)``, w2 is ``(W^2, u, None)``, epsilon ``(W, u, x)``.
    ``S`` and ``S'`` are one to three spatial sizes of input and output.

    Args:
        relevance: ``F``, what flows down, ``(B, K, Co, *S')``.
        weights: ``W_j``, each ``(Co, Ci / groups, *k)``; one to three.
        coefficients: ``u_j``, each ``(B, Co, *S')``, one for each weight. Terms that share a coefficient are cheaper
            where it is the same tensor.
        multipliers: ``m_j``, each ``(B, Ci, *S)`` or None for 1, one for each weight; None: all of them 1.
        input_size: ``S``; None takes it from the first multiplier that is a tensor.
        stride, padding, dilation: numbers, or one per spatial axis. Zero padding: pad first for the other modes.
        groups: number of groups.
        reduce: sum over the channels of the input.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, Ci, *S)``, with ``reduce`` ``(B, K, 1, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit, lists of different lengths, none or too many terms.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        layer, weight = model[0], model[0].weight.detach()
        u, _ = functional.elementwise_coefficients(layer(x).detach())
        arrived = torch.rand(2, 7, 8, 16, 16)
        sent = functional.input_relevance(arrived, [weight], [u], [x], padding=1, reduce=True)  # (2, 7, 1, 16, 16)

    Source: Montavon et al. 2017, eq. 12 and 13; Bach et al. 2015, eq. 58.
    """
    op = "input_relevance"
    n = check_map(op, relevance)
    _check_list(op, "weights", weights)
    factors = [None] * len(weights) if multipliers is None else multipliers
    _check_list(op, "coefficients", coefficients, len(weights))
    _check_list(op, "multipliers", factors, len(weights))
    first = weights[0]
    check_float(op, "weights[0]", first)
    check_dim(op, "weights[0]", first, f"(Co, Ci / groups, *k) with {n} kernel sizes", n + 2, n + 2)
    if input_size is None:
        given = next(((j, m) for j, m in enumerate(factors) if m is not None), None)
        if given is None:
            raise ValueError(f"{op}: input_size must be given where all multipliers are None; pass the spatial sizes S")
        check_float(op, f"multipliers[{given[0]}]", given[1])
        check_dim(op, f"multipliers[{given[0]}]", given[1], f"(B, Ci, *S) with {n} spatial sizes", n + 2, n + 2)
        input_size = list(given[1].shape[2:])
    S = _sizes(op, "input_size", input_size, n, 0)
    geometry = [
        _sizes(op, "stride", stride, n, 1),
        _sizes(op, "padding", padding, n, 0),
        _sizes(op, "dilation", dilation, n, 1),
    ]
    check_output_size(op, relevance, _output_size(S, list(first.shape[2:]), *geometry), S)
    dtype = relevance.dtype
    B, _, Co, *output = relevance.shape
    if groups < 1 or Co % groups:
        raise ValueError(f"{op}: groups must divide the channels Co = {Co} and Ci, got {groups}")
    Ci = first.shape[1] * groups
    for j, (weight, u, m) in enumerate(zip(weights, coefficients, factors, strict=True)):
        check_float(op, f"weights[{j}]", weight)
        check_float(op, f"coefficients[{j}]", u)
        check_like(op, f"weights[{j}]", weight, "(Co, Ci / groups, *k)", (Co, *first.shape[1:]), relevance, dtype)
        check_like(op, f"coefficients[{j}]", u, "(B, Co, *S')", (B, Co, *output), relevance, dtype)
        check_like(op, f"multipliers[{j}]", m, "(B, Ci, *S)", (B, Ci, *S), relevance, dtype)
    result: Tensor = torch.ops.fastlrp.input_relevance(
        relevance, list(weights), list(coefficients), list(factors), S, *geometry, groups, reduce, backend=backend
    )
    return result


def input_flat_relevance(
    relevance: Tensor,
    u: Tensor,
    channels: int,
    kernel_size: int | Sequence[int],
    input_size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    reduce: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """``R = 1^T (u F)``: a transposed convolution whose weights are one, so that all input channels get the same.

    It sums over output channels and filters the sum with a box. With ``reduce``: its sum over input channels. ``S`` and
    ``S'`` are one to three spatial sizes of input and output.

    Args:
        relevance: ``F``, what flows down, ``(B, K, Co, *S')``.
        u: ``(B, Co, *S')``: one by the number of inputs that the output sees.
        channels: ``Ci``.
        kernel_size, stride, padding, dilation: numbers, or one per spatial axis.
        input_size: ``S``.
        reduce: sum over the channels of the input.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, Ci, *S)``, with ``reduce`` ``(B, K, 1, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        u = torch.full((2, 8, 16, 16), 1 / 27)  # 3 channels of 3 by 3
        sent = functional.input_flat_relevance(torch.rand(2, 7, 8, 16, 16), u, 3, 3, (16, 16), padding=1)

    Source: Lapuschkin et al. 2019.
    """
    op = "input_flat_relevance"
    n = check_map(op, relevance)
    if not isinstance(channels, int) or isinstance(channels, bool):
        raise TypeError(f"{op}: channels must be an integer, got {channels!r}")
    if channels < 0:
        raise ValueError(f"{op}: channels must not be negative, got {channels}")
    S = _sizes(op, "input_size", input_size, n, 0)
    kernel = _sizes(op, "kernel_size", kernel_size, n, 1)
    geometry = [
        _sizes(op, "stride", stride, n, 1),
        _sizes(op, "padding", padding, n, 0),
        _sizes(op, "dilation", dilation, n, 1),
    ]
    check_output_size(op, relevance, _output_size(S, kernel, *geometry), S)
    B, _, Co, *output = relevance.shape
    check_float(op, "u", u)
    check_like(op, "u", u, "(B, Co, *S')", (B, Co, *output), relevance, relevance.dtype)
    result: Tensor = torch.ops.fastlrp.input_flat_relevance(
        relevance, u, channels, kernel, S, *geometry, reduce, backend=backend
    )
    return result


def _check_list(op: str, name: str, value: Sequence[Tensor | None], expected: int | None = None) -> None:
    """A list of one to three, or of as many as ``expected``."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{op}: {name} must be a list of tensors, got {type(value).__name__}")
    if expected is None and not 1 <= len(value) <= _MOST_TERMS:
        raise ValueError(f"{op}: {name} must have one to {_MOST_TERMS} entries, got {len(value)}; add up the rest")
    if expected is not None and len(value) != expected:
        raise ValueError(f"{op}: {name} must have one entry for each of weights ({expected}), got {len(value)}")


def _output_size(
    input_size: list[int], kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    return [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, k, t, p, d in zip(input_size, kernel, stride, padding, dilation, strict=True)
    ]
