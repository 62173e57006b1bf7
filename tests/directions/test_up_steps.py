"""Every step's transpose, over the table of small modules and all rules, in float64."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import CaptureError, UnsupportedOperationError, composites, rules
from tests.directions.adjoint import LARGEST, errors_of_steps
from tests.models.table import table

TABLE = table()
ROWS = [name for i, name in enumerate(TABLE) if i % 9 == 1 or os.environ.get("FASTLRP_TABLE") == "all"]
OURS = (CaptureError, UnsupportedOperationError)


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    model = TABLE[name]().double().eval()
    x = torch.randn(2, model.first.in_features, dtype=torch.float64)
    try:
        first = fastlrp.Explainer(model, "gradient").forward(x)
    except OURS:
        return
    for composite in ("gradient", "epsilon", "attnlrp"):
        try:
            record = first.under(composite)
        except OURS:
            continue
        if name == "function: cdist":  # PyTorch has no second derivative of it.
            with pytest.raises(UnsupportedOperationError, match="no way up"):
                errors_of_steps(record)
            continue
        found = errors_of_steps(record)
        assert max(found.values()) < LARGEST, {k: v for k, v in found.items() if v >= LARGEST}


RULES = (
    rules.Epsilon(1e-3), rules.ZPlus(), rules.AlphaBeta(2, 1), rules.Gamma(0.25), rules.PlainGamma(0.5),
    rules.WSquare(), rules.Flat(), rules.ZBox(-4.0, 4.0), rules.Gradient(),
)  # fmt: skip
CONVOLUTIONS = {
    "1d": lambda: nn.Conv1d(3, 4, 3, 2, 1), "3d": lambda: nn.Conv3d(2, 3, 2, (1, 2, 1), (0, 1, 1)),
    "groups": lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), "dilated": lambda: nn.Conv2d(3, 4, (3, 2), 1, 2, (2, 3)),
    "wide padding": lambda: nn.Conv2d(3, 4, 2, 3, 5), "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False),
    "stride over the kernel": lambda: nn.Conv2d(3, 4, 1, 3), "same": lambda: nn.Conv2d(3, 4, 4, padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, 1),
    "transposed far": lambda: nn.ConvTranspose2d(4, 2, 2, 3, 1, 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    """Under every rule for weights, behind a ReLU and at an input of both signs, both of which they treat apart."""
    layer = CONVOLUTIONS[name]()
    channels, axes = layer.in_channels, len(layer.kernel_size)
    size = (7, 6, 5)[-axes:]
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten()).double().eval()
    for make in (torch.randn, torch.rand):
        x = make(2, channels, *size, dtype=torch.float64)
        first = fastlrp.Explainer(model, "gradient").forward(x)
        for rule in RULES:
            record = first.under(composites.epsilon().with_entries((composites.kind("conv"), rule)))
            found = errors_of_steps(record)
            assert max(found.values()) < LARGEST, (rule, found)
