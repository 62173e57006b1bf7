"""Small random models in which the batch axis wanders: moved to another place, folded with an axis, and back."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.random_graphs import constant

Step = Callable[[Tensor, int], tuple[Tensor, int]]
"""From a tensor and the place of its batch axis to the next."""


def _kept(change: Callable[[Tensor], Tensor]) -> Step:
    return lambda h, at: (change(h), at)


def _move(rng: random.Random, h: Tensor, at: int) -> Step:
    to = rng.randrange(h.dim())
    other = rng.randrange(h.dim())
    swapped = {at: other, other: at}.get(at, at)
    return rng.choice([
        lambda h, at: (h.movedim(at, to), to),
        lambda h, at: (h.transpose(at, other), swapped),
        lambda h, at: (h.permute(*range(h.dim())[::-1]), h.dim() - 1 - at),
        lambda h, at: (h.unsqueeze(0), at + 1),
        lambda h, at: (torch.stack([h, 0.5 * h], 0), at + 1),
    ])  # fmt: skip


def _fold(rng: random.Random, h: Tensor, at: int) -> Step:
    """The batch and the axis behind it as one, and apart again."""
    inner = rng.choice(["linear", "norm", "conv", "relu", "softmax", "pool", "view", "cat"])
    major = rng.random() < 0.5
    last = h.movedim(at, 0).shape[-1]
    weight, kernel = constant(rng, last, last), constant(rng, 1, 1, 3)

    def step(h: Tensor, at: int) -> tuple[Tensor, int]:
        h = h.movedim(at, 0)
        if h.dim() < 3:
            return h, 0
        h = h if major else h.transpose(0, 1)
        lead, sizes = h.shape[:2], h.shape[2:]
        f = h.flatten(0, 1) if inner != "view" else h.contiguous().view(-1, *sizes)
        if inner == "linear":
            f = F.linear(f, weight)
        elif inner == "norm":
            f = F.layer_norm(f, (last,))
        elif inner == "conv":
            f = F.conv1d(f.reshape(-1, 1, last), kernel, padding=1).reshape(f.shape)
        elif inner == "softmax":
            f = f.softmax(-1) * f
        elif inner == "pool":
            f = F.avg_pool1d(f.reshape(-1, 1, last), 3, 1, 1).reshape(f.shape)
        elif inner == "cat":
            f = torch.cat([f, f.relu()], -1)[..., :last]
        else:
            f = f.relu() + f
        h = f.view(*lead, *sizes)
        return (h, 0) if major else (h, 1)

    return step


def _along(rng: random.Random, h: Tensor, at: int) -> Step:
    """Something along another axis than the batch."""
    axes = [d for d in range(h.dim()) if d != at]
    if not axes:
        return _kept(torch.tanh)
    d = rng.choice(axes)
    n = h.shape[d]
    shape = [1] * h.dim()
    shape[d] = n
    table, order = constant(rng, *shape), torch.randperm(n, generator=torch.Generator().manual_seed(rng.randrange(99)))
    matrix = constant(rng, n, n)
    letters = "abcdef"[: h.dim()]
    equation = f"{letters},{letters[d]}z->{letters.replace(letters[d], 'z')}"
    summed, down = f"{letters}->{letters.replace(letters[d], '')}", at - (d < at)
    return rng.choice([
        _kept(lambda h: h.softmax(d)), _kept(lambda h: h.cumsum(d)), _kept(lambda h: h.flip(d)),
        _kept(lambda h: h.roll(1, d)), _kept(lambda h: h * table), _kept(lambda h: table + h),
        _kept(lambda h: h - h.mean(d, keepdim=True)), _kept(lambda h: h.index_select(d, order)),
        _kept(lambda h: torch.cat([h, h.sin()], d).narrow(d, 0, n)), _kept(lambda h: torch.where(h > 0, h, table)),
        _kept(lambda h: h.logcumsumexp(d)), _kept(lambda h: h * h.amax(d, keepdim=True).sigmoid()),
        _kept(lambda h: h.gather(d, h.argsort(d))), _kept(lambda h: torch.einsum(equation, h, matrix)),
        _kept(lambda h: h.movedim(d, -1).matmul(matrix).movedim(-1, d)), _kept(torch.tanh),
        _kept(lambda h: F.normalize(h, dim=d)), _kept(lambda h: h.masked_fill(table > 0.5, 0.3)),
        _kept(lambda h: torch.stack(h.unbind(d), d)), _kept(lambda h: h.expand_as(h)),
        _kept(lambda h: F.pad(h.movedim(d, -1), (1, 0))[..., :n].movedim(-1, d)),
        lambda h, at: (h.sum(d), down), lambda h, at: (h.select(d, -1), down),
        lambda h, at: (h.amax(d), down), lambda h, at: (torch.einsum(summed, h), down),
    ])  # fmt: skip


class RandomTravel(nn.Module):
    """A few random steps, the batch brought to the front, and a linear layer."""

    def __init__(self, rng: random.Random, x: Tensor, steps: int) -> None:
        super().__init__()
        self.steps: list[Step] = []
        h, at = x, 0
        while len(self.steps) < steps:
            step = rng.choice([_move, _move, _fold, _along, _along])(rng, h, at)
            made, to = step(h, at)
            if not 1 < made.numel() < 2000 or made.dim() > 5:
                continue
            self.steps.append(step)
            h, at = made, to
        torch.manual_seed(rng.randrange(1 << 30))
        self.last = nn.Linear(h.numel() // x.shape[0], 4, dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        h, at = x, 0
        for step in self.steps:
            h, at = step(h, at)
        result: Tensor = self.last(h.movedim(at, 0).flatten(1) if h.dim() > 1 else h.unsqueeze(1))
        return result


def random_travel(seed: int) -> tuple[RandomTravel, Tensor]:
    """A model in float64 and three samples for it."""
    rng = random.Random(seed)
    shape = rng.choice([(4,), (3, 4), (2, 6), (2, 4, 4), (5, 4)])
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return RandomTravel(rng, x, rng.choice([3, 4, 5, 6])).eval(), x
