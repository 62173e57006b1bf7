"""How the kernels for a network's input take maps: by strides, their spatial axes padded to three."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

SIZES = [f"{name}_{axis}" for name in "SOkspd" for axis in "zyx"]
"""Arguments of a kernel that :func:`geometry` gives."""


@triton.jit
def load_tile(map, place, o, stride, inside, is_o, LAST: tl.constexpr):
    """A tile (positions, channels) where channels are innermost in memory, else (channels, positions)."""
    if LAST:
        tile = tl.load(map + place[:, None] + o[None, :] * stride, mask=inside[:, None] & is_o[None, :], other=0.0)
    else:
        tile = tl.load(map + o[:, None] * stride + place[None, :], mask=is_o[:, None] & inside[None, :], other=0.0)
    return tile


def geometry(*numbers: Sequence[int]) -> dict[str, int]:
    """Sizes of input and output, kernel, stride, padding, dilation, for three axes."""
    return {
        name: value
        for letter, each, missing in zip("SOkspd", numbers, (1, 1, 1, 1, 0, 1), strict=True)
        for name, value in by_axis(letter, each, missing).items()
    }


def by_axis(letter: str, numbers: Sequence[int], missing: int) -> dict[str, int]:
    """One for each of three axes, the leading ones ``missing`` where there are fewer."""
    padded = [missing] * (3 - len(numbers)) + list(numbers)
    return {f"{letter}_{axis}": number for axis, number in zip("zyx", padded, strict=True)}


def strides(names: str, tensor: Tensor | None) -> dict[str, int]:
    """Strides under the name and the axes' letters, those of missing spatial axes 0."""
    name, letters = names.split("_")
    given = [] if tensor is None else list(tensor.stride())
    leading = len(letters) - 3
    missing = [0] * (len(letters) - len(given))
    return dict(zip((f"{name}_{axis}" for axis in letters), given[:leading] + missing + given[leading:], strict=True))


def is_last(tensor: Tensor, channel: int) -> bool:
    """Whether channels are innermost in memory."""
    return tensor.shape[channel] > 1 and tensor.stride(channel) == 1


def as_flow(u: Tensor, relevance: Tensor) -> Tensor:
    """The coefficient in the relevance's memory order: every target reads it again."""
    last = is_last(relevance, 2)
    if is_last(u, 1) == last:
        return u
    return u.movedim(1, -1).contiguous().movedim(-1, 1) if last else u.contiguous()
