"""Geometries of pools, and the arguments of each operation of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from tests.ops.cases import (
    mixed,
)

MAX, TIES = "pool_max_relevance", "pool_ties_relevance"
AVG, ADAPTIVE = "pool_avg_relevance", "pool_adaptive_avg_relevance"
ALL = (MAX, TIES, AVG, ADAPTIVE)


@dataclass(frozen=True)
class Pool:
    S: tuple[int, ...]
    kernel: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] = 2
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    ceil_mode: bool = False
    B: int = 2
    K: int = 3
    C: int = 3

    def lists(self) -> tuple[list[int], ...]:
        numbers = (self.kernel, self.stride, self.padding, self.dilation)
        return tuple([a] * len(self.S) if isinstance(a, int) else list(a) for a in numbers)


POOLS = [
    Pool((6, 4)),
    Pool((7, 5)),
    Pool((7, 5), ceil_mode=True),
    Pool((7, 9), kernel=3, stride=2, padding=1),
    Pool((8, 7), kernel=3, stride=1, padding=1, ceil_mode=True),
    Pool((9, 11), kernel=3, stride=2, padding=1, dilation=2),
    Pool((5, 5), kernel=2, stride=3),
    Pool((1, 1), kernel=1, stride=1, B=1, K=1, C=1),
    Pool((4, 4), K=1, B=1),
    Pool((4, 4), B=0),
    Pool((4, 4), K=0),
    Pool((13,), kernel=3, stride=2),
    Pool((5, 4, 6), kernel=2, stride=2),
    Pool((6, 6), C=67),
    Pool((3, 3), kernel=3, stride=1, C=130, K=2),
    Pool((5, 6), C=70, K=9),
    Pool((3, 2), kernel=5, stride=1, padding=2),
    Pool((2, 3), kernel=4, stride=3, padding=2, ceil_mode=True, C=17),
    Pool((7, 11), kernel=(3, 1), stride=(1, 2), padding=(1, 0), C=16),
    Pool((11, 13), kernel=3, stride=2, padding=1, dilation=3, C=33),
    Pool((11, 13), kernel=3, stride=(4, 6), padding=1, dilation=(2, 4)),
    Pool((17,), kernel=5, stride=1, padding=2, ceil_mode=True, C=1),
    Pool((23,), kernel=2, stride=5, C=31),
    Pool((5, 3, 7), kernel=(2, 3, 1), stride=(1, 2, 3), padding=(1, 1, 0), ceil_mode=True),
    Pool((1, 7, 5), kernel=(1, 3, 3), stride=1, padding=(0, 1, 1), C=19),
]
COUNTS = ((True, None), (False, None), (True, 3))  # count_include_pad, divisor_override
AVERAGES = [(p, *count) for p in POOLS if p.dilation == 1 for count in COUNTS]


def max_pool(p: Pool, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(p.S)]
    kernel, stride, padding, dilation = p.lists()
    flat = x if x.shape[0] else x.new_zeros(1, *x.shape[1:])  # max_pool takes no empty batch everywhere
    output, index = pool(flat, kernel, stride, padding, dilation, p.ceil_mode, True)
    return output[: x.shape[0]], index[: x.shape[0]]


def arguments(op: str, p: Pool, dtype: torch.dtype) -> tuple[Any, ...]:
    """Of any of the operations, where a map of the pool's size arrives."""
    kernel, stride, padding, dilation = p.lists()
    x = torch.randint(-2, 2, (p.B, p.C, *p.S)).to(dtype)
    output, index = max_pool(p, x)
    r, scale = mixed(p.B, p.K, *output.shape[1:], dtype=dtype), mixed(*output.shape, dtype=dtype)
    rest: dict[str, tuple[Any, ...]] = {
        MAX: (index, scale, list(p.S)),
        TIES: (x, output, scale, kernel, stride, padding, dilation),
        AVG: (scale, list(p.S), kernel, stride, padding, p.ceil_mode, True, None),
        ADAPTIVE: (scale, list(p.S)),
    }
    return r, *rest[op]
