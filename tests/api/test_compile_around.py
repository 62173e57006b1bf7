"""Explainers inside functions that ``torch.compile`` compiles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_alpha2_beta1"])
def test_an_explainer_survives_it(composite):
    explainer = fastlrp.Explainer(net(), composite)
    x = torch.randn(2, 3, 8, 8)

    def saliency(x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x) + 1
        return explainer(y, [0, 3], reduce="channels").abs().sum((2, 3)) * 2

    expected = saliency(x)
    compiled = torch.compile(saliency, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled(x[:1]), expected[:1], rtol=1e-4, atol=1e-6)


def test_records_too():
    explainer = fastlrp.Explainer(net(), "epsilon_plus")
    x = torch.randn(2, 3, 8, 8)

    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        record = explainer.forward(x * 1.0)
        return record.relevance([1]) + 0, record.under("epsilon_plus_flat").relevance([1]) + 0

    found, expected = torch.compile(both, backend="eager")(x), both(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_operations_are_compiled_themselves():
    """They have fakes, so that a compiled function may call them without a break."""
    from fastlrp import functional

    weight, u = torch.randn(5, 7), torch.randn(2, 5)

    def step(flow: torch.Tensor) -> torch.Tensor:
        return functional.linear_relevance(flow * 2, weight, u) + 1

    flow = torch.randn(2, 3, 5)
    found = torch.compile(step, backend="eager", fullgraph=True)(flow)
    torch.testing.assert_close(found, step(flow))
