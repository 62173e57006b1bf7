from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fastlrp.run.plans
from fastlrp.backends.extension import extension
from fastlrp.capture.export import Captured
from tests.fixtures import one_thread, poisoned, seeded  # noqa: F401

KERNELS = extension()


@pytest.fixture(params=KERNELS.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this machine has."""
    KERNELS.set_isa(request.param)
    yield request.param
    KERNELS.set_isa("auto")


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One capture for each model and shape, whatever the composite and the paths."""
    capture = fastlrp.run.plans.capture

    def remembered(model: Any, args: Any, kwargs: Any, output: Any, *rest: Any) -> Captured:
        shapes = [(key, t.shape[1:]) for key, t in [*enumerate(args), *kwargs.items()]]
        key = (id(model), repr(shapes), output)
        if key not in _CAPTURED:
            # The model is kept too, so that its id is not given away.
            _CAPTURED[key] = (model, capture(model, args, kwargs, output, *rest))
        return _CAPTURED[key][1]

    monkeypatch.setattr(fastlrp.run.plans, "capture", remembered)


_CAPTURED: dict[Any, tuple[torch.nn.Module, Captured]] = {}
