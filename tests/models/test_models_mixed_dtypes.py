"""Models that compute a part of themselves in another dtype, and nodes that promote what they read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp


class Attends(nn.Module):
    """Scores in float32, as GPT-Neo has them; the mask that is added to them is in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((5, 5), -30.0).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.query(x).float(), self.key(x).float()
        weights = torch.softmax(query @ key.transpose(-1, -2) + self.mask, -1)
        return (weights @ self.value(x)).sum(1)


class Adds(nn.Module):
    """A sum of float32 and float64, both of which depend on the input; the first goes through a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        narrow = nn.functional.linear(x.float(), self.narrow.weight.float(), self.narrow.bias.float())
        return torch.relu(narrow + self.wide(x)) * narrow


@pytest.mark.parametrize(("model", "shape"), [(Attends, (2, 5, 4)), (Adds, (2, 4))])
@pytest.mark.parametrize("composite", ["epsilon_plus", "attnlrp"])
def test_promoted_operands_get_relevance_in_their_own_dtype(
    model: type[nn.Module], shape: tuple[int, ...], composite: str
) -> None:
    torch.manual_seed(0)
    module, x = model().double().eval(), torch.randn(shape, dtype=torch.float64)
    explainer = fastlrp.Explainer(module, "gradient", example_inputs=x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(module(leaf)[:, 1].sum(), leaf)
    with explainer.forward(x) as record:
        found = record.relevance([1], initial="one")
        assert found.dtype == torch.float64
        torch.testing.assert_close(found[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert fastlrp.Explainer(module, composite, example_inputs=x).verify(x, targets=[0, 1]).ok


class Bloom(nn.Module):
    """GELU with products within the product, twice."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))
        return x


def test_products_within_an_activation_go_with_it() -> None:
    x = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.3, -0.2]], dtype=torch.float64)
    explainer = fastlrp.Explainer(Bloom(), "epsilon_plus", example_inputs=x)
    kinds = [node.operation for node in explainer.plan.graph.nodes]
    assert kinds.count("composed_activation") == 2
    assert "mul" not in kinds
    relevance = explainer(x, targets=[1])
    expected = torch.zeros_like(x)
    expected[:, 1] = Bloom()(x)[:, 1]
    torch.testing.assert_close(relevance.reshape(2, 3), expected, rtol=1e-6, atol=1e-9)
