"""Whole explanations with the CUDA kernels, emulated: plan, fused steps and the sparse way included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, groups
from fastlrp.backends import cuda as backend
from fastlrp.backends import dispatch, triton
from fastlrp.plan.compact import Compact
from fastlrp.plan.paths import choose
from fastlrp.run import runner
from fastlrp.run.up import way_up
from fastlrp.run.up.way_up import WayUp
from tests.cuda.emulated import ORDERS, emulated, order


@pytest.fixture
def cuda(monkeypatch):
    """The CPU taken for the device that CUDA kernels run on."""
    module = emulated()
    monkeypatch.setattr(backend, "kernels", lambda: module)
    monkeypatch.setattr(backend, "device_type", lambda: "cpu")
    # Operations without a CUDA kernel go to PyTorch, not to Triton's interpreter.
    monkeypatch.setattr(triton, "_missing", lambda: "not in this test")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    dispatch._select.cache_clear()
    yield module
    dispatch._select.cache_clear()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(8, 10, 3, stride=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(10, 6),
    ).eval()  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.first(x))))
        x = torch.relu(x + self.third(torch.relu(self.second(x))))
        return self.last(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def residual() -> nn.Module:
    torch.manual_seed(1)
    return Residual().eval()


COMPOSITES = {
    "epsilon_plus": {}, "epsilon_gamma_box": {"low": -3.0, "high": 3.0}, "epsilon_alpha2_beta1": {},
    "epsilon_plus_flat": {}, "wsquare": {}, "gamma": {}, "gradient": {},
}  # fmt: skip


def composite(name: str) -> composites.Composite:
    return composites.preset(name, **COMPOSITES[name])


@pytest.mark.parametrize("reduce", [None, "channels"])
@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("model", [small, residual])
def test_equals_composed_pytorch(cuda, model, name, reduce):
    net, x = model(), torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(2))
    expected = fastlrp.Explainer(net, composite(name), backend="torch")(x, [0, 3, 4], reduce=reduce)
    launched = cuda.launches()
    explainer = fastlrp.Explainer(net, composite(name), backend="cuda", paths="dense")
    found = explainer(x, [0, 3, 4], reduce=reduce)
    assert cuda.launches() > launched
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("name", "threads"),
    [*((name, "forward") for name in COMPOSITES), *(("epsilon_alpha2_beta1", o) for o in ORDERS[1:])],
)
@pytest.mark.parametrize("model", [small, residual])
def test_the_sparse_way(cuda, model, name, threads):
    net, x = model(), torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(3))
    targets = [k % 5 for k in range(9)]
    expected = fastlrp.Explainer(net, composite(name), backend="torch")(x, targets)
    explainer = fastlrp.Explainer(net, composite(name), backend="cuda", paths="sparse")
    reads = cuda.reads_on_host()
    record = explainer.forward(x)
    with order(threads, seed=4):
        found = record.relevance(targets)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        made = cuda.reads_on_host()
        assert made > reads  # patterns were made, whose sizes the host must know
        record.relevance(targets)
    assert cuda.reads_on_host() == made, "relevance that moves must not wait for the device"


@pytest.mark.parametrize("name", ["epsilon_plus", "gamma", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("model", [small, residual])
def test_the_sparse_way_up(cuda, model, name):
    """Convolutions, pools and linear layers for alive neurons only; what moves does not wait for the device."""
    net, x = model(), torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(3))
    given = torch.rand(21, 3, 14, 14, generator=torch.Generator().manual_seed(4))
    with fastlrp.Explainer(net, composite(name), backend="torch", paths="dense").forward(x) as record:
        expected = record.relevance("all", groups=given, direction="up")
    with fastlrp.Explainer(net, composite(name), backend="cuda", paths="sparse").forward(x) as record:
        asked, launched = record.asked("all"), cuda.launches()
        found = record.relevance("all", groups=given, direction="up")
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert cuda.launches() > launched
        way = WayUp(record.plan, asked)
        ascent = way.prepared(record.state(), record._of_groups(asked, given, "up").resolved, 2)
        assert {step.node.path for step in ascent.alive} >= ({"2", "4", "5"} if model is small else {"second", "third"})
        for step, sparse in ascent.alive.items():
            t = torch.randn(2, 21, *sparse.below.sizes)
            t = Compact.of(t, sparse.below)
            sparse(t)
            reads = cuda.reads_on_host()
            sparse(t)
            assert cuda.reads_on_host() == reads, f"{step.name} waits for the device"


def test_no_pattern_is_made_on_a_gpu_that_nobody_has_measured(cuda, monkeypatch):
    """It would wait for the device."""
    monkeypatch.setattr(way_up, "rates_of", lambda device: None)
    monkeypatch.setattr(runner, "rates_of", lambda device, reduced: None)
    monkeypatch.setattr(choose, "LEAST_WORK", 0)
    net, x = small(), torch.randn(1, 3, 14, 14)
    with fastlrp.Explainer(net, "epsilon_plus", backend="cuda").forward(x) as record:
        reads = cuda.reads_on_host()
        record.relevance("all", groups=groups.patches(2), direction="up")
        record.relevance(torch.rand(20, 6))
        assert cuda.reads_on_host() == reads


def test_tensor_cores_round_to_tf32_only(cuda, monkeypatch):
    net, x, targets = small(), torch.randn(1, 3, 14, 14), [0, 1, 2, 3, 4, 5, 0, 1]
    expected = fastlrp.Explainer(net, "epsilon_plus", backend="torch")(x, targets)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found = fastlrp.Explainer(net, "epsilon_plus", backend="cuda", paths="sparse")(x, targets)
    error = (found - expected).norm() / expected.norm()
    assert 1e-6 < error < 1e-3  # 2e-4; ten bits of mantissa are 5e-4 for one product


def test_one_sweep_instead_of_three_steps(cuda):
    net, x = small(), torch.randn(1, 3, 14, 14)
    plan = fastlrp.Explainer(net, "epsilon_plus", backend="cuda").forward(x).plan
    steps = [step for step, _ in plan.forward_schedule().steps]
    assert not any(step.part is not None and step.part.kind == "pool" for step in steps)
    assert any(len(step.outs) == 4 for step in steps)
