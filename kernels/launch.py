"""What the launchers share: memory order, strides, the precision that PyTorch's switches ask for, launches as data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.kernels.compilation import POINTERS, Compilation


def interpreted() -> bool:
    """Whether Triton runs its kernels with NumPy on the CPU, for tests (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def empty_map(like: Tensor, batch: int, targets: int, channels: int, spatial: Sequence[int]) -> Tensor:
    """An uninitialised ``(B, K, C, *S)`` whose channels are innermost in memory."""
    return like.new_empty(batch, targets, *spatial, channels).movedim(-1, 2)


def convolution_precision() -> str:
    """``"tf32"`` where PyTorch lets float32 convolutions use it, else ``"ieee"``."""
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def matmul_precision() -> str:
    """``"tf32"`` where PyTorch lets float32 matrix products use it, else ``"ieee"``."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least this."""
    return 1 << (least - 1).bit_length() if least > 1 else 1


def line_stride(t: Tensor, axes: Sequence[int]) -> int | None:
    """The one stride with which these axes are counted through as a single axis, or None if there is none."""
    stride, expected = 0, None
    for axis in reversed(axes):
        if t.shape[axis] == 1:
            continue
        if expected is None:
            stride = expected = t.stride(axis)
        elif t.stride(axis) != expected:
            return None
        expected *= t.shape[axis]
    return stride


def channels_last(t: Tensor, channel: int) -> Tensor:
    """A map with neighbouring channels and positions in one line: itself where it is one, else a copy."""
    positions = range(channel + 1, t.dim())
    if (t.shape[channel] == 1 or t.stride(channel) == 1) and line_stride(t, positions) is not None:
        return t
    return t.movedim(channel, -1).contiguous().movedim(-1, channel)


def map_strides(t: Tensor, channel: int) -> list[int]:
    """Strides of the axes before the channels, and of the positions, of a map from :func:`channels_last`."""
    before = [0 if t.shape[axis] == 1 else t.stride(axis) for axis in range(channel)]
    positions = line_stride(t, range(channel + 1, t.dim()))
    assert positions is not None
    return [*before, positions]


def taken(kernel: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that the kernel has arguments for."""
    return {name: values[name] for name in kernel.arg_names if name in values}


@dataclass(frozen=True)
class Launch:
    """One launch as data: it can be run, or compiled without a GPU.

    Attributes:
        arguments: value of each argument of the kernel by name; None leaves a pointer out.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, num_warps=self.num_warps, num_stages=self.num_stages)

    def compilation(self, name: str, tensor_cores: bool) -> Compilation:
        """What Triton compiles for this launch, tensors being aligned to 16 bytes."""
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        divisible: list[str] = []
        for parameter in self.kernel.params:
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                constants[parameter.name] = value
            elif isinstance(value, Tensor):
                signature[parameter.name] = POINTERS[value.dtype]
                divisible.append(parameter.name)
            elif isinstance(value, float):
                signature[parameter.name] = "fp32"
            elif parameter.do_not_specialize:
                signature[parameter.name] = _integer(value)
            elif value == 1:
                constants[parameter.name] = 1
            else:
                signature[parameter.name] = _integer(value)
                if value % 16 == 0:
                    divisible.append(parameter.name)
        return Compilation(
            name, self.kernel, signature, constants, tuple(divisible), self.num_warps, self.num_stages, tensor_cores
        )


def _integer(value: int) -> str:
    return "i32" if -(2**31) <= value < 2**31 else "i64"
