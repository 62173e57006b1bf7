"""Attention weights that are mixed before they weigh: talking heads, a mixture with fixed weights, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastlrp


class Mixed(nn.Module):
    """Attention of four heads, ``(B, 4, 5, 3)``, whose weights go through a function of the heads' mixing."""

    def __init__(self, mix: Callable[[Mixed, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.heads, self.maps = nn.Linear(4, 4), nn.Conv2d(4, 4, 1)
        self.norm, self.keys = nn.BatchNorm2d(4), nn.Linear(5, 5)
        self.gate = nn.Parameter(torch.tensor([0.3, -0.4, 0.1, 0.8]).view(1, 4, 1, 1))
        self.register_buffer("fixed", torch.rand(1, 4, 5, 5).softmax(-1))
        self.double().eval()
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.mix(self, (q @ k.transpose(-1, -2)).softmax(-1)) @ v


def talking(m: Mixed, p: Tensor) -> Tensor:
    return m.heads(p.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def talking_maps(m: Mixed, p: Tensor) -> Tensor:
    return m.maps(p)


def attending_again(m: Mixed, p: Tensor) -> Tensor:
    return m.norm(m.maps(p))


def gated(m: Mixed, p: Tensor) -> Tensor:
    gate = m.gate.sigmoid()
    p = (1 - gate) * p + gate * m.fixed
    p /= p.sum(-1, keepdim=True)
    return p


MIXES = [talking, talking_maps, attending_again, gated]


def tensors() -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 4, 5, 3, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("mix", MIXES)
def test_equals_the_gradient_of_the_softmax(mix: Callable[[Mixed, Tensor], Tensor]) -> None:
    """AttnLRP is the input times the gradient: half of the values', a quarter of queries' and keys'.

    Their divisor is 1, and its derivative 0. Worst measured: 3e-15.
    """
    model, x = Mixed(mix), tensors()
    start = torch.randn(2, 1, 4, 5, 3, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in x]
    gradients = torch.autograd.grad(model(*leaves), leaves, start[:, 0])
    explainer = fastlrp.Explainer(model, "attnlrp")
    found = explainer(x, start * model(*x).detach().unsqueeze(1))
    for part, t, gradient, share in zip(found, x, gradients, (4, 4, 2), strict=True):
        torch.testing.assert_close(part[:, 0], t * gradient / share, rtol=1e-11, atol=1e-12)
    assert explainer.verify(x, start).ok
    assert fastlrp.Explainer(model, "epsilon_plus").verify(x, start).ok


@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp", "epsilon"])
def test_heads_that_are_not_mixed_are_heads_alone(composite: str) -> None:
    """Worst measured: 2e-11, by the epsilon of the mixing."""
    model, x = Mixed(talking), tensors()
    nn.init.eye_(model.heads.weight)
    nn.init.zeros_(model.heads.bias)
    start = torch.randn(2, 1, 4, 5, 3, dtype=torch.float64)
    with_heads = fastlrp.Explainer(model, composite)(x, start)
    for found, expected in zip(with_heads, fastlrp.Explainer(Mixed(lambda m, p: p), composite)(x, start), strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_probabilities_that_a_layer_reads_are_features() -> None:
    """A layer over what the softmax ran over, a table of codes as a rule, reads an activation."""
    plan = fastlrp.Explainer(Mixed(lambda m, p: m.keys(p)), "attnlrp", example_inputs=tensors()).plan
    kinds = [node.kind for node in plan.graph.nodes]
    assert "activation" in kinds
    assert "attention_weights" not in kinds
