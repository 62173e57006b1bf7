"""Nothing here runs without a CUDA device; a skip says why. Results are written down one by one if a run asks for it.

``FASTLRP_GPU_TESTS_ON=cpu TRITON_INTERPRET=1 pytest tests/gpu -m gpu`` runs on the CPU what the interpreter and the
emulator can.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from benchmarks import precisions
from benchmarks.gpu.part import no_gpu
from tests.fixtures import seeded  # noqa: F401
from tests.gpu import rehearsal
from tests.gpu.cases import DEVICE

T = TypeVar("T")

QUICK = os.environ.get("FASTLRP_GPU_TESTS") == "quick"
MOST = 12
"""Cases of each test in a quick run: most of the time goes into compiling Triton's kernels, each case its own."""

RESULTS = os.environ.get("FASTLRP_GPU_RESULTS")
"""A file that each result is appended to as soon as there is one."""

ONLY_ON_A_GPU = ("test_gpu_backends.py", "test_gpu_streams.py", "test_gpu_large.py")

INTERPRETED = "Triton is interpreted in this process (TRITON_INTERPRET=1): run pytest tests/gpu alone"


def reason() -> str | None:
    """Why nothing can run here, or None."""
    if DEVICE.type == "cpu":
        return None
    return no_gpu() or (INTERPRETED if os.environ.get("TRITON_INTERPRET") == "1" else None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU one case of each test stands for all of them: it is skipped, and says why and how many it is.

    In a quick run on one a few cases of each test do, far apart in the grid of its parameters.
    """
    why = reason()
    if DEVICE.type == "cpu":  # What is asked of the device itself cannot be rehearsed.
        items[:] = [item for item in items if item.path.name not in ONLY_ON_A_GPU]
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    cases: dict[str, list[pytest.Item]] = {}
    for item in mine:
        cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    if why is None:
        kept = [item for some in cases.values() for item in (spread(some, MOST) if QUICK else some)]
    else:
        kept = [some[0] for some in cases.values()]
        for some in cases.values():
            some[0].add_marker(pytest.mark.skip(reason=f"{why} ({len(some)} {'cases' if len(some) > 1 else 'case'})"))
    gone = set(map(id, mine)) - set(map(id, kept))
    config.hook.pytest_deselected(items=[item for item in items if id(item) in gone])
    items[:] = [item for item in items if id(item) not in gone]


def spread(cases: Sequence[T], most: int) -> list[T]:
    """At most so many, in steps that go through all values of every parameter, wherever it stands in their order."""
    step = max(1, round(len(cases) * 0.618))
    while math.gcd(step, len(cases)) > 1:
        step += 1
    taken = sorted(i * step % len(cases) for i in range(min(most, len(cases))))
    return [cases[i] for i in taken]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Write the result down. A process whose device is lost ends: each test after it would fail, whatever it is.

    Where pytest-xdist runs the tests, it begins another one, and counts the test that lost the device as a crash.
    """
    report = yield
    if Path(__file__).parent in item.path.parents and (call.when == "call" or report.outcome != "passed"):
        said = "" if report.outcome == "passed" else str(report.longrepr)[-1000:]
        lost = lost_device() if report.failed and DEVICE.type == "cuda" else None
        if RESULTS:
            row = {"part": "tests", "device": str(DEVICE), "what": item.nodeid, "result": report.outcome,
                   "seconds": round(call.duration, 2), "said": f"{lost}: {said}" if lost else said}  # fmt: skip
            with Path(RESULTS).open("a") as file:
                file.write(json.dumps(row) + "\n")
        if lost is not None:
            print(f"wrong: {item.nodeid}: {lost}", file=sys.stderr, flush=True)
            if "PYTEST_XDIST_WORKER" in os.environ:
                os._exit(3)
            pytest.exit(f"{item.nodeid}: {lost}", returncode=3)
    return report


def lost_device() -> str | None:
    """The error with which the device answers whatever it is asked, as after a wrong address, or None."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the device is lost: {str(error).splitlines()[0]}"
    return None


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """float32 products are float32's, if a test does not say otherwise."""
    with precisions.using("float32"):
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


@pytest.fixture(autouse=True, scope="session")
def rehearsed() -> None:
    """On a CPU the emulator has the kernels of CUDA."""
    if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        rehearsal.take_its_place()
