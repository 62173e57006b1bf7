"""Explainers on the GPU: what the CPU computes in float64, by every backend and in every dtype."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from benchmarks import precisions
from benchmarks.models import build
from fastlrp import composites
from tests.api.models import Residual, Segment
from tests.gpu.cases import DEVICE, relative
from tests.gpu.test_gpu_streams import no_waiting
from tests.torchvision_models import random_model

pytestmark = pytest.mark.gpu

TARGETS = [0, 2]
COMPOSITES: dict[str, Callable[[], composites.Composite]] = {
    "epsilon_plus": composites.epsilon_plus,
    "epsilon_gamma_box": lambda: composites.epsilon_gamma_box(-5.0, 5.0),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1,
    "epsilon_plus_flat": composites.epsilon_plus_flat,
    "wsquare": composites.wsquare,
}
SMALL = ("small", "lenet", "segment", "residual")
# Not DenseNet, whose averages of both signs make float32 lose 1e-4 to 2e-2 on any device.
FAMILIES = {"vgg11": 64, "resnet18": 64, "googlenet": 64, "mobilenet_v2": 64, "regnet_x_400mf": 64}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """In float64 on the CPU: a model and two inputs."""
    torch.manual_seed(0)
    if name in ("small", "lenet"):
        model, x = build(name, batch=2)
        return model.double(), x.double()
    if name == "segment":
        return Segment().double().eval(), torch.randn(2, 2, 6, 6).double()
    if name == "residual":
        return Residual().double().eval(), torch.randn(2, 3, 8, 8).double()
    return random_model(name, dtype=torch.float64, classes=20), torch.randn(
        2, 3, FAMILIES[name], FAMILIES[name]
    ).double()


@cache
def expected(name: str, rules: str) -> Tensor:
    model, x = made(name)
    found: Tensor = fastlrp.explain(model, x, TARGETS, COMPOSITES[rules](), backend="torch")
    return found


def on_gpu(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    model, x = made(name)
    return copy.deepcopy(model).to(DEVICE, dtype), x.to(DEVICE, dtype)


def error(name: str, rules: str, backend: str, dtype: torch.dtype) -> float:
    model, x = on_gpu(name, dtype)
    explainer = fastlrp.Explainer(model, COMPOSITES[rules](), backend=backend)
    return relative(explainer(x, TARGETS), expected(name, rules))


@pytest.mark.parametrize("backend", ["auto", "torch", "triton", "cuda"])
@pytest.mark.parametrize("rules", COMPOSITES)
@pytest.mark.parametrize("name", [*SMALL, *FAMILIES])
def test_float32(name, rules, backend):
    if name not in ("small", "vgg11") and rules in ("epsilon_plus_flat", "wsquare"):
        pytest.skip("the input's rules are tested on two models; w2 beyond it makes residual sums lose 7e-3 in float32")
    # The CPU's float32 differs from its float64 by up to 7e-5 on these models.
    assert error(name, rules, backend, torch.float32) <= 1e-3


@pytest.mark.parametrize("backend", ["auto", "torch", "cuda"])
@pytest.mark.parametrize("name", [*SMALL, "vgg11", "resnet18"])
def test_float64(name, backend):
    assert error(name, "epsilon_plus", backend, torch.float64) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["auto", "triton", "cuda"])
@pytest.mark.parametrize("rules", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("name", ["small", "vgg11", "resnet18"])
def test_half(name, rules, backend, dtype):
    """At most twice what composed PyTorch operations lose in the same dtype."""
    assert error(name, rules, backend, dtype) <= max(2 * error(name, rules, "torch", dtype), 1e-3)


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_tf32(name):
    with precisions.using("tf32"):
        assert error(name, "epsilon_plus", "auto", torch.float32) <= max(
            2 * error(name, "epsilon_plus", "torch", torch.float32), 1e-3
        )


@pytest.mark.parametrize("name", ["small", "vgg11", "resnet18"])
def test_blocks_of_targets_and_a_budget_change_nothing(name):
    model, x = on_gpu(name, torch.float32)
    whole = fastlrp.Explainer(model, "epsilon_plus")(x, list(range(10)))
    with fastlrp.Explainer(model, "epsilon_plus").forward(x) as record:
        parts = torch.cat([part for _, part in record.stream(list(range(10)), block=3)], 1)
    assert relative(parts, whole.double().cpu()) <= 1e-5
    bounded = fastlrp.Explainer(model, "epsilon_plus", max_memory="64MB")(x, list(range(10)))
    assert relative(bounded, whole.double().cpu()) <= 1e-5


@pytest.mark.parametrize("paths", ["sparse", "dense"])
def test_living_neurons_only_is_the_same(paths):
    model, x = on_gpu("vgg11", torch.float32)
    found = fastlrp.Explainer(model, "epsilon_plus", paths=paths)(x, list(range(16)))
    model, x = made("vgg11")
    right = fastlrp.explain(model, x, list(range(16)), "epsilon_plus", backend="torch")
    assert relative(found, right) <= 1e-3


@pytest.mark.parametrize("backend", ["auto", "triton", "cuda"])
@pytest.mark.parametrize("paths", ["sparse", "dense"])
@pytest.mark.parametrize("name", ["small", "vgg11", "resnet18"])
def test_the_way_up(name, paths, backend):
    """Groups that reach every entry: what the way down gives on the CPU, for all neurons and for living ones only."""
    model, x = made(name)
    given = torch.rand(20, *x.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with fastlrp.Explainer(model, "epsilon_plus", backend="torch").forward(x) as record:
        right = record.relevance(TARGETS, groups=given, direction="down")
    model, x = on_gpu(name, torch.float32)
    with fastlrp.Explainer(model, "epsilon_plus", backend=backend, paths=paths).forward(x) as record:
        found = record.relevance(TARGETS, groups=given.to(DEVICE, torch.float32), direction="up")
    assert relative(found, right) <= 1e-3


def test_the_current_stream():
    """An input that becomes right late on a side stream."""
    model, x = on_gpu("vgg11", torch.float32)
    explainer = fastlrp.Explainer(model, "epsilon_plus", example_inputs=x)
    right = explainer(x, TARGETS).double().cpu()
    place, side = torch.zeros_like(x), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        place.copy_(x, non_blocking=True)
        found = explainer(place, TARGETS)
    side.synchronize()
    assert relative(found, right) <= 1e-5


def waits(model: nn.Module, x: Tensor) -> int:
    """How often one call waits for the device."""
    explainer = fastlrp.Explainer(model, "epsilon_plus", paths="dense")
    explainer(x, TARGETS)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            explainer(x, TARGETS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in seen)


def test_waiting_does_not_grow_with_the_model():
    """Input and targets are looked at; no layer is."""
    few, many = (waits(*on_gpu(name, torch.float32)) for name in ("small", "resnet18"))
    assert few == many
    assert many <= 8


@pytest.mark.parametrize("reduce", [None, "channels"])
@pytest.mark.parametrize("name", ["small", "lenet", "vgg11", "resnet18"])
def test_replay(name, reduce):
    """All launches in one graph: the same numbers, for other inputs and classes, and nobody waits.

    That the graph can be recorded at all shows that no layer waits on its way down.
    """
    model, x = on_gpu(name, torch.float32)
    explainer = fastlrp.Explainer(model, "epsilon_plus", paths="dense")
    replay = explainer.replay(x, len(TARGETS), reduce=reduce)
    for number, classes in enumerate((TARGETS, [1, 3], [[0, 1], [4, 5]])):
        given = x.roll(number, -1) * (1 + 0.1 * number)
        with no_waiting():
            output, found = replay(given, classes)
        with torch.no_grad():
            assert relative(output, model(given).double().cpu()) <= 1e-5
        wanted = explainer(given, torch.tensor(classes, device=DEVICE), reduce=reduce)
        assert relative(found, wanted.double().cpu()) <= 1e-5


def test_compiled_around():
    """torch.compile around a call: breaks of the graph are allowed, other numbers are not."""
    model, x = on_gpu("small", torch.float32)
    explainer = fastlrp.Explainer(model, "epsilon_plus", example_inputs=x)
    classes = torch.tensor(TARGETS, device=DEVICE)

    def run(x: Tensor) -> Tensor:
        found: Tensor = explainer(x * 1.0, classes)
        return found.sum(2) * 2

    torch._dynamo.reset()
    compiled = torch.compile(run)
    for scale in (1.0, 0.5):
        assert relative(compiled(x * scale), run(x * scale).double().cpu()) <= 1e-5


def test_verify_on_the_gpu():
    model, x = on_gpu("small", torch.float32)
    report = fastlrp.Explainer(model, "epsilon_plus").verify(x, TARGETS)
    assert report.ok, str(report)


def test_a_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device; this needs two")
    model, x = made("vgg11")
    other = torch.device("cuda", 1)
    with torch.cuda.device(0):
        found = fastlrp.explain(model.to(other, torch.float32), x.to(other, torch.float32), TARGETS, "epsilon_plus")
    assert found.device == other
    assert relative(found, expected("vgg11", "epsilon_plus")) <= 1e-3
