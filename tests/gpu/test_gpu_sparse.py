"""Living neurons only, on the GPU: every layer shape and density gives what the dense product gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import precisions
from benchmarks.floors import Layer, layers
from benchmarks.gpu import sparse
from tests.gpu.cases import DEVICE

pytestmark = pytest.mark.gpu

LAYERS = {
    "3x3": (nn.Conv2d(64, 64, 3, padding=1), (64, 14, 14)),
    "3x3, odd": (nn.Conv2d(35, 67, 3, padding=1), (35, 9, 11)),
    "strided": (nn.Conv2d(32, 48, 3, stride=2, padding=1), (32, 15, 13)),
    "1x1": (nn.Conv2d(96, 40, 1), (96, 7, 7)),
    "1x1, strided": (nn.Conv2d(64, 128, 1, stride=2), (64, 14, 14)),
    "dilated": (nn.Conv2d(16, 24, 3, padding=2, dilation=2), (16, 10, 10)),
    "groups": (nn.Conv2d(32, 32, 3, padding=1, groups=4), (32, 8, 8)),
    "five by seven": (nn.Conv2d(16, 16, (5, 7), padding=(2, 3)), (16, 12, 12)),
    "1-D": (nn.Conv1d(24, 40, 5, padding=2), (24, 33)),
    "3-D": (nn.Conv3d(8, 12, 3, padding=1), (8, 5, 6, 7)),
    "linear": (nn.Linear(200, 130), (200,)),
    "one output": (nn.Linear(64, 1), (64,)),
}


def question(name: str, density: float, targets: int, kind: str, up: bool = False) -> sparse.Question:
    module, size = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module.reset_parameters()
    (layer,) = layers(module.cpu().float(), torch.zeros(1, *size))
    here = Layer(name, module.to(DEVICE, precisions.PRECISIONS[kind].dtype), layer.size, layer.out)
    return sparse.Question("", here, density, targets, kind, DEVICE, up)


@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("density", [0.0, 0.12, 0.5, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_dense_product(name, density, kind):
    for targets in (1, 16, 33, 128):
        with precisions.using(kind), torch.no_grad():
            case = sparse.Case.of(question(name, density, targets, kind))
            assert sparse.check(case, case.run()())[2] is None


@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("density", [0.0, 0.12, 0.5, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_the_way_up_equals_the_dense_product(name, density, kind):
    """By the dense operation that goes up itself: in composed calls, and in Triton's where that is the backend's."""
    for targets in (1, 33, 128):
        with precisions.using(kind), torch.no_grad():
            case = sparse.Case.of(question(name, density, targets, kind, up=True))
            assert sparse.check(case, case.run()())[2] is None


@pytest.mark.parametrize("name", ["3x3", "1x1", "linear"])
def test_the_same_every_time(name):
    for up in (False, True):
        run = sparse.Case.of(question(name, 0.4, 64, "float32", up)).run()
        first = run().values
        for _ in range(5):
            assert torch.equal(run().values, first)
