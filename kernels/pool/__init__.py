"""Relevance through max and average pools for a block of targets, one launch for all of them.

The definitions are in :mod:`fastlrp.reference.pool`, the kernels in :mod:`fastlrp.kernels.pool.windows` and
:mod:`fastlrp.kernels.pool.winners`. Every sum is made in one order by one program: results are the same each time. The
result lies in memory as the relevance does, channels-last or positions-last. A winner outside of the input has no place
and gives nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
import triton
from torch import Tensor

from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.launch import Launch, empty_map, interpreted, line_stride
from fastlrp.kernels.pool.windows import NOWHERE, average_kernel, shares_kernel, ties_kernel
from fastlrp.kernels.pool.winners import max_kernel, span_kernel


@dataclass(frozen=True)
class _Tile:
    """Targets, lengths along the innermost axis of memory and along the other one of positions and channels, warps."""

    targets: int
    inner: int
    outer: int
    warps: int


_WIDE = (_Tile(1, 16, 64, 8), _Tile(1, 64, 16, 8), _Tile(8, 16, 8, 4), _Tile(8, 64, 2, 4))
_NARROW = (_Tile(1, 16, 16, 4), _Tile(1, 64, 4, 4), _Tile(8, 16, 2, 4), _Tile(8, 64, 1, 8))
_INTERPRETED = (_Tile(1, 16, 16, 4), _Tile(4, 32, 16, 4))
_TILES = {
    average_kernel: _WIDE,
    ties_kernel: _WIDE,
    span_kernel: _WIDE[:2],
    max_kernel: (_Tile(1, 16, 128, 8), _Tile(1, 64, 32, 8), *_WIDE[2:]),
    shares_kernel: (_Tile(1, 16, 64, 4), _Tile(1, 64, 16, 4)),
}
"""Of channels-last maps, whose loads are 16 bytes wide; the largest of each kernel that spill no register. Positions-
last maps have ``_NARROW`` tiles: their loads are gathers, with an address for each element. Of a list the last tile
counts of which neither the targets nor the inner axis is mostly empty, or the first.
"""


@dataclass(frozen=True)
class _Call:
    """A pool's relevance pass: ``flow`` is (B, K, C, *S'), ``last`` whether channels are innermost in memory."""

    flow: Tensor
    input_size: Sequence[int]
    last: bool

    @staticmethod
    def of(relevance: Tensor, input_size: Sequence[int]) -> _Call:
        strides = [
            stride
            for size, stride in zip(relevance.shape[3:], relevance.stride()[3:], strict=True)
            if size > 1 and stride > 0
        ]
        channels = relevance.shape[2]
        return _Call(relevance, input_size, not strides or (channels > 1 and relevance.stride(2) < min(strides)))

    def result(self) -> Tensor:
        if self.last:
            return empty_map(self.flow, *self.flow.shape[:3], self.input_size)
        return self.flow.new_empty(*self.flow.shape[:3], *self.input_size)

    def tile(self, kernel: Any, targets: int, positions: int) -> _Tile:
        inner = self.flow.shape[2] if self.last else positions
        tiles = _TILES[kernel] if self.last else _NARROW
        if interpreted():
            tiles = _INTERPRETED
        fitting = [t for t in tiles if t.targets <= 2 * targets and t.inner <= 2 * inner]
        return fitting[-1] if fitting else tiles[0]

    def sizes(self) -> dict[str, int]:
        """Sizes of input (``n``) and output (``m``) along each axis."""
        found = {}
        for name, sizes in (("n", self.input_size), ("m", self.flow.shape[3:])):
            found |= dict(zip((f"{name}_z", f"{name}_y", f"{name}_x"), _three(sizes), strict=True))
        return found

    def launch(self, kernel: Any, positions: int, values: dict[str, Any], with_targets: bool = True) -> Launch:
        """One program for each tile of ``positions`` and channels, of some targets or of what has none."""
        batch, targets, channels = self.flow.shape[:3]
        tile = self.tile(kernel, targets if with_targets else 1, positions)
        c, p = (tile.inner, tile.outer) if self.last else (tile.outer, tile.inner)
        blocks = triton.cdiv(targets, tile.targets) if with_targets else 1
        values = {**values, **self.sizes(), "channels": channels, "positions": positions}
        values |= {"targets": targets, "LAST": self.last, "BLOCK_K": tile.targets, "BLOCK_C": c, "BLOCK_P": p}
        grid = (batch * blocks * triton.cdiv(channels, c) * triton.cdiv(positions, p),)
        return Launch(kernel, grid, {n: values[n] for n in kernel.arg_names}, tile.warps, 1)


def _three(numbers: Sequence[int], missing: int = 1) -> list[int]:
    """One number for each of three axes, the missing ones first."""
    return [missing] * (3 - len(numbers)) + list(numbers)


def _lines(last: bool, axes: str, **maps: Tensor | None) -> dict[str, Any]:
    """Maps, and their strides: of the axes before the channels, of the channels, of the positions as one axis ``p``.

    Maps whose positions do not lie in one line are copied.
    """
    values: dict[str, Any] = {}
    for name, t in maps.items():
        names = [f"{name}_{axis}" for axis in axes + "p"]
        if t is None:
            values |= {name: None, **dict.fromkeys(names, 0)}
            continue
        positions = range(len(axes), t.dim())
        line = line_stride(t, positions)
        if line is None:
            channel = len(axes) - 1
            t = t.movedim(channel, -1).contiguous().movedim(-1, channel) if last else t.contiguous()
            line = line_stride(t, positions)
        strides = [0 if t.shape[axis] == 1 else t.stride(axis) for axis in range(len(axes))]
        values |= {name: t, **dict(zip(names, [*strides, line], strict=True))}
    return values


def _axes(**numbers: Sequence[int]) -> dict[str, int]:
    return {f"{n}_{a}": value for n, values in numbers.items() for a, value in zip("zyx", _three(values), strict=True)}


def _run(launches: Sequence[Launch], like: Tensor) -> None:
    with torch.cuda.device_of(like):
        for launch in launches:
            launch.run()


def _nothing(relevance: Tensor, result: Tensor) -> bool:
    """Whether there is nothing to launch; the result is then zero."""
    if relevance.numel() == 0 or result.numel() == 0:
        result.zero_()
        return True
    return False


def pool_max_relevance(relevance: Tensor, index: Tensor, scale: Tensor | None, input_size: list[int]) -> Tensor:
    """Winner takes all: adds each output's value at its winner's index. (B, K, C, *S') -> (B, K, C, *S)."""
    call = _Call.of(relevance, input_size)
    result = call.result()
    if not _nothing(relevance, result):
        spans = torch.full((2, sum(_three(input_size))), NOWHERE, dtype=torch.int64, device=relevance.device)
        _run(_max(call, index, scale, spans, result), relevance)
    return result


def _max(call: _Call, index: Tensor, scale: Tensor | None, spans: Tensor, result: Tensor) -> list[Launch]:
    values = {"spans": spans, "total": spans.shape[1], **_lines(call.last, "bkc", flow=call.flow, out=result)}
    values |= _lines(call.last, "bc", index=index, scale=scale)
    return [
        call.launch(span_kernel, prod(index.shape[2:]), values, with_targets=False),
        call.launch(max_kernel, prod(call.input_size), values),
    ]


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
    call = _Call.of(relevance, list(input.shape[2:]))
    result = call.result()
    if not _nothing(relevance, result):
        _run(_ties(call, input, output, scale, kernel_size, stride, padding, dilation, result), relevance)
    return result


def _ties(
    call: _Call,
    input: Tensor,
    output: Tensor,
    scale: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    result: Tensor,
) -> list[Launch]:
    batch, channels, *size = output.shape
    share = output.new_empty(batch, 1, channels, *size, dtype=torch.float32)
    share = (empty_map(share, batch, 1, channels, size) if call.last else share)[:, 0]
    most = [d * (k - 1) // s + 1 for k, s, d in zip(kernel_size, stride, dilation, strict=True)]
    values = _lines(call.last, "bkc", flow=call.flow, out=result)
    values |= _lines(call.last, "bc", input=input, output=output, scale=scale, share=share)
    values |= _axes(kernel=kernel_size, stride=stride, dilation=dilation, most=most, padding=_three(padding, 0))
    return [
        call.launch(shares_kernel, prod(size), values, with_targets=False),
        call.launch(ties_kernel, prod(call.input_size), values),
    ]


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
    most = [(k - 1) // s + 1 for k, s in zip(kernel_size, stride, strict=True)]
    geometry = _axes(kernel=kernel_size, stride=stride, padding=_three(padding, 0), most=most)
    flags = {"COUNT_PADDING": count_include_pad, "OVERRIDE": divisor_override is not None}
    return _averaged(relevance, scale, input_size, {**geometry, **flags, "divisor": divisor_override or 1})


def pool_adaptive_avg_relevance(relevance: Tensor, scale: Tensor | None, input_size: list[int]) -> Tensor:
    """Transpose of the adaptive average pool, applied to ``F * scale``. (B, K, C, *S') -> (B, K, C, *S)."""
    return _averaged(relevance, scale, input_size, _adaptive(relevance, input_size))


def _adaptive(relevance: Tensor, input_size: list[int]) -> dict[str, int]:
    most = []
    for n, m in zip(input_size, relevance.shape[3:], strict=True):
        even = n % m == 0 if m else True
        most.append(1 if even else -(-m // n) + 1 if n else 1)
    ones = [1] * len(most)
    geometry = _axes(kernel=ones, stride=ones, padding=[0, 0, 0], most=most)
    return {**geometry, "COUNT_PADDING": False, "OVERRIDE": False, "ADAPTIVE": True, "divisor": 1}


def _averaged(relevance: Tensor, scale: Tensor | None, input_size: list[int], geometry: dict[str, Any]) -> Tensor:
    call = _Call.of(relevance, input_size)
    result = call.result()
    if not _nothing(relevance, result):
        _run([_average(call, scale, geometry, result)], relevance)
    return result


def _average(call: _Call, scale: Tensor | None, geometry: dict[str, Any], result: Tensor) -> Launch:
    values = {"ADAPTIVE": False, **geometry, **_lines(call.last, "bkc", flow=call.flow, out=result)}
    values |= _lines(call.last, "bc", scale=scale)
    return call.launch(average_kernel, prod(call.input_size), values)


def compilations(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel that the launchers may run, in every tile and both orders of memory."""
    done = set()
    for targets, inner, last in product((1, 16), (16, 64), (True, False)):
        sizes = ([32, 32], [16, 16]) if last or inner == 64 else ([4, 4], [2, 2])
        call, tensors = _example(dtype, targets, inner if last else 32, last, *sizes)
        for label, launch in _examples(call, **tensors):
            tile = "x".join(
                str(launch.arguments[n]) for n in ("BLOCK_K", "BLOCK_P", "BLOCK_C") if n in launch.arguments
            )
            name = f"pool-{label}-{tile}-{'last' if last else 'first'}"
            if name not in done:
                done.add(name)
                yield launch.compilation(name, False)


def _example(
    dtype: torch.dtype, targets: int, channels: int, last: bool, inputs: list[int], outputs: list[int]
) -> tuple[_Call, dict[str, Tensor]]:
    """A pass without memory: F, and maps on the outputs and the inputs."""

    def map_of(size: list[int], kind: torch.dtype, *before: int) -> Tensor:
        if not last:
            return torch.empty(*before, channels, *size, dtype=kind, device="meta")
        return torch.empty(*before, *size, channels, dtype=kind, device="meta").movedim(-1, len(before))

    flow = map_of(outputs, dtype, 2, targets)
    maps = {"index": map_of(outputs, torch.int64, 2), "output": map_of(outputs, dtype, 2)}
    return _Call.of(flow, inputs), {**maps, "input": map_of(inputs, dtype, 2)}


def _examples(call: _Call, index: Tensor, output: Tensor, input: Tensor) -> Iterator[tuple[str, Launch]]:
    result = call.result()
    spans = torch.empty(2, sum(_three(call.input_size)), dtype=torch.int64, device="meta")
    for scale, label in ((output, "-scale"), (None, "")):
        span, winners = _max(call, index, scale, spans, result)
        shares, ties = _ties(call, input, output, scale, [3, 3], [2, 2], [1, 1], [1, 1], result)
        yield from (("span", span), (f"max{label}", winners), (f"shares{label}", shares), ("ties", ties))
        adaptive = _adaptive(call.flow, list(call.input_size))
        yield f"adaptive{label}", _average(call, scale, adaptive, result)
        for name, counts, override in (("padded", True, False), ("inside", False, False), ("override", False, True)):
            geometry = _axes(kernel=[3, 3], stride=[2, 2], padding=[0, 1, 1], most=[2, 2])
            flags = {"COUNT_PADDING": counts, "OVERRIDE": override, "divisor": 3}
            yield f"average-{name}{label}", _average(call, scale, {**geometry, **flags}, result)
