"""Relevance through a convolution, and through a max-pool and the convolution below it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_dim, check_float, check_like, check_map, check_output_size, check_terms
from fastlrp.functional._checks import sizes as _sizes
from fastlrp.functional.pool import pooled_size

Sizes = int | Sequence[int]


def conv_relevance(
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None = None,
    v: Tensor | None = None,
    input: Tensor | None = None,
    weight_positive: Tensor | None = None,
    input_size: Sequence[int] | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    transposed: bool = False,
    output_padding: Sizes = 0,
    groups: int = 1,
    signed: bool = False,
    multiply: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """``c = W^T (u F) + W+^T (v F)``, and ``x c`` when ``multiply``; ``W^T`` is the transpose of the convolution.

    With ``signed`` the second term knows the sign of the input: ``[x > 0] W+^T (v F) + [x < 0] W-^T (v F)``. A term
    whose coefficient is None is left out. ``S`` and ``S'`` are one to three spatial sizes of input and output.

    Args:
        relevance: ``F``, what flows down, ``(B, K, Co, *S')``.
        weight: ``W``, ``(Co, Ci / groups, *k)``; transposed: ``(Ci, Co / groups, *k)``.
        u, v: coefficients from :func:`elementwise_coefficients`, ``(B, Co, *S')``; at least one is given.
        input: ``x``, ``(B, Ci, *S)``; needed by ``multiply``, and by ``signed`` where ``v`` is given.
        weight_positive: ``max(W, 0)``, shape of ``weight``, if it is at hand.
        input_size: ``S``; None takes it from ``input``.
        stride, padding, dilation, output_padding: numbers, or one per spatial axis; ``output_padding`` is read by
            transposed convolutions only. Zero padding: pad first for the other modes.
        transposed: whether the layer is a transposed convolution.
        groups: number of groups.
        signed: whether the input may be negative.
        multiply: return ``x c`` (relevance) instead of ``c`` (relevance per unit of activation).
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, Ci, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit, u and v both None, an input that is needed and None.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        layer = model[3]  # 8 to 16 channels, padding 1
        inputs = torch.rand(2, 8, 8, 8)
        u, _ = functional.elementwise_coefficients(layer(inputs).detach())  # the epsilon rule
        arrived = torch.rand(2, 7, 16, 8, 8)
        sent = functional.conv_relevance(arrived, layer.weight.detach(), u, input=inputs, padding=1, multiply=True)

    Source: Bach et al. 2015, eq. 56 to 60; Montavon et al. 2019, section 10.2.
    """
    op = "conv_relevance"
    n = _check_ranks(op, relevance, weight)
    check_terms(op, u, v, input, signed, multiply)
    S = _input_size(op, n, input_size, input)
    step, pad, spread = _geometry(op, n, stride, padding, dilation)
    extra = _sizes(op, "output_padding", output_padding, n, 0)
    _check_groups(op, relevance, weight, transposed, groups)
    output = [
        (s - 1) * t - 2 * p + d * (k - 1) + e + 1 if transposed else (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, t, p, d, e, k in zip(S, step, pad, spread, extra, weight.shape[2:], strict=True)
    ]
    check_output_size(op, relevance, output, S)
    _check_tensors(op, relevance, weight, u, v, input, weight_positive, S, output, transposed, groups)
    geometry = (S, step, pad, spread, transposed, extra, groups)
    result: Tensor = torch.ops.fastlrp.conv_relevance(
        relevance, weight, u, v, input, weight_positive, *geometry, signed, multiply, backend=backend
    )
    return result


def conv_unpooled_relevance(
    relevance: Tensor,
    index: Tensor,
    weight: Tensor,
    u: Tensor | None = None,
    v: Tensor | None = None,
    input: Tensor | None = None,
    weight_positive: Tensor | None = None,
    unpooled_size: Sequence[int] | None = None,
    pool_kernel: Sizes = 2,
    pool_stride: Sizes | None = None,
    pool_padding: Sizes = 0,
    pool_dilation: Sizes = 1,
    input_size: Sequence[int] | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    signed: bool = False,
    multiply: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Relevance through a convolution and the max-pool after it, without the map between them.

    Equal to ``conv_relevance(pool_max_relevance(relevance, index, None, unpooled_size), weight, u, v, ...)``. ``S`` and
    ``S'`` are the spatial sizes of the convolution's input and output, ``P`` that of the pool's output.

    Args:
        relevance: what flows into the pool from above, ``(B, K, Co, *P)``.
        index: ``(B, Co, *P)`` int64, flat position in ``S'`` of each window's winner, as max_pool returns it: it
            lies inside the window.
        weight: ``W``, ``(Co, Ci / groups, *k)``.
        u, v: coefficients from :func:`elementwise_coefficients`, ``(B, Co, *S')``; at least one is given.
        input: ``x``, ``(B, Ci, *S)``; needed by ``multiply``, and by ``signed`` where ``v`` is given.
        weight_positive: ``max(W, 0)``, shape of ``weight``, if it is at hand.
        unpooled_size: ``S'``; None takes what the convolution makes of ``S``.
        pool_kernel, pool_stride, pool_padding, pool_dilation: of the pool, numbers or one per spatial axis; pool_stride
            None is pool_kernel.
        input_size: ``S``; None takes it from ``input``.
        stride, padding, dilation: of the convolution, numbers or one per spatial axis.
        groups: number of groups.
        signed, multiply: as in :func:`conv_relevance`.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, Ci, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point (index: int64), or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit, u and v both None, an input that is needed and None.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        layer = model[3]
        inputs = torch.rand(2, 8, 8, 8)
        z = layer(inputs).detach()
        u, _ = functional.elementwise_coefficients(z)
        _, winners = torch.nn.functional.max_pool2d(z, 2, return_indices=True)
        arrived = torch.rand(2, 7, 16, 4, 4)  # at the pool's output
        sent = functional.conv_unpooled_relevance(arrived, winners, layer.weight.detach(), u, input=inputs, padding=1)

    Source: as of its two parts, :func:`conv_relevance` and :func:`pool_max_relevance`.
    """
    op = "conv_unpooled_relevance"
    n = _check_ranks(op, relevance, weight)
    check_terms(op, u, v, input, signed, multiply)
    S = _input_size(op, n, input_size, input)
    step, pad, spread = _geometry(op, n, stride, padding, dilation)
    _check_groups(op, relevance, weight, False, groups)
    rows = zip(S, step, pad, spread, weight.shape[2:], strict=True)
    output = [(s + 2 * p - d * (k - 1) - 1) // t + 1 for s, t, p, d, k in rows]
    between = output if unpooled_size is None else _sizes(op, "unpooled_size", unpooled_size, n, 0)
    if between != output:
        raise ValueError(
            f"{op}: unpooled_size must be {output}, which is what this convolution makes of input_size={S}, "
            f"got {between}"
        )
    kernel = _sizes(op, "pool_kernel", pool_kernel, n, 1)
    pool_step = kernel if pool_stride is None else _sizes(op, "pool_stride", pool_stride, n, 1)
    pool_pad = _sizes(op, "pool_padding", pool_padding, n, 0)
    pool = (kernel, pool_step, pool_pad, _sizes(op, "pool_dilation", pool_dilation, n, 1))
    _check_pooled(op, relevance, output, *pool)
    _check_index(op, relevance, index)
    _check_tensors(op, relevance, weight, u, v, input, weight_positive, S, output, False, groups)
    result: Tensor = torch.ops.fastlrp.conv_unpooled_relevance(
        relevance, index, weight, u, v, input, weight_positive, output, *pool, S, step, pad, spread, groups, signed,
        multiply, backend=backend,
    )  # fmt: skip
    return result


def _check_ranks(op: str, relevance: Tensor, weight: Tensor) -> int:
    """Returns the number of spatial axes."""
    n = check_map(op, relevance)
    check_float(op, "weight", weight)
    check_dim(op, "weight", weight, f"(Co, Ci / groups, *k) with {n} kernel sizes", n + 2, n + 2)
    return n


def _input_size(op: str, n: int, input_size: Sequence[int] | None, input: Tensor | None) -> list[int]:
    if input_size is None:
        if input is None:
            raise ValueError(f"{op}: input_size must be given where input is None; pass the spatial sizes S")
        check_dim(op, "input", input, f"(B, Ci, *S) with {n} spatial sizes", n + 2, n + 2)
        input_size = list(input.shape[2:])
    return _sizes(op, "input_size", input_size, n, 0)


def _geometry(op: str, n: int, stride: Sizes, padding: Sizes, dilation: Sizes) -> tuple[list[int], ...]:
    listed = (("stride", stride, n, 1), ("padding", padding, n, 0), ("dilation", dilation, n, 1))
    return tuple(_sizes(op, *arguments) for arguments in listed)


def _check_groups(op: str, relevance: Tensor, weight: Tensor, transposed: bool, groups: int) -> None:
    Co = relevance.shape[2]
    if groups < 1 or Co % groups or (transposed and weight.shape[0] % groups):
        raise ValueError(f"{op}: groups must divide the channels Co = {Co} and Ci, got {groups}")


def _check_tensors(
    op: str,
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    S: list[int],
    output: list[int],
    transposed: bool,
    groups: int,
) -> None:
    B, _, Co, *_ = relevance.shape
    Ci = weight.shape[0] if transposed else weight.shape[1] * groups
    shape = (Ci, Co // groups) if transposed else (Co, Ci // groups)
    layout = "(Ci, Co / groups, *k)" if transposed else "(Co, Ci / groups, *k)"
    out = (B, Co, *output)
    for name, value, expected, size in (
        ("weight", weight, layout, (*shape, *weight.shape[2:])),
        ("u", u, "(B, Co, *S')", out),
        ("v", v, "(B, Co, *S')", out),
        ("input", input, "(B, Ci, *S)", (B, Ci, *S)),
        ("weight_positive", weight_positive, layout, tuple(weight.shape)),
    ):
        check_like(op, name, value, expected, size, relevance, relevance.dtype)


def _check_pooled(
    op: str,
    relevance: Tensor,
    size: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> None:
    """That the relevance has a size which the pool makes of ``size``, with ``ceil_mode`` or without."""
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if any(2 * p > r for p, r in zip(padding, reach, strict=True)):
        raise ValueError(f"{op}: pool_padding must be at most half of what a window spans, {reach}, got {padding}")
    floor, ceil = (pooled_size(size, reach, stride, padding, mode) for mode in (False, True))
    if not all(n in pair for n, *pair in zip(relevance.shape[3:], floor, ceil, strict=True)):
        either = f"{floor} or, with ceil_mode, {ceil}" if ceil != floor else f"{floor}"
        raise ValueError(
            f"{op}: relevance must have spatial size {either}, which is what this pool makes of {size}, got "
            f"{list(relevance.shape[3:])}; pass the arguments of the layers themselves"
        )


def _check_index(op: str, relevance: Tensor, index: Tensor) -> None:
    if index is None:
        raise TypeError(f"{op}: index must be a tensor, got None; max_pool2d(..., return_indices=True) makes it")
    B, _, Co, *P = relevance.shape
    check_like(op, "index", index, "(B, Co, *P)", (B, Co, *P), relevance, torch.int64)
