"""Fixtures that several folders' tests run under; their conftest.py imports the ones that they want."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest
import torch

import fastlrp.run.plans
from fastlrp.capture.export import Captured
from fastlrp.plan import assign


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """On networks of this size two threads wait for each other: 2 ms a call against 360 on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Uninitialised memory reads NaN: an element that nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def seeded_apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes what tests share: the same each time, and the test's own numbers are not moved on."""

    @wraps(function)
    def apart(*arguments: Any, **options: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return function(*arguments, **options)

    return apart


@pytest.fixture
def own_registry() -> Iterator[None]:
    """Rules that a test registers are its own. The table itself is restored, as capture looks into it too."""
    before = dict(assign._REGISTERED)
    yield
    assign._REGISTERED.clear()
    assign._REGISTERED.update(before)


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One capture for each model and shape, whatever the composite, the paths and the test.

    Not for tests that change how a model computes, which a capture of the same model would not show.
    """
    capture = fastlrp.run.plans.capture

    def remembered(model: Any, args: Any, kwargs: Any, output: Any, *rest: Any) -> Captured:
        shapes = [(key, t.shape[1:], t.dtype) for key, t in [*enumerate(args), *kwargs.items()]]
        key = (id(model), repr(shapes), output)
        batch = next(t.shape[0] if t.dim() else 0 for t in (*args, *kwargs.values()))
        if key not in _CAPTURED or _CAPTURED[key][1].fixed_batch not in (None, batch):
            # The model is kept too, so that its id is not given away.
            _CAPTURED[key] = (model, capture(model, args, kwargs, output, *rest))
        _CAPTURED.move_to_end(key)
        while len(_CAPTURED) > KEPT:
            _CAPTURED.popitem(last=False)
        return _CAPTURED[key][1]

    monkeypatch.setattr(fastlrp.run.plans, "capture", remembered)


KEPT = 24
"""So many captures are kept, those that were asked for last: tests of one model follow each other."""
_CAPTURED: OrderedDict[Any, tuple[torch.nn.Module, Captured]] = OrderedDict()
