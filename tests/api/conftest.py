from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

import fastlrp.run.plans
import fastlrp.run.prepared
from fastlrp.capture.export import Captured
from tests.fixtures import one_thread, poisoned, seeded  # noqa: F401


@pytest.fixture(autouse=True)
def quiet_capture() -> Iterator[None]:
    """torch.export prints pages of traceback for a model that it cannot trace, before it raises."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@dataclass
class Counts:
    """How often a model was captured, and a plan prepared."""

    captured: int = 0
    prepared: int = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    found = Counts()
    capture, plan = fastlrp.run.plans.capture, fastlrp.run.prepared.Plan

    def counting_capture(*args, **kwargs):
        found.captured += 1
        return capture(*args, **kwargs)

    def counting_plan(*args, **kwargs):
        found.prepared += 1
        return plan(*args, **kwargs)

    monkeypatch.setattr(fastlrp.run.plans, "capture", counting_capture)
    monkeypatch.setattr(fastlrp.run.prepared, "Plan", counting_plan)
    return found


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One capture for each model and shape, whatever the composite: for tests of rules, not of captures."""
    capture = fastlrp.run.plans.capture

    def remembered(model, args, kwargs, output, *rest):
        key = (id(model), args[0].shape[1:])
        if key not in _CAPTURED:
            # The model is kept too, so that its id is not given away.
            _CAPTURED[key] = (model, capture(model, args, kwargs, output, *rest))
        return _CAPTURED[key][1]

    monkeypatch.setattr(fastlrp.run.plans, "capture", remembered)


_CAPTURED: dict[tuple[int, torch.Size], tuple[torch.nn.Module, Captured]] = {}
