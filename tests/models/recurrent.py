"""Recurrent layers with what is read of them, and what must hold for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, rules

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}


class Reader(nn.Module):
    """A recurrent layer, and a linear one on what is read of it."""

    def __init__(self, layer: nn.Module, size: int, read: str = "last", lead: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.read, self.lead = layer, read, lead
        self.head = nn.Linear(size, 3)

    def forward(self, x: Tensor, *states: Any) -> Tensor:
        x = x if self.lead is None else self.lead(x)
        first: bool = self.layer.batch_first  # type: ignore[assignment]
        y, last = self.layer(x if first else x.transpose(0, 1), *states)
        h, c = last if isinstance(last, tuple) else (last, last)
        found: Tensor = {
            "last": lambda: y[:, -1] if first else y[-1],
            "mean": lambda: y.mean(1 if first else 0),
            "hidden": lambda: h.transpose(0, 1).flatten(1),
            "both": lambda: torch.cat([y[:, 0] if first else y[0], h[-1], c[0]], 1),
        }[self.read]()
        return self.head(found)  # type: ignore[no-any-return]


class LastValid(nn.Module):
    """A layer, and a linear one on its result at the last step of each padded sequence."""

    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.layer(x)
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, y.shape[2])
        return self.head(y.gather(1, last).squeeze(1))  # type: ignore[no-any-return]


def by_rule(rule: rules.Rule, epsilon: Any = 1e-3) -> composites.Composite:
    return composites.epsilon(epsilon).with_entries((composites.kind("recurrence"), rule))


def check(model: nn.Module, x: Any, rule: rules.Rule, epsilon: Any = 1e-3) -> None:
    """Against the textbook; nothing unexplained; each sample as it is alone."""
    found = fastlrp.Explainer(model.double().eval(), by_rule(rule, epsilon)).verify(x, "all")
    assert found.ok, str(found)
    assert found.max_error < 1e-12, str(found)
    assert abs(found.kept["unexplained"]) < 1e-12, str(found)


def sequences(*size: int) -> Tensor:
    return torch.randn(size or (3, 5, 4), generator=torch.Generator().manual_seed(3)).double()
