"""Operations of the random graphs without a layer of weights: each makes a function for the sizes of its operands."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Op(nn.Module):
    """One operation on one or two values. ``parts``: its parameters and modules."""

    def __init__(self, name: str, function: Callable[..., Tensor], parts: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.function = name, function
        for key, part in parts.items():
            if isinstance(part, Tensor):
                self.register_parameter(key, nn.Parameter(part, requires_grad=part.is_floating_point()))
            else:
                setattr(self, key, part)

    def forward(self, *operands: Tensor) -> Tensor:
        return self.function(self, *operands)

    def extra_repr(self) -> str:
        return self.name


Made = tuple[Callable[..., Tensor], dict[str, Any]] | None
"""The function and its parts; None if the operands' sizes do not fit."""

Make = Callable[..., Made]
"""``make(random, sizes of each operand…)``."""


def _axis(r: random.Random, sizes: tuple[int, ...]) -> int:
    return r.randrange(1, len(sizes) + 1)


def _plain(function: Callable[..., Tensor]) -> Make:
    return lambda r, *sizes: (lambda self, *operands: function(*operands), {})


def _slice(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    size = sizes[axis - 1]
    if size < 2:
        return None
    start = r.randrange(0, size - 1)
    length = r.randrange(1, size - start + 1)
    return lambda self, x: x.narrow(axis, start, length), {}


def _strided(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] < 3:
        return None
    return lambda self, x: x[..., ::2], {}


def _select(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) < 2:
        return None
    axis = _axis(r, sizes)
    at = r.randrange(sizes[axis - 1])
    return lambda self, x: x.select(axis, at), {}


def _pad(r: random.Random, sizes: tuple[int, ...]) -> Made:
    before, after, value = r.randrange(2), r.randrange(1, 3), r.choice([0.0, 0.0, 1.5])
    return lambda self, x: F.pad(x, (before, after), value=value), {}


def _flip(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    return lambda self, x: x.flip(axis), {}


def _roll(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    return lambda self, x: x.roll(1, axis), {}


def _transpose(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) < 2:
        return None
    a, b = r.sample(range(1, len(sizes) + 1), 2)
    return lambda self, x: x.transpose(a, b), {}


def _unflatten(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] % 2 or len(sizes) > 2:
        return None
    return lambda self, x: x.unflatten(-1, (2, -1)), {}


def _flatten(r: random.Random, sizes: tuple[int, ...]) -> Made:
    return (lambda self, x: x.flatten(1), {}) if len(sizes) > 1 else None


def _expand(r: random.Random, sizes: tuple[int, ...]) -> Made:
    return lambda self, x: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]), {}


def _mean(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) < 2 and r.random() < 0.7:
        return None
    axis, keep, total = _axis(r, sizes), len(sizes) < 2 or r.random() < 0.5, r.random() < 0.3
    return lambda self, x: (torch.sum if total else torch.mean)(x, axis, keepdim=keep), {}


def _amax(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    return lambda self, x: x.amax(axis, keepdim=True), {}


def _scaled(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if r.random() < 0.5:
        number = r.choice([0.5, -2.0, 3.0])
        return (lambda self, x: x * number) if r.random() < 0.5 else (lambda self, x: x / number), {}
    gain = torch.randn(sizes[-1])
    return lambda self, x: x * self.gain, {"gain": gain}


def _plus(r: random.Random, sizes: tuple[int, ...]) -> Made:
    form = r.randrange(4)
    shift = torch.randn(sizes[-1] if r.random() < 0.5 else sizes)
    if form == 0:
        return lambda self, x: x + self.shift, {"shift": shift}
    if form == 1:
        return lambda self, x: self.shift - x, {"shift": shift}
    if form == 2:
        return lambda self, x: x + 0.7, {}
    return lambda self, x: 1 - x, {}


def _chunks(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] < 2 or sizes[-1] % 2:
        return None

    def crossed(self: Op, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((b, a.relu()), -1)

    return crossed, {}


def _index(r: random.Random, sizes: tuple[int, ...]) -> Made:
    index = torch.tensor([r.randrange(sizes[-1]) for _ in range(3)])
    return lambda self, x: x[..., self.index], {"index": index}


def _gate(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    return lambda self, x, y: x * torch.sigmoid(y), {}


def _sub(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    # Not ``x - x``: of zeros nothing but rounding is left, which no comparison knows the size of.
    return lambda self, x, y: x - (0.5 * y if x is y else y), {}


def _cat(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    axis = _axis(r, a)
    return lambda self, x, y: torch.cat((x, y), axis), {}


def _cat_own(r: random.Random, sizes: tuple[int, ...]) -> Made:
    axis = _axis(r, sizes)
    return r.choice([
        lambda self, x: torch.cat((x, x), axis),
        lambda self, x: torch.cat((x, x + x), axis),
        lambda self, x: torch.stack((x, x.relu()), axis),
        lambda self, x: torch.cat((torch.ones_like(x), x), axis),
    ]), {}  # fmt: skip


def _broadcast_add(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    return lambda self, x, y: x + y.mean(-1, keepdim=True), {}


def _matmul(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    return (lambda self, x, y: x @ y.transpose(-1, -2), {}) if len(a) == 2 else None


def _where(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    mask = torch.rand(a) < 0.5
    return r.choice([
        lambda self, x, y: torch.where(self.mask, x, y),
        lambda self, x, y: torch.where(x > 0, x, y),
        lambda self, x, y: torch.maximum(x, y),
    ]), {"mask": mask}  # fmt: skip


def _einsum(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    return (lambda self, x, y: torch.einsum("bij,bkj->bik", x, y), {}) if len(a) == 2 else None


def _masked(r: random.Random, sizes: tuple[int, ...]) -> Made:
    mask = torch.rand(sizes) < 0.3
    mask[..., 0] = False  # A softmax of nothing is NaN.
    return r.choice([
        lambda self, x: x.masked_fill(self.mask, 0.0),
        lambda self, x: x.masked_fill(self.mask, float("-inf")).softmax(-1),
        lambda self, x: x * self.mask,
    ]), {"mask": mask}  # fmt: skip


def _smooth(r: random.Random, sizes: tuple[int, ...]) -> Made:
    return r.choice([
        lambda self, x: F.normalize(x, dim=-1), lambda self, x: x.cumsum(-1), lambda self, x: x.clamp(min=0.1),
        lambda self, x: x.abs(), lambda self, x: F.pad(x, (1, 1), value=float("-inf")).amax(-1, keepdim=True),
        lambda self, x: F.elu(x), lambda self, x: F.softplus(x), lambda self, x: x.exp(),
    ]), {}  # fmt: skip


def _statistics(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] < 3:
        return None
    return r.choice([
        lambda self, x: x.std(-1, keepdim=True), lambda self, x: x.logsumexp(-1, keepdim=True),
        lambda self, x: x.norm(dim=-1, keepdim=True), lambda self, x: x.prod(-1, keepdim=True),
        lambda self, x: x.topk(2, -1).values, lambda self, x: x.sort(-1).values, lambda self, x: x.var(-1),
        lambda self, x: x / (x.abs().sum(-1, keepdim=True) + 1), lambda self, x: x - x.mean(-1, keepdim=True),
        lambda self, x: F.glu(F.pad(x, (0, x.shape[-1] % 2)), -1), lambda self, x: x.log_softmax(-1),
    ]), {}  # fmt: skip


def _cross(r: random.Random, a: tuple[int, ...], b: tuple[int, ...]) -> Made:
    if len(a) != 2:
        return None
    if r.random() < 0.6:
        return lambda self, x, y: F.scaled_dot_product_attention(x, y, y), {}
    return lambda self, x, y: self.map(x, y), {"map": nn.Bilinear(a[1], b[1], 2)}


ONE: dict[str, tuple[Make, float]] = {
    "softmax": (_plain(lambda x: x.softmax(-1)), 0.7),
    "mean": (_mean, 2),
    "amax": (_amax, 0.5),
    "scaled": (_scaled, 2),
    "plus": (_plus, 2),
    "doubled": (_plain(lambda x: x + x), 1),
    "squared": (_plain(lambda x: x * x), 0.7),
    "negative": (_plain(lambda x: -x), 0.5),
    "self_less": (_plain(lambda x: x - 0.5 * x), 0.5),
    "slice": (_slice, 1),
    "strided": (_strided, 0.5),
    "select": (_select, 0.5),
    "pad": (_pad, 1),
    "flip": (_flip, 1),
    "roll": (_roll, 0.5),
    "transpose": (_transpose, 1),
    "unflatten": (_unflatten, 0.5),
    "flatten": (_flatten, 0.7),
    "expand": (_expand, 0.5),
    "chunks": (_chunks, 0.7),
    "index": (_index, 0.5),
    "cat_own": (_cat_own, 1.5),
    "masked": (_masked, 0.7),
    "smooth": (_smooth, 1.5),
    "statistics": (_statistics, 1),
}
"""Of one value, each with how often it is taken."""

TWO: dict[str, tuple[Make, float]] = {
    "add": (_plain(torch.add), 3),
    "sub": (_sub, 2),
    "mul": (_plain(torch.mul), 1.5),
    "gate": (_gate, 1),
    "cat": (_cat, 2),
    "broadcast_add": (_broadcast_add, 1),
    "matmul": (_matmul, 1),
    "where": (_where, 0.7),
    "einsum": (_einsum, 0.5),
    "cross": (_cross, 0.7),
}
"""Of two values of one shape."""
