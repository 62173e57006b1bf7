from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import fastlrp.run.plans
import fastlrp.run.prepared
from tests.fixtures import captured_once, one_thread, poisoned, seeded  # noqa: F401


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
