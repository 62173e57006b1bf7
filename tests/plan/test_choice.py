"""Which products a layer has, by its shape, the plan's precision and what the processor has for bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.plan import layer
from fastlrp.plan.products import choice, packed, winograd

pytestmark = pytest.mark.skipif(
    packed._operations() is None or winograd._kernel() is None, reason="no processor or PyTorch that gains by it"
)


def chosen(monkeypatch, unit, precision, model, x):
    """What is true of the products of each layer with a weight, in the order of the model."""
    found, made = {}, choice.choice_for

    def remembered(node, *given):
        found[str(node)] = made(node, *given)
        return found[str(node)]

    monkeypatch.setattr("fastlrp.precision.instruction_set", lambda: unit)
    monkeypatch.setattr(choice, "instruction_set", lambda: unit)
    monkeypatch.setattr(layer, "choice_for", remembered)
    _ = fastlrp.Explainer(model, composites.uniform(rules.ZPlus()), precision=precision)(x, 0)
    return [{name for name, holds in vars(found[key]).items() if holds} for key in sorted(found)]


FILTERED = {"packs", "filters", "filters_sums", "looks_ahead", "looks", "looks_down", "subtracts"}


@pytest.mark.parametrize(
    ("unit", "precision", "looked", "small"),
    [
        ("AMX", "float32", {"packs"}, {"packs"}),
        ("AMX", "auto", FILTERED, FILTERED),
        (None, "auto", FILTERED, FILTERED),
        # Of 64 channels what flows down is of bfloat16 without a look.
        ("AVX512-BF16", "bf16", FILTERED, FILTERED - {"looks_down"}),
        # Products of bfloat16 are faster than all that is filtered but the forward pass.
        ("AMX", "bf16", {"packs", "filters", "looks_ahead"}, {"packs", "filters", "looks_ahead"}),
    ],
)
def test_layers_of_nine_taps(unit, precision, looked, small, monkeypatch):
    torch.manual_seed(0)
    # The last layers do much of the work, so that the others are far enough from the output for bfloat16.
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 1), nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip
    first, *_ = found = chosen(monkeypatch, unit, precision, model.eval(), torch.rand(1, 64, 28, 28))
    narrow = {"is_reduced", "adds_in_one_product"} if precision == "bf16" else set()
    assert first == small | narrow
    assert found[2] == looked | narrow
