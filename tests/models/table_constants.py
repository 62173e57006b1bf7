"""Bodies of the table in which a parameter is changed before an activation meets it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.models.cases import Body


def _scalar_of_a_weight(m: Any, x: Tensor) -> Tensor:
    return x * m.p.sum().item()


def _no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        p = m.p * 2
    return x * p


def _autocast_off(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = x * m.p
    return y + 1


def _grid(m: Any, x: Tensor) -> Tensor:
    a, b = torch.meshgrid(torch.arange(2), torch.arange(4), indexing="ij")
    return x * (a + b).flatten() * m.p


def _relative_positions(m: Any, x: Tensor) -> Tensor:
    n = torch.arange(x.shape[1])
    return x * m.p[(n[:, None] - n[None, :]).abs().clamp(max=7)].sum(1)


CONSTANTS: dict[str, Body] = {
    "chunk": lambda m, x: x * m.p.chunk(2)[0].repeat(2) + m.p.chunk(2)[1].repeat(2),
    "split": lambda m, x: x * torch.cat(m.p.split([3, 5])[::-1]),
    "unbind": lambda m, x: x * m.p.unbind(0)[1],
    "max": lambda m, x: x * m.p.max(0)[0] + m.p.max(0)[1],
    "topk": lambda m, x: x * m.p.topk(3)[0].sum(),
    "sort": lambda m, x: x * m.p.sort()[0],
    "std_mean": lambda m, x: x * torch.std_mean(m.p)[0] + torch.std_mean(m.p)[1],
    "meshgrid": _grid,
    "float64": lambda m, x: x * m.p.to(torch.float64),
    "float32_and_back": lambda m, x: x * m.p.float().double(),
    "arange_of_a_size": lambda m, x: x * torch.arange(x.shape[1]) + m.p,
    "positions": _relative_positions,
    "zeros_of_the_batch": lambda m, x: x * m.p + torch.zeros(x.shape[0], 8),
    "cat_zeros_of_the_batch": lambda m, x: torch.cat([torch.zeros(len(x), 3), x * m.p, x.new_ones(len(x), 1)], 1),
    "parts_of_the_batch_size": lambda m, x: x * m.p + torch.ones(len(x), 8).chunk(2, 1)[0].repeat(1, 2),
    "batch_of_indices": lambda m, x: x * m.p + torch.arange(len(x))[:, None] * 0,
    "expand": lambda m, x: x * m.p.expand(len(x), -1),
    "embedding": lambda m, x: x * F.embedding(torch.tensor([1, 2, 3, 4, 5, 6, 7, 0]), m.p[:, None])[:, 0],
    "svd": lambda m, x: x * torch.linalg.svd(torch.outer(m.p, m.p))[1],
    "complex_inside": lambda m, x: x * torch.fft.fft(m.p).abs(),
    "item": _scalar_of_a_weight,
    "no_grad": _no_grad,
    "autocast_off": _autocast_off,
    "deep": lambda m, x: x * _deep(m.p),
    "in_place": lambda m, x: x * (m.p * 1).mul_(2).add_(1),
    "in_place_on_a_slice": lambda m, x: x * _sliced(m.p),
    "index_put": lambda m, x: x * torch.zeros(8, dtype=m.p.dtype).index_put_((torch.tensor([1, 3]),), m.p[:2]),
    "register_tokens": lambda m, x: torch.cat([m.p.view(1, 8).expand(len(x), -1), x], 1),
    "random": lambda m, x: x + torch.rand(8),
    "random_like": lambda m, x: x + torch.randn_like(x),
}


def _deep(p: Tensor) -> Tensor:
    for _ in range(30):
        p = p + p * 0.1
    return p


def _sliced(p: Tensor) -> Tensor:
    q = torch.ones(8, dtype=p.dtype)
    q[2:4] = p[:2]
    q[0] = 0
    return q
