"""Rules, stabilizers and composites that make no sense, and bounds that do not fit the input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import Composite, Explainer, Stabilizer, UnsupportedOperationError, composites, rules
from tests.api.models import make, samples

A, B = rules.Gamma(0.1), rules.ZPlus()
REST = composites.epsilon()


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: rules.AlphaBeta(2, 0.5), ValueError, r"alpha - beta = 1 .*got alpha=2, beta=0.5"),
        (lambda: rules.AlphaBeta(-0.5, -1.5), ValueError, r"alpha >= 0 and .*got alpha=-0.5, beta=-1.5"),
        (lambda: rules.AlphaBeta(math.nan, 1), ValueError, "got alpha=nan, beta=1"),
        (lambda: rules.Gamma(-1), ValueError, "Gamma: gamma must be >= 0 and finite, got -1"),
        (lambda: rules.Gamma(math.nan), ValueError, "Gamma: gamma must be >= 0 and finite, got nan"),
        (lambda: rules.PlainGamma(-0.1), ValueError, "PlainGamma: gamma must be >= 0 and finite, got -0.1"),
        (lambda: rules.ZBox(1.0, 0.0), ValueError, r"ZBox: low must not exceed high, got low=1.0, high=0.0"),
        (lambda: rules.ZBox(torch.tensor([0.0, 2.0]), 1.0), ValueError, "ZBox: low must not exceed high"),
        (lambda: rules.ZBox(math.nan, 1.0), ValueError, "ZBox: low and high must be finite"),
        (lambda: rules.ZBox(torch.zeros(2), torch.ones(3)), ValueError, "low and high do not broadcast"),
        (lambda: rules.Epsilon(-1e-6), ValueError, "epsilon must be a finite number >= 0, got -1e-06"),
        (lambda: rules.Epsilon("tiny"), TypeError, "expected a number or a Stabilizer, got str"),
        (lambda: rules.ZPlus(-1.0), ValueError, "epsilon must be a finite number >= 0, got -1.0"),
        (lambda: rules.Flat(None), TypeError, "expected a number or a Stabilizer, got NoneType"),
        (lambda: rules.Gamma(0.1, math.nan), ValueError, "epsilon must be a finite number >= 0, got nan"),
        (lambda: rules.Norm(True), TypeError, "expected a number or a Stabilizer, got bool"),
        (lambda: rules.ModifiedWeights(0.25), TypeError, "modify must be a function of a tensor, got float"),
        (lambda: Stabilizer(-1), ValueError, "Stabilizer: epsilon must be a finite number >= 0, got -1"),
        (lambda: Stabilizer(math.nan), ValueError, "Stabilizer: epsilon must be a finite number >= 0, got nan"),
        (lambda: Stabilizer(1e-6, relative="batch"), ValueError, "None, 'sample' or 'tensor', got 'batch'"),
        (lambda: Composite(((nn.Conv2d, "epsilon"),)), TypeError, r"entry is \(matcher, rule\), got \(.*'epsilon'\)"),
        (lambda: Composite(((nn.Conv2d, rules.Epsilon),)), TypeError, r"entry is \(matcher, rule\), got"),
        (lambda: Composite((nn.Conv2d, A)), TypeError, r"entry is \(matcher, rule\), got <class"),
        (lambda: Composite(((nn.Conv2d, A, B),)), TypeError, r"entry is \(matcher, rule\), got"),
        (lambda: Composite(((3, A),)), TypeError, "matcher is a module type, a tuple of types, a module path or a pre"),
        (lambda: Composite((), max_pool="mean"), ValueError, "'winner', 'ties', 'average' or 'sum', got 'mean'"),
        (lambda: composites.epsilon_plus(max_pool="max"), ValueError, "max_pool must be 'winner', 'ties', 'average'"),
        (lambda: composites.epsilon_plus(epsilon=-1), ValueError, "epsilon must be a finite number >= 0, got -1"),
        (lambda: composites.gamma(-1), ValueError, "Gamma: gamma must be >= 0 and finite, got -1"),
        (lambda: composites.alpha_beta(2, 2), ValueError, "got alpha=2, beta=2"),
        (lambda: composites.epsilon_gamma_box(1, -1), ValueError, "ZBox: low must not exceed high"),
        (lambda: composites.kind("convolution"), ValueError, "unknown kind 'convolution': expected conv, linear"),
        (lambda: composites.first("conv", "add"), ValueError, r"first\(\) takes one kind, or 'conv' and 'linear'"),
    ],
)
def test_nonsense_is_refused_when_it_is_made(make_it, error, message):
    with pytest.raises(error, match=message):
        make_it()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((nn.Conv2d, rules.Norm()), r"Norm\(.*\) is not defined for conv2d \(0\)|is not defined for conv2d \(3\)"),
        ((nn.Linear, rules.GuidedBackprop()), r"GuidedBackprop\(\) is not defined for linear \(6\)"),
        ((nn.ReLU, rules.Epsilon()), r"is not defined for relu .*use Pass, Gradient, Deconvnet or GuidedBackprop"),
    ],
)
def test_a_rule_for_another_kind_of_layer(entry, message):
    with pytest.raises(TypeError, match=message):
        Explainer(make("convnet"), REST.with_entries(entry), example_inputs=samples("convnet"))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(2)


@pytest.mark.parametrize(
    ("layer", "x", "ways"),
    [
        (nn.Embedding(5, 4), torch.tensor([[1, 2]]), "use Pass or Gradient"),
        (nn.EmbeddingBag(5, 4), torch.tensor([[1, 2]]), "use Norm, Epsilon or Gradient"),
        (Mean(), torch.ones(1, 3, 4), "use Norm, Epsilon or Gradient"),
        (nn.AvgPool1d(2), torch.ones(1, 3, 4), "use Norm, Epsilon, AlphaBeta, ZPlus, Flat, WSquare or Gradient"),
    ],
)
def test_what_the_error_names_is_taken(layer, x, ways):
    def explained(rule):
        return fastlrp.explain(
            layer.eval(), x, torch.ones(1, 1, *layer(x).shape[1:]), Composite(((lambda layer: True, rule),))
        )

    with pytest.raises(TypeError, match=rf"is not defined for .*: {ways}"):
        explained(rules.GuidedBackprop())
    for name in ways.removeprefix("use ").replace(" or ", ", ").split(", "):
        assert explained(getattr(rules, name)()).isfinite().all()


def test_a_composite_without_a_rule_for_a_layer():
    with pytest.raises(UnsupportedOperationError, match=r"no rule for operation 'linear' in module '6' \(Linear\)"):
        Explainer(make("convnet"), Composite(((nn.Conv2d, A),)), example_inputs=samples("convnet"))


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 1, 1, 1, 1), (5,), (3, 8, 7)])
def test_box_bounds_of_another_shape(shape):
    composite = composites.epsilon_gamma_box(torch.full(shape, -9.0), 9.0)
    with pytest.raises(ValueError, match=r"ZBox: bounds of shape .* do not broadcast to the layer's input"):
        Explainer(make("convnet"), composite)(samples("convnet"), 0)


def test_box_bounds_for_each_sample():
    x = samples("convnet")
    composite = composites.epsilon_gamma_box(torch.full((len(x), 1, 1, 1), -9.0), 9.0)
    said = rf"same for all samples, .* first axis has to be 1, got shape \({len(x)}, 1, 1, 1\) .* one by one"
    with pytest.raises(ValueError, match=said):
        Explainer(make("convnet"), composite)(x, 0)


@pytest.mark.parametrize("shape", [(), (1,), (8,), (3, 1, 1), (1, 3, 1, 1), (1, 3, 8, 8), (3, 8, 8)])
def test_box_bounds_that_broadcast(shape):
    x = samples("convnet")
    expected = Explainer(make("convnet"), composites.epsilon_gamma_box(-9.0, 9.0))(x, "all")
    composite = composites.epsilon_gamma_box(torch.full(shape, -9.0), torch.full(shape, 9.0))
    assert torch.equal(Explainer(make("convnet"), composite)(x, "all"), expected)
