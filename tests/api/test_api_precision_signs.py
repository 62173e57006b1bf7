"""Sums of both signs under products of bfloat16: what cancels in them is computed with the digits of float32."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer, composites, precision, rules
from fastlrp.plan.products import choice, reduced
from tests.api.models import relative_error


@pytest.fixture(autouse=True)
def all_layers_are_large_and_the_processor_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduced, "LEAST_WORK", 1)
    monkeypatch.setattr(reduced, "NEAREST", 0)
    for module in (precision, choice):
        monkeypatch.setattr(module, "instruction_set", lambda: "AMX")


def errors(model: nn.Module, x: Tensor, rule: rules.Rule, precision: str = "bf16") -> float:
    """The largest relative error of three targets of each sample, under epsilon with this rule at the first layer."""
    composite = composites.epsilon().with_entries((composites.first(), rule))
    exact = Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1, 2])
    found = Explainer(model, composite, precision=precision)(x, [0, 1, 2]).double()  # type: ignore[arg-type]
    pairs = zip(found.flatten(0, 1), exact.flatten(0, 1), strict=True)
    return max(relative_error(own, true) for own, true in pairs)


@pytest.mark.parametrize("layer", ["conv", "padded", "linear"])
def test_denominators_of_the_box_rule_cancel_outside_the_box(layer):
    """Pixels of 0 to 255 under bounds of 0 to 1: sums of 1e4 terms of both signs, some of which are nearly zero."""
    torch.manual_seed(2)
    x = 255 * torch.rand(2, 3, 10, 10) if layer == "linear" else 255 * torch.rand(2, 3, 20, 20)
    made = {"conv": partial(nn.Conv2d, 3), "padded": partial(nn.Conv2d, 3, padding=1), "linear": nn.Linear}[layer]
    first = made(10, 64) if layer == "linear" else made(64, 3)
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    model(x)
    # Measured: 3.8e-3 to 4.6e-3, as inside the box; with denominators of bfloat16 2.4e-2 to 5e3.
    assert errors(model.eval(), x, rules.ZBox(0.0, 1.0)) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits_have_such_denominators_in_float32(dtype):
    torch.manual_seed(0)
    first = nn.Conv2d(64, 64, 3, padding=1, groups=64)
    model = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 5)).eval().to(dtype)
    x, composite = torch.randn(2, 64, 16, 16).to(dtype), composites.epsilon_plus().with_entries(
        (composites.first(), rules.ZBox(0.0, 1.0))
    )  # fmt: skip
    exact = Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1, 2])
    # Measured: 6e-3 and 2e-3; with denominators of 16 bits 1e2 and 0.5.
    assert relative_error(Explainer(model, composite)(x, [0, 1, 2]), exact) < 2e-2


def test_the_flat_rule_adds_up_relevance_of_both_signs():
    """All inputs of a linear layer get the same sum, whose terms nearly cancel for some target."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 5)).eval()
    # Measured: 1.2e-5, as in float32; by products of bfloat16 5.8e-2.
    assert errors(model, torch.randn(20, 32).relu(), rules.Flat()) < 5e-5
