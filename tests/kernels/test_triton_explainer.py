"""Whole explanations with the Triton kernels, interpreted: the fused steps of the plan included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites
from fastlrp.backends import dispatch

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreted")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4),
    ).eval()  # fmt: skip


CASES = [
    ("epsilon_gamma_box", {"low": -3.0, "high": 3.0}, None),
    ("epsilon_alpha2_beta1", {}, "channels"), ("epsilon_plus_flat", {}, "channels"),
    pytest.param("epsilon_plus", {}, None, marks=pytest.mark.full),
    pytest.param("wsquare", {}, None, marks=pytest.mark.full),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameters", "reduce"), CASES)
def test_equals_composed_pytorch(name, parameters, reduce):
    net, x = small(), torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    composite = composites.preset(name, **parameters)
    expected = fastlrp.Explainer(net, composite, backend="torch")(x, [0, 3], reduce=reduce)
    explainer = fastlrp.Explainer(net, composite, backend="triton", example_inputs=x)
    found = explainer(x, [0, 3], reduce=reduce)
    # Worst measured: 2e-7.
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_plan_says_what_computes():
    x = torch.randn(1, 3, 6, 6)
    explainer = fastlrp.Explainer(small(), "epsilon_plus", backend="triton", example_inputs=x)
    rows = [row for row in explainer.plan.rows if row.node.kind in ("conv", "linear", "max_pool")]
    assert rows
    assert all(row.backend == "triton" for row in rows)


def test_the_cpu_does_not_take_them_by_itself():
    for op in dispatch.OPS:
        assert dispatch.select(op, "auto", torch.device("cpu"), torch.float32).backend in ("cpu", "torch")
