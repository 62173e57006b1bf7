"""A sample's relevance does not depend on the rest of the batch: what lets it is an error that names the operation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import CaptureError, UnsupportedOperationError, capture, composites, plan
from tests.models.oracle import relative_error
from tests.models.random_graphs import RandomModel, random_model
from tests.models.test_models_refused import Proportional

ACCEPTED = 1e-7


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(plan._REGISTERED)
    yield
    plan._REGISTERED.clear()
    plan._REGISTERED.update(before)


def check_samples(model: nn.Module, x: Tensor, composite: Any) -> bool:
    """Whether the model was taken; if it was, samples alone, permuted samples and ``verify`` must agree."""
    explainer = fastlrp.Explainer(model, composite)
    try:
        together = explainer(x, [0, 2])
    except UnsupportedOperationError as error:
        assert re.search(r"in module '|\(\w*\)|no relevance reaches", str(error)), error
        assert not re.search(r"\bs\d+\b", str(error)), error
        return False
    if not bool(together.isfinite().all()) or not bool((together != 0).any()):
        return True
    alone = torch.cat([explainer(x[i : i + 1], [0, 2]) for i in range(len(x))])
    assert relative_error(alone, together) <= ACCEPTED
    order = torch.tensor([2, 0, 1])
    assert relative_error(explainer(x[order], [0, 2]), together[order]) <= ACCEPTED
    report = explainer.verify(x, [0, 2])
    assert report.ok, str(report)
    return True


def random_composite(seed: int) -> Any:
    unknown = (composites.kind("unknown"), Proportional())
    return ("gradient", composites.resolve("epsilon_plus").with_entries(unknown), "epsilon_plus")[seed % 3]


@pytest.mark.parametrize("seed", range(60))
def test_random_models(seed: int) -> None:
    model, x = random_model(seed)
    check_samples(model, x, random_composite(seed))


def _verdict(model: RandomModel, x: Tensor) -> bool | str:
    try:
        captured = capture.capture(model, (x,), {}, None)
    except CaptureError as error:
        return re.split(r"in module|\(", str(error))[0]
    return captured.fixed_batch is None
