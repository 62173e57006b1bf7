"""What the user's modules hold beside parameters and buffers: the attributor's copy of the model is made anew."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastlrp.run.plans
from tests.compat.zennit.both import ours

pytest.importorskip("zennit.composites")
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu, self.last = nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Linear(3, 4)
        self.pool = nn.AvgPool1d((2,), stride=(2,))
        self.config, self.factors, self.array = types.SimpleNamespace(scale=1.0), [1.0], np.ones(4)
        self.hidden, self.offset, self.kept = [nn.Linear(4, 4)], torch.zeros(4), None
        self.double()
        self.hidden[0].double()

    def forward(self, x: Tensor) -> Tensor:
        self.kept = h = self.pool(self.relu(self.layer(x)) * self.factors[0])
        return self.hidden[0](self.last(h.mean(2)) * self.config.scale + self.offset) * torch.from_numpy(self.array)


def holder() -> Holder:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Holder().eval()


@torch.no_grad()
def weight(model: Holder) -> None:
    model.hidden[0].weight.mul_(-2)


CHANGES: dict[str, Any] = {
    "tuple": lambda model: setattr(model.pool, "stride", (1,)),
    "settings": lambda model: setattr(model.config, "scale", 3.0),
    "list": lambda model: model.factors.__setitem__(0, 2.0),
    "array": lambda model: model.array.__imul__(2),
    "module in a list": lambda model: model.hidden.__setitem__(0, nn.Linear(4, 4).double()),
    "its weight": weight,
    "tensor": lambda model: setattr(model, "offset", torch.ones(4)),
    "within a tensor": lambda model: model.offset.add_(1),
}


def asked(model: nn.Module, composite: Any) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with ours.Gradient(model, composite) as attributor:
        output, relevance = attributor(x, torch.eye(4, dtype=torch.float64)[[0, 1]])
    return output.detach(), relevance.detach()


@pytest.mark.parametrize("canonizers", [None, [SequentialMergeBatchNorm()]], ids=["plain", "canonized"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed(change: Any, canonizers: Any) -> None:
    model = holder()
    before = asked(model, EpsilonPlus(canonizers=canonizers))
    change(model)
    after, fresh = asked(model, EpsilonPlus(canonizers=canonizers)), holder()
    fresh.load_state_dict(model.state_dict())
    fresh.__dict__.update({name: vars(model)[name] for name in ("config", "factors", "array", "hidden", "offset")})
    fresh.pool.stride = model.pool.stride
    assert not torch.equal(after[0], before[0]), "the change has no effect: nothing is tested"
    for found, expected in zip(after, asked(fresh, EpsilonPlus(canonizers=canonizers)), strict=True):
        assert torch.equal(found, expected)


def test_what_forward_writes_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, real = [], fastlrp.run.plans.capture
    monkeypatch.setattr(fastlrp.run.plans, "capture", lambda *given: captured.append(1) or real(*given))
    model = holder()
    for size in (9, 10, 11, 12, 13):
        model(torch.randn(2, 2, size, dtype=torch.float64))
        asked(model, EpsilonPlus())
    assert len(captured) <= 2, "once, and once more for what looked like a change"
