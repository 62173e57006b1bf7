"""Options of ``python -m pytest benchmarks --benchmark-only``, and the calls that they choose."""

from __future__ import annotations

import pytest
import torch

from benchmarks import shapes
from fastlrp.backends import dispatch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("operations", "which calls of fastlrp's operations are timed")
    group.addoption("--ops", default=",".join(dispatch.OPS), help="operations, with commas")
    group.addoption("--ops-models", default="vgg16,resnet50", help="torchvision models whose layers are taken")
    group.addoption("--ops-size", type=int, default=224, help="side of the image")
    group.addoption("--ops-few", type=int, default=3, help="calls per operation and model")
    group.addoption("--ops-full", action="store_true", help="all distinct calls instead of a few")
    group.addoption("--ops-backends", default="torch,cpu", help="backends; one that cannot run a call is left out")
    group.addoption("--ops-targets", default="1,32", help="sizes of a block of targets")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "call" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    chosen: list[shapes.Call] = []
    for model in option("--ops-models").split(","):
        found = shapes.calls(model, option("--ops-size"))
        chosen += found if option("--ops-full") else shapes.few(found, option("--ops-few"))
    wanted = option("--ops").split(",")
    sets = []
    for call in (c for c in chosen if c.op in wanted):
        blocks = [int(n) for n in option("--ops-targets").split(",")] if call.relevance else [1]
        for targets in blocks:
            for backend in option("--ops-backends").split(","):
                if dispatch.reason(backend, call.op, shapes.CPU, torch.float32) is None:
                    name = f"{call.op} {call} K={targets} {backend}"
                    sets.append(pytest.param(call, targets, backend, id=name))
    for op in sorted(set(wanted) - {call.op for call in chosen}):
        reason = f"no layer of {option('--ops-models')} calls {op}"
        sets.append(pytest.param(None, 0, "", marks=pytest.mark.skip(reason=reason), id=op))
    metafunc.parametrize(("call", "targets", "backend"), sets)
