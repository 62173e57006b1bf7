"""Relevance through a convolution with the library's (cuDNN's) product, between the kernels of ``conv_maps``.

One kernel before it makes ``u F`` and ``v F``, channels-last and un-pooled where relevance arrives in front of a
max-pool; one after it chooses by the sign of the input and multiplies by it. The two terms of an unsigned layer are one
product over twice the channels; W+ and W- of a signed layer give one product with twice the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastlrp.kernels.conv.call import Call, Layer
from fastlrp.kernels.conv.maps import finish_launch, scale_launch
from fastlrp.kernels.launch import channels_last, empty_map


def library_relevance(call: Call) -> Tensor:
    """The whole operation."""
    first, above, below = _products(call)
    if first is not None and above is None and not call.multiply:
        return first
    first, above, below = (None if t is None else channels_last(t, 2) for t in (first, above, below))
    call = call.with_result() if first is None else replace(call, result=first)
    finish_launch(call, first, above, below).run()
    assert call.result is not None
    return call.result


def _products(call: Call) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The term of u, the term of v (its part with W+ where the layer is signed), and the part with W-."""
    layer, weight, positive = call.layer, call.weight, call.positive
    out, into = (1, 0) if layer.transposed else (0, 1)  # axes of the weight
    if call.v is None:
        return _product(layer, _scaled(call), weight), None, None
    positive = weight.clamp(min=0) if positive is None else positive
    if layer.groups == 1 and call.u is not None and not call.signed:
        return _product(layer, _scaled(call, joint=True), torch.cat([weight, positive], out)), None, None
    first = None if call.u is None else _product(layer, _scaled(replace(call, v=None)), weight)
    scaled_v = _scaled(replace(call, u=None))
    if not call.signed:
        term = _product(layer, scaled_v, positive)
        return (term, None, None) if first is None else (first, term, None)
    negative = weight.clamp(max=0)
    if layer.groups > 1:
        return first, _product(layer, scaled_v, positive), _product(layer, scaled_v, negative)
    return first, *_product(layer, scaled_v, torch.cat([positive, negative], into)).chunk(2, 2)


def _scaled(call: Call, joint: bool = False) -> Tensor:
    """``u F`` or ``v F``, whichever is there, or F; ``joint``: the channels of ``v F`` behind those of ``u F``."""
    if call.u is None and call.v is None and call.layer.pool is None:
        return call.relevance
    batch, targets, channels = call.relevance.shape[:3]
    size = call.spatial(call.layer.output_size)
    scaled = empty_map(call.relevance, batch, targets, 2 * channels if joint else channels, size)
    if joint:
        scale_launch(call, *scaled.chunk(2, 2)).run()
    else:
        scale_launch(call, scaled if call.v is None else None, scaled if call.v is not None else None).run()
    return scaled


def _product(layer: Layer, images: Tensor, weight: Tensor) -> Tensor:
    """The transpose of the convolution, (B, K, Co, *S') -> (B, K, Ci, *S)."""
    batch, targets = images.shape[:2]
    n = images.dim() - 3
    kernel, stride, padding, dilation = ([axis[i] for axis in layer.axes[3 - n :]] for i in range(4))
    size, zero = layer.input_size[3 - n :], [0] * n
    images = images.flatten(0, 1)
    if layer.transposed:
        result = torch.convolution(images, weight, None, stride, padding, dilation, False, zero, layer.groups)
    else:
        reach = zip(size, images.shape[2:], kernel, stride, padding, dilation, strict=True)
        missing = [s - ((o - 1) * t - 2 * p + d * (k - 1) + 1) for s, o, k, t, p, d in reach]
        if min(missing) < 0:  # the padding is wider than the kernel's reach: the input is cut out of the padded map
            result = torch.convolution(images, weight, None, stride, zero, dilation, True, zero, layer.groups)
            result = _cut(result, size, padding)
        else:
            result = torch.convolution(images, weight, None, stride, padding, dilation, True, missing, layer.groups)
    result = _cut(result, size, zero)  # a window of a transposed layer with output padding can start behind the input
    return result.view(batch, targets, *result.shape[1:])


def _cut(t: Tensor, size: Sequence[int], start: Sequence[int]) -> Tensor:
    """``size`` entries of each spatial axis from ``start``; zeros where ``t`` has none."""
    short = [max(0, first + n - have) for first, n, have in zip(start, size, t.shape[2:], strict=True)]
    if any(short):
        t = pad(t, [edge for n in reversed(short) for edge in (0, n)])
    for axis, (first, n) in enumerate(zip(start, size, strict=True)):
        t = t.narrow(2 + axis, first, n)
    return t
