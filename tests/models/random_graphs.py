"""Small random models from the whole vocabulary, with every axis in every place: most mix samples somewhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[Tensor], Tensor]
BATCH = 3


def constant(rng: random.Random, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)), dtype=torch.float64)


def _elementwise(rng: random.Random, h: Tensor, d: int) -> Step:
    return rng.choice([
        torch.relu, torch.sigmoid, torch.tanh, F.gelu, F.silu, F.leaky_relu, torch.abs, torch.square, torch.exp, F.elu,
        F.softplus, F.hardtanh, torch.sin, torch.neg, lambda h: h.clamp(min=0.1),
        lambda h: torch.where(h > 0, h, 0.1 * h), lambda h: h * 0.5 + 1, lambda h: 1 - h,
        lambda h: h * (h > 0), lambda h: h.masked_fill(h < -1, 0.0),
    ])  # fmt: skip


def _along(rng: random.Random, h: Tensor, d: int) -> Step:
    """Operations that keep the shape and work along one axis."""
    n = h.shape[d]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(rng.randrange(99)))
    return rng.choice([
        lambda h: h.softmax(d), lambda h: h.log_softmax(d), lambda h: h.cumsum(d), lambda h: h.roll(1, d),
        lambda h: h.flip(d), lambda h: h.sort(d)[0], lambda h: h / h.norm(dim=d, keepdim=True),
        lambda h: h - h.mean(d, keepdim=True), lambda h: h / (h.abs().amax(d, keepdim=True) + 1),
        lambda h: h.logcumsumexp(d), lambda h: h * h.mean(d, keepdim=True).sigmoid(), lambda h: F.normalize(h, dim=d),
        lambda h: h.cummax(d)[0], lambda h: F.softmin(h, d), lambda h: h.index_select(d, order),
        lambda h: h * F.one_hot(h.argmax(d), h.shape[d]).movedim(-1, d).to(h.dtype), lambda h: h.cumprod(d),
        lambda h: h.gather(d, torch.zeros_like(h, dtype=torch.long)), lambda h: h.gather(d, h.argsort(d)),
        lambda h: torch.cat([h, h.flip(d)], d).narrow(d, 0, h.shape[d]),
        lambda h: h.repeat_interleave(2, d).narrow(d, 0, n),
        lambda h: h - h.sum(d, keepdim=True) / h.shape[d], lambda h: h.take_along_dim(h.argsort(d), d),
        lambda h: h.unsqueeze(d).softmax(d).squeeze(d), lambda h: (h > h.mean(d, keepdim=True)) * h,
        lambda h: h / h.shape[d],
        lambda h: torch.zeros_like(h).scatter(d, h.argsort(d), h), lambda h: h.diff(dim=d, prepend=h.narrow(d, 0, 1)),
        lambda h: h.movedim(d, -1).softmax(-1).movedim(-1, d), lambda h: h.transpose(0, d).relu().transpose(0, d),
        lambda h: h.index_add(d, torch.zeros(n, dtype=torch.long), h) if d % h.dim() else h.cumsum(d),
    ])  # fmt: skip


def _resize(rng: random.Random, h: Tensor, d: int) -> Step:
    """Operations that change the shape along one axis."""
    n, value = h.shape[d], rng.choice([0.0, 2.0, -1.5, 7.0])
    axes = h.dim() - d % h.dim()
    return rng.choice([
        lambda h: F.pad(h, (0, 0) * (axes - 1) + (1, 1), value=value), lambda h: h.narrow(d, 0, max(1, n - 1)),
        lambda h: h.select(d, 0), lambda h: h.unsqueeze(d), lambda h: h.mean(d), lambda h: h.sum(d),
        lambda h: h.amax(d),
        lambda h: h.repeat_interleave(2, d), lambda h: torch.cat([h, h * 2], d), lambda h: torch.stack([h, h + 1], d),
        lambda h: h.chunk(2, d)[0], lambda h: h.unbind(d)[-1], lambda h: h.unsqueeze(d).expand(*_expanded(h, d)),
        lambda h: h[(slice(None),) * (d % h.dim()) + ([0, 0],)], lambda h: h.unfold(d, 2, 1), lambda h: h.max(d)[0],
        lambda h: h[(slice(None),) * (d % h.dim()) + (slice(None, None, 2),)], lambda h: h.median(d)[0],
        lambda h: F.pad(h, (1, 1), value=value), lambda h: h.repeat(2, *[1] * (h.dim() - 1)), lambda h: h.tile(2),
    ])  # fmt: skip


def _expanded(h: Tensor, d: int) -> list[int]:
    sizes = [-1] * (h.dim() + 1)
    sizes[d] = 2
    return sizes


def _whole(rng: random.Random, h: Tensor, d: int) -> Step:
    """Reductions of everything, views, and what reads the number of samples."""
    e = rng.randrange(h.dim())
    return rng.choice([
        lambda h: h / h.norm(), lambda h: h / h.max(), lambda h: h - h.mean(), lambda h: h / h.std(),
        lambda h: h * h.shape[0], lambda h: h[torch.arange(h.shape[0]).flip(0)], lambda h: h[torch.arange(h.shape[0])],
        lambda h: h + torch.arange(h.shape[0], dtype=h.dtype).view(-1, *[1] * (h.dim() - 1)), lambda h: h.roll(1),
        lambda h: h.transpose(d, e), lambda h: h.flatten(d % h.dim()), lambda h: h.reshape(h.shape[0], -1),
        lambda h: h.flatten(0, 1) if h.dim() > 1 else h, lambda h: h.permute(*range(h.dim())[::-1]), lambda h: h.tril(),
        lambda h: h + h.new_zeros(h.shape[0], *[1] * (h.dim() - 1)), lambda h: h.reshape(-1, h.shape[-1]),
        lambda h: h.transpose(0, -1).reshape(h.shape), lambda h: h.t() if h.dim() == 2 else h.mT,
        lambda h: h.flip(0, -1),
        lambda h: h + h.flatten(1).sum(1).view(-1, *[1] * (h.dim() - 1)), lambda h: (h != h.max()) * h,
    ])  # fmt: skip


def _layers(rng: random.Random, h: Tensor, d: int) -> Step:
    """Layers with a weight, norms, pools, products."""
    n = h.shape[-1]
    weight, left, table = constant(rng, 4, n), constant(rng, h.shape[-2] if h.dim() > 1 else 1, 4), constant(rng, n)
    channels = h.shape[1] if h.dim() > 1 else 1
    kernel = constant(rng, 4, channels, *[2] * max(1, h.dim() - 2))
    ones, groups = torch.ones(channels, dtype=h.dtype), rng.choice([1, channels])
    last = tuple(h.shape[d:])
    convolution = {1: F.conv1d, 2: F.conv2d}.get(h.dim() - 2, F.conv1d)
    pools = {
        1: (F.avg_pool1d, F.max_pool1d, F.adaptive_avg_pool1d),
        2: (F.avg_pool2d, F.max_pool2d, F.adaptive_avg_pool2d),
    }
    pool = rng.choice(pools.get(rng.choice([1, 2]), pools[1]))
    letters = "abcd"[: h.dim()]
    other = letters.replace(letters[d], "z")
    return rng.choice([
        lambda h: F.linear(h, weight), lambda h: h @ weight.T, lambda h: left.T @ h, lambda h: convolution(h, kernel),
        lambda h: F.layer_norm(h, last), lambda h: F.group_norm(h, groups), lambda h: F.instance_norm(h),
        lambda h: F.batch_norm(h, ones, ones), lambda h: F.rms_norm(h, last), lambda h: pool(h, 2), lambda h: h * table,
        lambda h: F.linear(h.mT, _square(left)).mT, lambda h: h @ h.mT, lambda h: (h @ h.mT) @ h, lambda h: h + table,
        lambda h: torch.einsum(f"{letters},{letters}->{letters}", h, h), lambda h: torch.cdist(h, h),
        lambda h: torch.einsum(f"{letters},{other}->{other}", h, h), lambda h: F.interpolate(h, scale_factor=2),
        lambda h: F.interpolate(h, scale_factor=2, mode="linear"),
        lambda h: torch.einsum(f"{letters}->{letters[::-1]}", h),
        lambda h: F.prelu(h, ones), lambda h: h - h.unsqueeze(0).mean(1), lambda h: h + h.flip(d),
        lambda h: h * h.roll(1, d),
        lambda h: F.pad(h, (1, 1), mode=rng.choice(["reflect", "replicate", "circular"])), lambda h: F.unfold(h, 2),
        lambda h: torch.einsum(f"{letters},{letters}->{letters[d]}", h, h), lambda h: h.sum(d, keepdim=True) * h,
        lambda h: F.scaled_dot_product_attention(h, h, h), lambda h: torch.maximum(h, h.flip(d)),
        lambda h: h.expand_as(h),
        lambda h: F.normalize(h, dim=-1), lambda h: F.pixel_unshuffle(h, 2), lambda h: F.bilinear(h, h, kernel_of(h)),
    ])  # fmt: skip


def kernel_of(h: Tensor) -> Tensor:
    n = h.shape[-1]
    return torch.linspace(-1, 1, 2 * n * n, dtype=h.dtype).view(2, n, n)


def _square(left: Tensor) -> Tensor:
    return left @ left.T


KINDS = (_elementwise, _along, _along, _resize, _whole, _layers, _layers)


class RandomModel(nn.Module):
    """A few random steps and a linear layer; what lost its batch axis is brought back to every sample."""

    def __init__(self, rng: random.Random, x: Tensor, steps: int) -> None:
        super().__init__()
        self.steps: list[Step] = []
        h = x
        for _ in range(200):
            if len(self.steps) == steps:
                break
            step = rng.choice(KINDS)(rng, h, rng.randrange(-h.dim(), h.dim()) if h.dim() else 0) if h.dim() else None
            try:
                made = step(h) if step is not None else h + 1
            except (RuntimeError, IndexError, ValueError, NotImplementedError, TypeError, AssertionError):
                continue
            if step is None or not 0 < made.numel() < 3000 or made.dim() > 4 or not bool(made.isfinite().all()):
                continue
            self.steps.append(step)
            h = made
        torch.manual_seed(rng.randrange(1 << 30))
        self.back = h.dim() == 0 or h.shape[0] != BATCH
        self.last = nn.Linear(x[0].numel() if self.back else h[0].numel(), 4, dtype=x.dtype)

    def forward(self, x: Tensor) -> Any:
        h = x
        for step in self.steps:
            h = step(h)
        h = x.flatten(1) + h.mean() if self.back else h.reshape(h.shape[0], -1)
        return self.last(h)


def random_model(seed: int) -> tuple[RandomModel, Tensor]:
    """A model in float64 and three samples for it."""
    rng = random.Random(seed)
    shape = rng.choice([(5,), (4,), (3, 4), (2, 6), (5, 4), (2, 4, 4), (4, 3, 4)])
    x = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return RandomModel(rng, x, rng.choice([1, 2, 2, 3, 4])).eval(), x
