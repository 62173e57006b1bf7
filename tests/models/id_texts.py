"""A model that looks ids up, with bodies of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlrp import composites, rules
from tests.models.cases import Written

VOCABULARY, LENGTH, WIDTH = 11, 7, 6
TARGETS = [0, 2, 3]


def ids(samples: int = 3, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(1, VOCABULARY, (samples, LENGTH), generator=torch.Generator().manual_seed(3), dtype=dtype)


class Text(nn.Module):
    """Embedding, then a body of floats; the body alone is what other tests explain."""

    def __init__(self, body: nn.Module, prepare: Callable[[Any, Tensor], Tensor] = lambda m, x: x) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.body, self.prepare = body, prepare

    def forward(self, x: Tensor) -> Any:
        return self.body(self.embed(self.prepare(self, x)))


def convolutions() -> nn.Module:
    return Written(
        lambda m, e: m.head(F.max_pool1d(F.relu(m.conv(e.transpose(1, 2))), LENGTH).flatten(1)),
        conv=nn.Conv1d(WIDTH, 8, 3, padding=1), head=nn.Linear(8, 4),
    )  # fmt: skip


def positions() -> nn.Module:
    def forward(m: Any, e: Tensor) -> Tensor:
        e = e + m.position(torch.arange(e.shape[1], device=e.device))
        return m.head(F.gelu(m.up(m.norm(e))).mean(1))

    return Written(
        forward, position=nn.Embedding(LENGTH, WIDTH), norm=nn.LayerNorm(WIDTH), up=nn.Linear(WIDTH, 9),
        head=nn.Linear(9, 4),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * LENGTH, 4))


BODIES = {"convolutions": convolutions, "positions": positions, "mlp": mlp}


def with_norms(name: str = "epsilon_plus") -> composites.Composite:
    return composites.resolve(name).with_entries((nn.LayerNorm, rules.Pass()))


def text(body: str | nn.Module = "mlp", **options: Any) -> Text:
    torch.manual_seed(0)
    return Text(BODIES[body]() if isinstance(body, str) else body, **options).double().eval()
