"""Models for the command line's tests: ``tests/cli/models.py:factory``."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastlrp.explainer import Explainer


def factory() -> nn.Module:
    """Ten classes of pictures of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def grey() -> nn.Module:
    """Three classes of pictures with one channel."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def vectors() -> nn.Module:
    """Three classes of vectors of 16 numbers."""
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


class _Overflowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((2, 3))
        return self.last(bright + (bright > 0.99) * 3e38) * 10


def overflowing() -> nn.Module:
    """Ten classes of pictures; white ones have scores that are infinite in float32."""
    return _Overflowing()


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = factory()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.body(x)
        return {"logits": scores, "doubled": 2 * scores}


def two_outputs() -> nn.Module:
    return TwoOutputs()


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def branches() -> nn.Module:
    """Cannot be captured."""
    return Branches()


def _before_passes(act: Callable[[int], None]) -> nn.Module:
    """Does something before each forward pass for an explanation but the first, which looks at the model."""
    forward, calls = Explainer.forward, 0

    def wait(self: Explainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            act(calls - 1)
        return forward(self, *args, **kwargs)

    Explainer.forward = wait  # type: ignore[method-assign]
    return factory()


def interrupted() -> nn.Module:
    """Waits for Ctrl-C before the third batch, in a process whose environment says so."""
    if "WAITS_FOR_CTRL_C" not in os.environ:
        return factory()
    come, goes = os.pipe()
    os.set_blocking(goes, False)
    signal.set_wakeup_fd(goes)

    def wait(batch: int) -> None:
        if batch == 3:
            print("waiting", file=sys.stderr, flush=True)
            select.select([come], [], [], 120)

    return _before_passes(wait)


def very_slow() -> nn.Module:
    def wait(batch: int) -> None:
        print("waiting", file=sys.stderr, flush=True)
        time.sleep(600.0)

    return _before_passes(wait)


def no_model() -> int:
    return 3


def raises() -> nn.Module:
    raise FileNotFoundError("there is no checkpoint")
