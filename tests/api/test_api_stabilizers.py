"""Stabilizers, and neurons at which nothing is left to share."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastlrp import Explainer, Stabilizer, composites, rules
from tests.api.models import gradient_times_input, make, relative_error, samples

# Measured: 6e-16.
TIGHT = 1e-12


Z = torch.tensor([[3.0, -4.0], [0.0, 1.0]], dtype=torch.float64)
RMS = [math.sqrt(12.5), math.sqrt(0.5)]
RMS_ALL = math.sqrt(26 / 4)


@pytest.mark.parametrize(
    ("stabilizer", "expected"),
    [
        (Stabilizer(0.1), [[3.1, -4.1], [0.1, 1.1]]),
        (Stabilizer(0.1, signed=False), [[3.1, -3.9], [0.1, 1.1]]),
        (Stabilizer(0.1, relative="sample"), [[3 + 0.1 * RMS[0], -4 - 0.1 * RMS[0]], [0.1 * RMS[1], 1 + 0.1 * RMS[1]]]),
        (
            Stabilizer(0.1, relative="tensor", signed=False),
            [[3 + 0.1 * RMS_ALL, -4 + 0.1 * RMS_ALL], [0.1 * RMS_ALL, 1 + 0.1 * RMS_ALL]],
        ),
        (Stabilizer(3.5, clip=True), [[3.5, -4.0], [3.5, 3.5]]),
        (Stabilizer(1.0, relative="sample", clip=True), [[RMS[0], -4.0], [RMS[1], 1.0]]),
        (Stabilizer(0.0), [[3.0, -4.0], [0.0, 1.0]]),
    ],
)
def test_stabilized_denominators(stabilizer, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(stabilizer(Z), expected, rtol=1e-15, atol=0)
    inverse = stabilizer.reciprocal(Z)
    torch.testing.assert_close(inverse[expected != 0], 1 / expected[expected != 0], rtol=1e-15, atol=0)
    assert bool((inverse[expected == 0] == 0).all()), "1/0 := 0"


@pytest.mark.parametrize("stabilizer", [Stabilizer(0.1), Stabilizer(0.1, relative="sample"), Stabilizer(1, clip=True)])
def test_the_sign_of_zero_is_plus(stabilizer):
    z = torch.tensor([[0.0, -0.0, 2.0]])
    assert bool((stabilizer(z)[:, :2] > 0).all())


def test_the_tutorials_stabilizer():
    """Montavon's tutorial: z + 1e-9 + 0.25 * sqrt(mean(z²)) for one image, over the whole map."""
    model, x = make("convnet"), samples("convnet", 1)
    rule = rules.PlainGamma(0.25, Stabilizer(0.25, relative="tensor", signed=False), zero_bias=True)
    found = Explainer(model, composites.uniform(rule))(x, "all", initial="one")
    activations = [x]
    for layer in model:
        activations.append(layer(activations[-1]).detach())
    relevance = []
    for c in range(5):
        R = torch.zeros(1, 5, dtype=torch.float64)
        R[0, c] = 1.0
        for layer, a in zip(reversed(model), reversed(activations[:-1]), strict=True):
            if isinstance(layer, nn.ReLU):
                continue
            if isinstance(layer, nn.MaxPool2d):
                a = a.clone().requires_grad_()
                (R,) = torch.autograd.grad(layer(a), a, R)
            elif isinstance(layer, nn.Flatten):
                R = R.reshape(a.shape)
            else:
                a = a.clone().requires_grad_()
                w = layer.weight.detach()
                w = w + 0.25 * w.clamp(min=0)
                z = F.linear(a, w) if isinstance(layer, nn.Linear) else F.conv2d(a, w, padding=layer.padding)
                z = z + 0.25 * (z**2).mean().sqrt().detach()
                (gradient,) = torch.autograd.grad((z * (R / z).detach()).sum(), a)
                R = (a * gradient).detach()
        relevance.append(R)
    assert relative_error(found, torch.stack(relevance, 1)) <= TIGHT


@pytest.mark.parametrize("composite", ["lrp0", "epsilon", "gamma", "alpha_beta", "zplus"])
def test_dead_neurons(composite):
    """A hidden layer that never fires, and a score of exactly zero: nothing arrives, and nothing is NaN."""
    model = make("mlp")
    x = samples("mlp")
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[2].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    found = Explainer(model, composite)(x, "all", layers="all")
    assert torch.equal(found["input"], torch.zeros(2, 3, 4, dtype=torch.float64))
    assert all(bool(torch.isfinite(relevance).all()) for relevance in found.values())


def test_lrp0_with_some_dead_neurons_is_still_gradient_times_input():
    model, x = make("convnet"), samples("convnet")
    with torch.no_grad():
        model[0].weight[::2] = 0.0
        model[0].bias[::2] = 0.0
        model[3].bias[1] = -100.0
    found = Explainer(model, "lrp0")(x, "all")
    assert bool((model[:2](x)[:, ::2] == 0).all())
    assert relative_error(found, gradient_times_input(model, x)) <= TIGHT
