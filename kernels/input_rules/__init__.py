"""Relevance of a network's input, where channels are few; see :mod:`fastlrp.reference.input_rules`.

The kernels are in :mod:`fastlrp.kernels.input_rules.product` (zB, w2, epsilon, z+: one launch) and
:mod:`fastlrp.kernels.input_rules.flat` (two launches).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastlrp.aten import input_rules as composed
from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.configs import Config, configuration, configurations
from fastlrp.kernels.input_rules.flat import flat_box_launch, flat_sum_launch
from fastlrp.kernels.input_rules.product import MOST_TERMS, relevance_launch
from fastlrp.kernels.launch import Launch, convolution_precision, empty_map

MOST_CHANNELS, MOST_TAPS = 8, 128


def cannot(weights: Sequence[Tensor], groups: int) -> str | None:
    """Why the kernel does not take a layer, or None. Then the launcher composes PyTorch's operations."""
    _, channels, *kernel = weights[0].shape
    if groups != 1:
        return f"the layer has {groups} groups, the kernel is for layers without"
    if channels > MOST_CHANNELS:
        return f"the layer has {channels} input channels, the kernel is for at most {MOST_CHANNELS}"
    if len(weights) > MOST_TERMS:
        return f"there are {len(weights)} terms, the kernel is for at most {MOST_TERMS}"
    if math.prod(kernel) > MOST_TAPS:
        return f"its kernel has {math.prod(kernel)} taps, each of which reads the relevance again: at most {MOST_TAPS}"
    return None


def input_relevance(
    relevance: Tensor,
    weights: list[Tensor],
    coefficients: list[Tensor],
    multipliers: list[Tensor | None],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    reduce: bool,
) -> Tensor:
    """``sum_j m_j W_j^T (u_j F)``, (B, K, Co, *S') -> (B, K, Ci, *S) or (B, K, 1, *S); see the reference's namesake.

    What :func:`cannot` names is composed of PyTorch's operations.
    """
    if cannot(weights, groups) is not None:
        return composed.input_relevance(
            relevance, weights, coefficients, multipliers, input_size, stride, padding, dilation, groups, reduce
        )
    channels = 1 if reduce else weights[0].shape[1]
    result = empty_map(relevance, *relevance.shape[:2], channels, input_size)
    if result.numel() == 0 or relevance.numel() == 0:
        return result.zero_()
    config = configuration("input_relevance", "*", relevance.device, relevance.dtype)
    precision = convolution_precision() if relevance.dtype == torch.float32 else "ieee"
    with torch.cuda.device_of(relevance):
        relevance_launch(
            relevance, weights, coefficients, multipliers, stride, padding, dilation, reduce, precision, config, result
        ).run()
    return result


def input_flat_relevance(
    relevance: Tensor,
    u: Tensor,
    channels: int,
    kernel_size: list[int],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    reduce: bool,
) -> Tensor:
    """``1^T (u F)``, (B, K, Co, *S') -> (B, K, Ci, *S) or (B, K, 1, *S); see the reference's namesake."""
    B, K, _, *output = relevance.shape
    result = empty_map(relevance, B, K, 1 if reduce else channels, input_size)
    if result.numel() == 0 or relevance.numel() == 0:
        return result.zero_()
    summed = torch.empty(B, K, *output, dtype=torch.float32, device=relevance.device)
    factor = channels if reduce else 1
    with torch.cuda.device_of(relevance):
        flat_sum_launch(relevance, u, summed).run()
        flat_box_launch(summed, kernel_size, stride, padding, dilation, factor, result).run()
    return result


_CASES = (
    ("0", 1, True),
    ("0", 3, False),
    ("00", 3, False),
    ("00", 3, True),
    ("01", 8, False),
    ("000", 8, True),
    ("001", 3, False),
    ("010", 3, False),
    ("011", 3, False),
    ("012", 8, False),
)
"""Which coefficient each term has, input channels, reduce: what decides how many products and slots there are."""


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel in every configuration, for maps with the channels innermost and outermost."""
    for last in (True, False):
        order = "last" if last else "first"
        for precision in ("tf32", "ieee") if dtype == torch.float32 else ("ieee",):
            kind = precision if dtype == torch.float32 else None
            for name, config in configurations("input_relevance", dtype, kind).items():
                for of, channels, reduce in _CASES:
                    launch = _sample(dtype, of, channels, reduce, last, precision, config)
                    what = f"{precision}-{of}-{channels}{'-reduced' if reduce else ''}-{order}"
                    on_cores = precision == "tf32" or dtype.itemsize == 2
                    yield launch.compilation(f"input_relevance-{name}-{what}", on_cores)
        relevance, u = _map(dtype, (2, 2, 64, 16, 16), last), _map(dtype, (2, 64, 16, 16), last)
        summed = torch.empty(2, 2, 16, 16)
        yield flat_sum_launch(relevance, u, summed).compilation(f"input_flat_sum-{order}", False)
    for channels in (1, 3, 8):
        result = _map(dtype, (2, 2, channels, 16, 16), True)
        launch = flat_box_launch(summed, [3, 3], [1, 1], [1, 1], [1, 1], 1, result)
        yield launch.compilation(f"input_flat_box-{channels}", False)


def _sample(
    dtype: torch.dtype, of: str, channels: int, reduce: bool, last: bool, precision: str, config: Config
) -> Launch:
    """A launch with these terms."""
    relevance = _map(dtype, (2, 2, 64, 16, 16), last)
    result = _map(dtype, (2, 2, 1 if reduce else channels, 16, 16), True)
    us = [_map(dtype, (2, 64, 16, 16), last) for _ in of]
    weights = [torch.empty(64, channels, 3, 3, dtype=dtype) for _ in of]
    ms = [_map(dtype, (2, channels, 16, 16), False) for _ in of]
    rest = ([1, 1], [1, 1], [1, 1], reduce, precision, config, result)
    return relevance_launch(relevance, weights, [us[int(n)] for n in of], ms, *rest)


def _map(dtype: torch.dtype, size: tuple[int, ...], last: bool) -> Tensor:
    """Any values, channels innermost or before the two spatial axes."""
    if not last:
        return torch.empty(size, dtype=dtype)
    return torch.empty(*size[:-3], *size[-2:], size[-3], dtype=dtype).movedim(-1, -3)
