"""Nothing here runs without a CUDA device; a skip says why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import precision
from benchmarks.gpu.part import no_gpu
from tests.fixtures import seeded  # noqa: F401
from tests.gpu.cases import DEVICE

INTERPRETED = "Triton is interpreted in this process (TRITON_INTERPRET=1): run pytest tests/gpu alone"


def reason() -> str | None:
    """Why nothing can run here, or None."""
    if DEVICE.type == "cpu":
        return None
    return no_gpu() or (INTERPRETED if os.environ.get("TRITON_INTERPRET") == "1" else None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU one case of each test stands for all of them: it is skipped, and says why and how many it is."""
    why = reason()
    if why is None:
        return
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    cases: dict[str, list[pytest.Item]] = {}
    for item in mine:
        cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for some in cases.values():
        some[0].add_marker(pytest.mark.skip(reason=f"{why} ({len(some)} {'cases' if len(some) > 1 else 'case'})"))
    others = [item for some in cases.values() for item in some[1:]]
    gone = set(map(id, others))
    items[:] = [item for item in items if id(item) not in gone]
    config.hook.pytest_deselected(items=others)


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """float32 products are float32's, if a test does not say otherwise."""
    with precision.using("float32"):
        yield


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Uninitialised memory reads NaN: an element that nobody writes shows.

    With a warning alone where PyTorch's own kernels give no determinism.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
