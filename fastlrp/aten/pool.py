"""Relevance through pooling layers for a block of targets."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def _scaled(relevance: Tensor, scale: Tensor | None) -> Tensor:
    return relevance if scale is None else relevance * scale.unsqueeze(1)


def pool_max_relevance(relevance: Tensor, index: Tensor, scale: Tensor | None, input_size: list[int]) -> Tensor:
    """Winner takes all: adds each output's value at its winner's index. (B, K, C, *S') -> (B, K, C, *S)."""
    batch, targets, channels = relevance.shape[:3]
    flow = _scaled(relevance, scale).flatten(3)
    where = index.flatten(2).unsqueeze(1).expand(-1, targets, -1, -1)
    result = flow.new_zeros(batch, targets, channels, math.prod(input_size))
    return result.scatter_add_(3, where, flow).unflatten(3, input_size)


def _windows(
    padded: Tensor, offset: tuple[int, ...], stride: list[int], dilation: list[int], size: torch.Size
) -> Tensor:
    """The entries that stand at one kernel offset of every window: a strided view, last axes of shape ``size``."""
    first = padded.dim() - len(size)
    for axis, (o, s, d, n) in enumerate(zip(offset, stride, dilation, size, strict=True)):
        start = o * d
        padded = padded[(slice(None),) * (first + axis) + (slice(start, start + (n - 1) * s + 1, s),)]
    return padded


def pool_ties_relevance(
    relevance: Tensor,
    input: Tensor,
    output: Tensor,
    scale: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Each window's relevance in equal shares to all entries equal to its maximum. (B, K, C, *S') -> (B, K, C, *S)."""
    size_out, size_in = output.shape[2:], input.shape[2:]
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size_out, stride, dilation, kernel_size, strict=True)]
    around = [(p, max(0, r - p - n)) for p, r, n in zip(padding, reach, size_in, strict=True)]
    flat_pad = [edge for pair in reversed(around) for edge in pair]
    padded = torch.nn.functional.pad(input, flat_pad, value=-math.inf)
    offsets = list(itertools.product(*(range(k) for k in kernel_size)))
    winners = [_windows(padded, o, stride, dilation, size_out) == output for o in offsets]
    count = torch.stack(winners).sum(0)
    share = _scaled(relevance, scale) / count.unsqueeze(1)
    result = relevance.new_zeros(*relevance.shape[:2], *padded.shape[1:])
    for offset, winner in zip(offsets, winners, strict=True):
        _windows(result, offset, stride, dilation, size_out).add_(share * winner.unsqueeze(1))
    for axis, ((low, _), n) in enumerate(zip(around, size_in, strict=True)):
        result = result.narrow(3 + axis, low, n)
    return result


def _window_matrix(starts: Tensor, ends: Tensor, size: int, like: Tensor) -> Tensor:
    """(windows, size) with 1 where a window covers an entry. All on the device: no number comes from the host."""
    entries = torch.arange(size, device=like.device)
    return ((entries >= starts.unsqueeze(1)) & (entries < ends.unsqueeze(1))).to(like.dtype)


def _spread(flow: Tensor, matrices: list[Tensor]) -> Tensor:
    """Transpose of a separable window sum: one matrix (windows, size) for each spatial axis."""
    for axis, matrix in enumerate(matrices):
        flow = torch.tensordot(flow, matrix, dims=([3], [0])) if axis < len(matrices) else flow
    # Each tensordot moved its axis to the end, so after all of them the order is restored.
    return flow


def pool_avg_relevance(
    relevance: Tensor,
    scale: Tensor | None,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Transpose of the average pool, applied to ``F * scale``. (B, K, C, *S') -> (B, K, C, *S)."""
    flow = _scaled(relevance, scale)
    matrices, counts = [], []
    for n, out, k, s, p in zip(input_size, relevance.shape[3:], kernel_size, stride, padding, strict=True):
        starts = torch.arange(out, device=flow.device) * s - p
        # A window may hang over the padded edge when ceil_mode is set; PyTorch then counts up to that edge only.
        ends = (starts + k).clamp(max=n + p)
        matrix = _window_matrix(starts, ends, n, flow)
        matrices.append(matrix)
        counts.append((ends - starts).to(flow.dtype) if count_include_pad else matrix.sum(1))
    if divisor_override is not None:
        return _spread(flow, matrices) / divisor_override
    return _spread(flow, [m / c.unsqueeze(1) for m, c in zip(matrices, counts, strict=True)])


def pool_adaptive_avg_relevance(relevance: Tensor, scale: Tensor | None, input_size: list[int]) -> Tensor:
    """Transpose of the adaptive average pool, applied to ``F * scale``. (B, K, C, *S') -> (B, K, C, *S)."""
    flow = _scaled(relevance, scale)
    if all(out == 1 for out in relevance.shape[3:]):
        return (flow / math.prod(input_size)).expand(*flow.shape[:3], *input_size)
    if list(relevance.shape[3:]) == list(input_size):
        return flow
    matrices = []
    for n, out in zip(input_size, relevance.shape[3:], strict=True):
        windows = torch.arange(out, device=flow.device)
        starts = (windows * n).div(out, rounding_mode="floor")
        ends = ((windows + 1) * n + out - 1).div(out, rounding_mode="floor")
        matrix = _window_matrix(starts, ends, n, flow)
        matrices.append(matrix / matrix.sum(1, keepdim=True))
    return _spread(flow, matrices)
