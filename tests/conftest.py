"""Switches that are read when a module is first imported, by whichever test; and what the daily loop leaves out."""

from __future__ import annotations

import os

import pytest
import torch

from tests.memory import Collector
from tests.thinning import thin

KERNELS = ("tests/cuda/*.py", "tests/kernels/test_triton_*.py", "tests/kernels/test_compile.py")
"""Tests that emulate, interpret or compile kernels for GPUs."""

COMPILES = ("tests/kernels/test_compile.py", "tests/cuda/test_cuda_compile.py")
"""Those that look at what the compilers for GPUs make of kernels, and run none of them."""

os.environ.setdefault("FASTLRP_CHECK", "1")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Collector())


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "nothing that is marked slow or kernels, and the first case of every other test"
    parser.addoption("--quick", action="store_true", help=text)
    parser.addoption("--full", action="store_true", help="what is marked full too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.match(pattern) for pattern in KERNELS):
            item.add_marker("kernels")
        if any(item.path.match(pattern) for pattern in COMPILES):
            item.add_marker("compiles")
    thin(items)
    if not config.getoption("full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    if not config.getoption("quick"):
        return
    taken: dict[str, pytest.Item] = {}
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("slow", "kernels")):
            taken.setdefault(item.nodeid.split("[")[0], item)
    left_out = [item for item in items if taken.get(item.nodeid.split("[")[0]) is not item]
    config.hook.pytest_deselected(items=left_out)
    items[:] = taken.values()
