"""Small models with fixed weights, and one explainer of each that tests share (a capture takes longer than a test)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp import Composite, Explainer


class Segment(nn.Module):
    """(B, 2, 6, 6) -> (B, 3, 3, 3): the classes of a map of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(F.relu(self.body(x))))


class Score(nn.Module):
    """(B, 4) -> (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(4, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.hidden(x))).squeeze(1)


class Reused(nn.Module):
    """One ReLU module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.relu = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.relu(self.b(self.relu(self.a(x)))))


class Residual(nn.Module):
    """(B, 3, 8, 8) -> (B, 4): batch norm, a skip connection, an average over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.inner(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Spatial(nn.Module):
    """(B, 3, any, any) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


class TwoInputs(nn.Module):
    """Two float inputs of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(F.relu(self.left(left) + self.right(right)))


def convnet() -> nn.Sequential:
    """(B, 3, 8, 8) -> (B, 5)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 5),
    )  # fmt: skip


def mlp() -> nn.Sequential:
    """(B, 4) -> (B, 3)."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convnet": (convnet, (3, 8, 8)),
    "mlp": (mlp, (4,)),
    "segment": (Segment, (2, 6, 6)),
    "score": (Score, (4,)),
    "reused": (Reused, (4,)),
    "residual": (Residual, (3, 8, 8)),
    "spatial": (Spatial, (3, 7, 5)),
}


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A new model in evaluation mode, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[name][0]().to(dtype).eval()


@cache
def same(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """:func:`make`, the same model for all tests, which do not change it: what was captured of it is shared."""
    return make(name, dtype)


def samples(name: str, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Input of both signs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *MODELS[name][1], generator=generator, dtype=torch.float64).to(dtype)


@cache
def shared(name: str, composite: str | Composite = "epsilon_plus", **options: Any) -> Explainer:
    """An explainer of a float64 model that no test changes."""
    return Explainer(make(name), composite, **options)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """In the Euclidean norm."""
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape, f"{tuple(found.shape)} and {tuple(expected.shape)}"
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def gradient_times_input(model: nn.Module, x: Tensor) -> Tensor:
    """For networks of ReLU, max-pool and affine layers it is LRP-0 of every output ``(B, C)``: ``(B, C, *x)``."""
    point = x.clone().requires_grad_()
    y = model(point)
    grads = [torch.autograd.grad(y[:, c].sum(), point, retain_graph=True)[0] for c in range(y.shape[1])]
    return torch.stack(grads, 1) * x.unsqueeze(1)
