"""Relevance through max and average pools.

Everywhere ``F`` is what flows down, ``(B, K, C, *S')``, and ``scale`` an optional factor per output neuron,
``(B, C, *S')``. ``S`` and ``S'`` are one to three spatial sizes of input and output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_float, check_like, check_map, check_output_size
from fastlrp.functional._checks import sizes as _sizes


def pool_max_relevance(
    relevance: Tensor,
    index: Tensor,
    scale: Tensor | None = None,
    input_size: Sequence[int] | int = (),
    *,
    backend: str = "auto",
) -> Tensor:
    """Winner takes all: ``out[b, k, c, index[b, c, j]] += F[b, k, c, j] scale[b, c, j]``. Windows may overlap.

    Args:
        relevance: ``F``, ``(B, K, C, *S')``.
        index: ``(B, C, *S')`` int64, flat position in ``S`` of each window's winner, as max_pool returns it.
        scale: ``(B, C, *S')`` or None.
        input_size: ``S``.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, C, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point (index: int64), or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit.
        IndexError, RuntimeError: for an index outside ``S`` (which one depends on the backend).
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        pooled, winners = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
        sent = functional.pool_max_relevance(torch.rand(2, 7, 3, 8, 8), winners, input_size=(16, 16))

    Source: Bach et al. 2015, section "Multilayer networks"; gradient of ``max``.
    """
    op = "pool_max_relevance"
    n = check_map(op, relevance)
    S = _sizes(op, "input_size", input_size, n, 0)
    _check_caches(op, relevance, scale)
    if index is None:
        raise TypeError(f"{op}: index must be a tensor, got None; max_pool2d(..., return_indices=True) makes it")
    check_like(op, "index", index, "(B, C, *S')", _output(relevance), relevance, torch.int64)
    result: Tensor = torch.ops.fastlrp.pool_max_relevance(relevance, index, scale, S, backend=backend)
    return result


def pool_ties_relevance(
    relevance: Tensor,
    input: Tensor,
    output: Tensor,
    scale: Tensor | None = None,
    kernel_size: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    backend: str = "auto",
) -> Tensor:
    """Each window's ``F scale`` in equal shares to all of its entries that equal its maximum.

    Args:
        relevance: ``F``, ``(B, K, C, *S')``.
        input: ``(B, C, *S)``.
        output: ``(B, C, *S')``, the maximum of each window (``ceil_mode`` shows in its size).
        scale: ``(B, C, *S')`` or None.
        kernel_size, stride, padding, dilation: numbers, or one per spatial axis; stride None is kernel_size.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, C, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        pooled = torch.nn.functional.max_pool2d(x, 2)
        sent = functional.pool_ties_relevance(torch.rand(2, 7, 3, 8, 8), x, pooled, kernel_size=2)

    Source: Bach et al. 2015 leaves ties open; equal shares keep the symmetry of the window.
    """
    op = "pool_ties_relevance"
    n = check_map(op, relevance)
    kernel, step, pad = _geometry(op, n, kernel_size, stride, padding)
    spread = _sizes(op, "dilation", dilation, n, 1)
    check_float(op, "input", input)
    S = list(input.shape[2:])
    B, _, C, *_ = relevance.shape
    check_like(op, "input", input, "(B, C, *S)", (B, C, *_sizes(op, "input.shape[2:]", S, n, 0)), relevance,
               relevance.dtype)  # fmt: skip
    check_float(op, "output", output)
    check_like(op, "output", output, "(B, C, *S')", _output(relevance), relevance, relevance.dtype)
    _check_caches(op, relevance, scale)
    reach = [d * (k - 1) + 1 for d, k in zip(spread, kernel, strict=True)]
    _check_padding(op, pad, reach)
    floor, ceil = (pooled_size(S, reach, step, pad, mode) for mode in (False, True))
    if not all(out in pair for out, *pair in zip(relevance.shape[3:], floor, ceil, strict=True)):
        check_output_size(op, relevance, floor, S)
    result: Tensor = torch.ops.fastlrp.pool_ties_relevance(
        relevance, input, output, scale, kernel, step, pad, spread, backend=backend
    )
    return result


def pool_avg_relevance(
    relevance: Tensor,
    scale: Tensor | None = None,
    input_size: Sequence[int] | int = (),
    kernel_size: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """The transpose of the average pool, applied to ``F scale``: ``out_i = sum_j F_j scale_j [i in window j] / n_j``.

    Args:
        relevance: ``F``, ``(B, K, C, *S')``.
        scale: ``(B, C, *S')`` or None.
        input_size: ``S``.
        kernel_size, stride, padding: numbers, or one per spatial axis; stride None is kernel_size.
        ceil_mode, count_include_pad, divisor_override: as in :func:`torch.nn.functional.avg_pool2d`, in any dimension.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, C, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit, or a divisor of 0.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        sent = functional.pool_avg_relevance(torch.rand(2, 7, 3, 8, 8), input_size=(16, 16), kernel_size=2)

    Source: Bach et al. 2015, eq. 56, with the pool as a linear layer.
    """
    op = "pool_avg_relevance"
    n = check_map(op, relevance)
    S = _sizes(op, "input_size", input_size, n, 1)
    kernel, step, pad = _geometry(op, n, kernel_size, stride, padding)
    _check_padding(op, pad, kernel)
    if divisor_override == 0:
        raise ValueError(f"{op}: divisor_override must not be 0; None divides by the size of the window")
    _check_caches(op, relevance, scale)
    check_output_size(op, relevance, pooled_size(S, kernel, step, pad, ceil_mode), S)
    result: Tensor = torch.ops.fastlrp.pool_avg_relevance(
        relevance, scale, S, kernel, step, pad, ceil_mode, count_include_pad, divisor_override, backend=backend
    )
    return result


def pool_adaptive_avg_relevance(
    relevance: Tensor, scale: Tensor | None = None, input_size: Sequence[int] | int = (), *, backend: str = "auto"
) -> Tensor:
    """The transpose of the adaptive average pool with output size ``S'``, applied to ``F scale``.

    Window ``j`` of an axis covers ``floor(j S / S')`` to ``ceil((j + 1) S / S')``.

    Args:
        relevance: ``F``, ``(B, K, C, *S')``.
        scale: ``(B, C, *S')`` or None.
        input_size: ``S``.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, C, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        sent = functional.pool_adaptive_avg_relevance(torch.rand(2, 7, 3, 2, 2), input_size=(16, 16))

    Source: Bach et al. 2015, eq. 56, with the pool as a linear layer.
    """
    op = "pool_adaptive_avg_relevance"
    n = check_map(op, relevance)
    S = _sizes(op, "input_size", input_size, n, 1)
    _check_caches(op, relevance, scale)
    result: Tensor = torch.ops.fastlrp.pool_adaptive_avg_relevance(relevance, scale, S, backend=backend)
    return result


def _output(relevance: Tensor) -> tuple[int, ...]:
    return (relevance.shape[0], *relevance.shape[2:])


def _check_caches(op: str, relevance: Tensor, scale: Tensor | None) -> None:
    check_like(op, "scale", scale, "(B, C, *S')", _output(relevance), relevance, relevance.dtype)


def _geometry(
    op: str,
    n: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
) -> tuple[list[int], list[int], list[int]]:
    kernel = _sizes(op, "kernel_size", kernel_size, n, 1)
    step = kernel if stride is None else _sizes(op, "stride", stride, n, 1)
    return kernel, step, _sizes(op, "padding", padding, n, 0)


def _check_padding(op: str, padding: list[int], reach: list[int]) -> None:
    if any(2 * p > r for p, r in zip(padding, reach, strict=True)):
        raise ValueError(f"{op}: padding must be at most half of what the kernel spans, {reach}, got {padding}")


def pooled_size(size: list[int], reach: list[int], stride: list[int], padding: list[int], ceil_mode: bool) -> list[int]:
    """Output size of a pool whose window spans ``reach``; no window starts in the padding on the right."""
    pooled = []
    for s, r, t, p in zip(size, reach, stride, padding, strict=True):
        out = (s + 2 * p - r + (t - 1 if ceil_mode else 0)) // t + 1
        pooled.append(out - 1 if ceil_mode and (out - 1) * t >= s + p else out)
    return pooled
