"""Relevance through a convolution for a block of targets.

``c = W^T (u F) + W+^T (v F)`` and ``x c``; see :func:`fastlrp.reference.conv.conv_relevance`. Maps are channels-last in
here; others are brought into that order first. Three ways, of which the configuration chooses:

- :mod:`fastlrp.kernels.conv.product`: one kernel, an implicit matrix product;
- :mod:`fastlrp.kernels.conv.depthwise`: one kernel, for layers with a group for each input channel;
- :mod:`fastlrp.kernels.conv.library`: cuDNN's product between two kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.configs import Config, configuration
from fastlrp.kernels.conv.call import Call, layer_of
from fastlrp.kernels.conv.compilations import compiled_samples
from fastlrp.kernels.conv.launch import fills, fused_launch, is_depthwise, plain
from fastlrp.kernels.conv.library import library_relevance
from fastlrp.kernels.conv.maps import with_winners, without_pool
from fastlrp.kernels.conv.product import merged_groups
from fastlrp.kernels.launch import convolution_precision, empty_map
from fastlrp.kernels.rounding import raise_launch, raised_copy

_ALIGNED = 8  # channels: others are not read 16 bytes at a time, nor past the registers
_FEW = 1 << 19  # results that are 32 tiles of 128 x 128: fewer leave most of a GPU idle


def shape_class(reduction: int, channels: int, results: int, pointwise: bool) -> str:
    """What a configuration is chosen by.

    Args:
        reduction, channels: output and input channels of a group, or of groups that are put side by side.
        results: elements of the result. pointwise: whether there is one tap.
    """
    if reduction % _ALIGNED:
        return "odd"
    if results < _FEW:
        return "few"
    width = "narrow" if channels <= 16 else "medium" if channels <= 64 else "wide"
    return f"{width}_pointwise" if pointwise and width != "narrow" else width


def conv_relevance(
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """``c = W^T (uF) + W+^T (vF)``, (B, K, Co, *S') -> (B, K, Ci, *S); see :mod:`fastlrp.reference.conv`."""
    geometry = (tuple(stride), tuple(padding), tuple(dilation), transposed, groups)
    layer = layer_of(tuple(weight.shape[2:]), tuple(input_size), tuple(relevance.shape[3:]), *geometry)
    return compute(Call(layer, relevance, None, weight, weight_positive, u, v, input, signed, multiply))


def conv_unpooled_relevance(
    relevance: Tensor,
    index: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    unpooled_size: list[int],
    pool_kernel: list[int],
    pool_stride: list[int],
    pool_padding: list[int],
    pool_dilation: list[int],
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """The same from in front of a max-pool, (B, K, Co, *P) -> (B, K, Ci, *S); see :mod:`fastlrp.reference.conv`."""
    geometry = (tuple(stride), tuple(padding), tuple(dilation), False, groups)
    pool = (tuple(pool_kernel), tuple(pool_stride), tuple(pool_padding), tuple(pool_dilation))
    sizes = (tuple(weight.shape[2:]), tuple(input_size), tuple(unpooled_size))
    layer = layer_of(*sizes, *geometry, tuple(relevance.shape[3:]), pool)
    return compute(Call(layer, relevance, index, weight, weight_positive, u, v, input, signed, multiply))


def compute(call: Call, config: Config | None = None) -> Tensor:
    """The operation, in a given configuration or in the one that the tables name."""
    size = call.spatial(call.layer.input_size)
    batch, targets = call.relevance.shape[:2]
    if 0 in (batch * targets * call.channels * math.prod(size), call.relevance.numel(), call.weight.numel()):
        return empty_map(call.relevance, batch, targets, call.channels, size).zero_()
    call = plain(call)
    precision = convolution_precision() if call.relevance.dtype == torch.float32 else "ieee"
    config = configuration_of(call, precision) if config is None else config
    with torch.cuda.device_of(call.relevance):
        if config.route == "library":
            return library_relevance(call)
        if call.layer.pool is not None:
            call = with_winners(call) if call.layer.windows == 1 else without_pool(call)
        call = call.with_result()
        if precision == "tf32" and not is_depthwise(call):
            positive = None if call.positive is None else raised_copy(call.positive)
            call = replace(call, weight=raised_copy(call.weight), positive=positive)
        fused_launch(call, config, precision).run()
    assert call.result is not None
    return call.result


def configuration_of(call: Call, precision: str) -> Config:
    """What the tables say about a plain call."""
    device, dtype = call.relevance.device, call.relevance.dtype
    batch, targets = call.relevance.shape[:2]
    results = batch * targets * call.channels * math.prod(call.layer.input_size)
    pointwise = all(axis[0] == 1 for axis in call.layer.axes)
    groups = call.layer.groups // merged_groups(call)
    shape = shape_class(call.relevance.shape[2] // groups, call.channels // groups, results, pointwise)
    if is_depthwise(call):
        return configuration("conv_depthwise", "any", device, dtype, precision)
    suffix = "_unpooled" if call.layer.pool is not None and call.layer.windows == 1 else ""
    both = call.u is not None and call.v is not None
    config = configuration(f"conv{'_both' if both else ''}{suffix}", shape, device, dtype, precision)
    if call.signed and not fills(targets, config.block_m):
        config = configuration(f"conv_signed{suffix}", shape, device, dtype, precision)
    return config


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel of convolutions in every configuration of the tables, and the one that raises their weights."""
    yield from compiled_samples(dtype)
    if dtype == torch.float32:
        weight = torch.empty(64, 64, 3, 3, device="meta")
        yield raise_launch(weight, weight).compilation("conv: raised weights", False)
