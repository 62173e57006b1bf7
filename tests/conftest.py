"""Switches that are read when a module is first imported, by whichever test; and what the daily loop leaves out."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest
import torch

from tests.memory import Collector

KERNELS = ("tests/cuda/*.py", "tests/kernels/test_triton_*.py", "tests/kernels/test_compile.py")
"""Tests that emulate, interpret or compile kernels for GPUs."""
CASES = 2
"""Of a test with more parameters ``--quick`` takes so many: the first and the last."""

os.environ.setdefault("FASTLRP_CHECK", "1")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Collector())


def pytest_addoption(parser: pytest.Parser) -> None:
    text = f"nothing that is marked slow or kernels, and at most {CASES} cases of every test"
    parser.addoption("--quick", action="store_true", help=text)
    parser.addoption("--full", action="store_true", help="what is marked full too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.match(pattern) for pattern in KERNELS):
            item.add_marker("kernels")
    if not config.getoption("full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    if not config.getoption("quick"):
        return
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("slow", "kernels")):
            cases[item.nodeid.split("[")[0]].append(item)
    taken = {id(found[place]) for found in cases.values() for place in spread(len(found))}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in taken])
    items[:] = [item for item in items if id(item) in taken]


def spread(count: int) -> list[int]:
    """At most ``CASES`` places among so many, with the first and the last."""
    return [*range(count)] if count <= CASES else [i * (count - 1) // (CASES - 1) for i in range(CASES)]
