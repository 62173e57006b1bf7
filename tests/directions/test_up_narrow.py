"""The way up in 16 bits: no further from float64 than twice as far as the way down, boxes and the middle included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import groups
from tests.transformers.oracle import transformer


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma", "alpha_beta"])
def test_convolutions(dtype, composite):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6),
    ).to(dtype).eval()  # fmt: skip
    x = torch.rand(2, 3, 16, 16).to(dtype)
    _check(model, x, composite, groups.patches(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_transformer(dtype):
    torch.manual_seed(0)
    _check(transformer(False, False, True).to(dtype), torch.randn(2, 6, 16).to(dtype), "attnlrp", "tokens")


def _check(model: nn.Module, x: torch.Tensor, composite: str, parts: object) -> None:
    with fastlrp.Explainer(model, composite).forward(x) as record:
        targets = [0, 1, 3]
        ways = {way: record.relevance(targets, groups=parts, direction=way) for way in ("down", "up", "middle")}
        brought = record.contributions(parts)
    double = fastlrp.Explainer(model.double(), composite).forward(x.double())
    expected = double.relevance(targets, groups=parts, direction="down")
    for way in ("up", "middle"):
        assert ways[way].dtype == x.dtype
        assert error(ways[way], expected) <= 2 * error(ways["down"], expected) + torch.finfo(x.dtype).eps, way
    whole = double.contributions(parts)
    for name, found in brought.items():
        if name.endswith(".up"):  # Read through gelu(u) / u, which has few digits in 16 bits where u is far below 0.
            assert bool(found.isfinite().all())
            continue
        assert error(found, whole[name]) < 4 * torch.finfo(x.dtype).eps, name
