"""Models whose output depends on earlier calls are refused; those that only keep a record of them are not."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp


class Base(nn.Module):
    """A network with a place where calls leave something."""

    kept: Any

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.layer(x)).relu())

    def between(self, h: Tensor) -> Tensor:
        return h


class Counts(Base):
    kept = 0

    def between(self, h: Tensor) -> Tensor:
        self.kept += 1
        return h * self.kept


class Locked(Counts):
    """It holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Particular(Counts):
    """It takes no other input than one of a certain size."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and float(x.abs().max()) < 0.9 * float(numbers().abs().max()):
            raise ValueError("x is too small")
        return super().forward(x)


class Assigns(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(()))

    def between(self, h: Tensor) -> Tensor:
        self.kept = self.kept + 1
        return h * self.kept


class Collects(Base):
    def __init__(self) -> None:
        super().__init__()
        self.kept = []

    def between(self, h: Tensor) -> Tensor:
        self.kept.append(h.detach())
        return torch.stack(self.kept).sum(0)


class Remembers(Base):
    """The first input's activations stay for all later ones."""

    kept = None

    def between(self, h: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = h.detach()
        return h + self.kept


class Ages:
    """Something that is no module."""

    years = 1


class Holds(Base):
    def __init__(self) -> None:
        super().__init__()
        self.kept = Ages()

    def between(self, h: Tensor) -> Tensor:
        self.kept.years += 1
        return h * self.kept.years


class Records(Base):
    calls = 0

    def between(self, h: Tensor) -> Tensor:
        self.calls += 1
        self.kept = h
        return h


class LockedRecords(Records):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Tables(Base):
    """What is kept follows from sizes alone."""

    kept = None

    def between(self, h: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.arange(1.0, 1 + h.shape[-1], dtype=h.dtype)
        return h * self.kept


def numbers() -> Tensor:
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("make", [Counts, Locked, Particular, Assigns, Collects, Remembers, Holds])
def test_an_output_that_depends_on_earlier_calls(make: type[Base]) -> None:
    with pytest.raises(fastlrp.CaptureError, match=r"writes 'kept' and reads what an earlier one has written"):
        fastlrp.Explainer(make(), "epsilon")(numbers(), [0])


@pytest.mark.parametrize("make", [Base, Records, LockedRecords, Tables])
def test_what_only_keeps_a_record(make: type[Base]) -> None:
    model = make()
    explainer = fastlrp.Explainer(model, "epsilon")
    for x in (numbers(), 2 * numbers()):
        torch.testing.assert_close(explainer.forward(x).output, model(x))
