"""Random small networks against a plain walk through the definitions, for every rule, backend and pool mode."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fastlrp import Composite, Explainer, Stabilizer, composites, rules
from tests.api.models import gradient_times_input, relative_error
from tests.api.oracle import one_hot_scores, walk

# Measured: 4e-13 in the worst case (gamma, relative stabilizer); the definitions and the kernels add in another order.
TOLERANCE = 1e-10
pytestmark = pytest.mark.usefixtures("captured_once")


def network(seed: int) -> tuple[nn.Sequential, torch.Tensor]:
    """Convolutions of changing geometry, a max-pool, an average pool or none, two linear layers; and an input."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    torch.manual_seed(seed)
    groups, bias = pick(1, 2), pick(True, False)
    body = [
        nn.Conv2d(2, 4, 3, stride=pick(1, 2), padding=pick(0, 1), bias=pick(True, False)), nn.ReLU(),
        nn.MaxPool2d(pick(2, 3), stride=pick(1, 2), padding=pick(0, 1), ceil_mode=pick(True, False)),
        nn.Conv2d(4, 4, pick(1, 2), dilation=pick(1, 2), padding=1, groups=groups, bias=bias), nn.ReLU(),
        *pick([nn.AvgPool2d(2, stride=1, padding=1)], []),
        nn.Flatten(),
    ]  # fmt: skip
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    width = nn.Sequential(*body).double()(x).shape[1]
    model = nn.Sequential(*body, nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    return model, x


SEEDS = range(5)
NETWORKS = {seed: network(seed) for seed in SEEDS}
LOW = torch.tensor([-6.0, -5.0], dtype=torch.float64).view(1, 2, 1, 1)
RULES = {
    "lrp0": rules.Epsilon(0.0),
    "epsilon": rules.Epsilon(0.1),
    "epsilon_zero_bias": rules.Epsilon(0.1, zero_bias=True),
    "zplus": rules.ZPlus(),
    "zplus_zero_bias": rules.ZPlus(0.1, zero_bias=True),
    "alpha2beta1": rules.AlphaBeta(),
    "alpha1beta0": rules.AlphaBeta(1.0, 0.0),
    "alpha_beta_zero_bias": rules.AlphaBeta(3.0, 2.0, 0.01, zero_bias=True),
    "alpha_below_one": rules.AlphaBeta(0.25, -0.75, 0.01),
    "alpha_zero": rules.AlphaBeta(0.0, -1.0, 0.01),
    "gamma": rules.Gamma(0.1),
    "gamma_zero_bias": rules.Gamma(0.3, 0.01, zero_bias=True),
    "plain_gamma": rules.PlainGamma(0.3, 0.01),
    "modified_weights": rules.ModifiedWeights(torch.abs, 0.01),
    "wsquare": rules.WSquare(),
    "wsquare_zero_bias": rules.WSquare(0.1, zero_bias=True),
    "flat": rules.Flat(0.1),
    "box": rules.ZBox(-6.0, 7.0),
    "relative_sample": rules.Gamma(0.2, Stabilizer(0.1, relative="sample")),
    "relative_tensor": rules.ZPlus(Stabilizer(0.1, relative="tensor", signed=False)),
    "unsigned": rules.Epsilon(Stabilizer(0.1, signed=False)),
    "unsigned_alpha_beta": rules.AlphaBeta(2.0, 1.0, Stabilizer(1e-3, signed=False)),
    "unsigned_gamma": rules.Gamma(0.3, Stabilizer(0.1, relative="sample", signed=False)),
    "clip": rules.AlphaBeta(2.0, 1.0, Stabilizer(0.2, clip=True)),
}
FIRST = {
    "box": rules.ZBox(LOW, 7.0),
    "flat": rules.Flat(),
    "wsquare": rules.WSquare(),
    "gamma": rules.Gamma(0.5),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RULES)
def test_one_rule_everywhere(name, seed):
    model, x = NETWORKS[seed]
    rule = RULES[name]
    composite = composites.uniform(rule, 1e-6)
    with Explainer(model, composite).forward(x) as record:
        torch.testing.assert_close(record.output, model(x), rtol=1e-13, atol=0)
        found = record.relevance("all", layers="all")
    expected = walk(model, x, one_hot_scores(model(x)), lambda i, n: rule)
    assert set(found) == set(expected)
    for layer, relevance in expected.items():
        assert relative_error(found[layer], relevance) <= TOLERANCE, layer


@pytest.mark.parametrize("backend", ["torch", "cpu", "reference"])
@pytest.mark.parametrize(("first", "name"), list(itertools.product(FIRST, ["zplus", "gamma", "alpha2beta1"])))
def test_another_rule_first(first, name, backend):
    model, x = NETWORKS[3]
    rule = RULES[name]
    composite = composites.uniform(rule, 1e-6).with_entries((composites.first(), FIRST[first]))
    found = Explainer(model, composite, backend=backend)(x, "all")
    expected = walk(model, x, one_hot_scores(model(x)), lambda i, n: FIRST[first] if i == 0 else rule)["input"]
    assert relative_error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("max_pool", ["winner", "ties", "average", "sum"])
def test_max_pool_modes(max_pool, seed):
    model, x = NETWORKS[seed]
    composite = composites.epsilon_plus(max_pool=max_pool)
    found = Explainer(model, composite)(x, "all")
    expected = walk(
        model, x, one_hot_scores(model(x)), lambda i, n: rules.ZPlus() if i < 2 else rules.Epsilon(), max_pool
    )["input"]
    assert relative_error(found, expected) <= TOLERANCE


def test_max_pool_modes_by_hand():
    """Window (1, 3, 3, 0): the winner is the first 3, ties share, average and sum go by value."""
    model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 1, bias=False)).double().eval()
    nn.init.constant_(model[2].weight, 7.0)
    x = torch.tensor([1.0, 3.0, 3.0, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
    shares = {"winner": [0, 1, 0, 0], "ties": [0, 0.5, 0.5, 0], "average": [1 / 7, 3 / 7, 3 / 7, 0],
              "sum": [1 / 7, 3 / 7, 3 / 7, 0]}  # fmt: skip
    for mode, share in shares.items():
        found = Explainer(model, composites.lrp0(max_pool=mode))(x, 0).flatten()
        expected = 21 * torch.tensor(share, dtype=torch.float64)
        # Average and sum pools keep the stabilizer's 1e-6 of 7 or 7/4.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, msg=mode)


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_family(seed):
    model, x = NETWORKS[seed]
    y = model(x)
    initial = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)

    def gradient(i, n):
        return rules.Gradient()

    def excitation(i, n):
        return rules.ZPlus()

    point = x.clone().requires_grad_()
    plain = torch.stack([torch.autograd.grad(model(point)[:, c].sum(), point)[0] for c in range(3)], 1)
    found = {
        name: Explainer(model, name)(x, "all", initial="one")
        for name in ("gradient", "deconvnet", "guided_backprop", "excitation_backprop")
    }
    assert relative_error(found["gradient"], plain) <= TOLERANCE
    # Average pools are plain gradients in deconvnet and guided backprop; only nets without one have that walk here.
    if not any(isinstance(layer, nn.AvgPool2d) for layer in model):
        deconvnet = walk(model, x, initial, gradient, at_relu="deconvnet")["input"]
        guided = walk(model, x, initial, gradient, at_relu="guided")["input"]
        assert relative_error(found["deconvnet"], deconvnet) <= TOLERANCE
        assert relative_error(found["guided_backprop"], guided) <= TOLERANCE
        assert relative_error(deconvnet, guided) > 0.01
    expected = walk(model, x, initial, excitation, at_relu="gradient")["input"]
    assert relative_error(found["excitation_backprop"], expected) <= TOLERANCE
    assert y.shape == (2, 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["lrp0", "attnlrp", "cp_lrp", "mamba_lrp"])
def test_epsilon_zero_is_gradient_times_input(seed, name):
    model, x = NETWORKS[seed]
    found = Explainer(model, name)(x, "all")
    # Independent of every definition of ours. Average pools have no bias, so they keep the identity too.
    assert relative_error(found, gradient_times_input(model, x)) <= TOLERANCE


def test_every_preset_has_been_walked():
    """A preset that is added must be added here too."""
    walked = {"lrp0", "attnlrp", "cp_lrp", "mamba_lrp", "epsilon", "gamma", "alpha_beta", "zplus", "wsquare", "flat",
              "gradient", "deconvnet", "guided_backprop", "excitation_backprop", *PRESETS}  # fmt: skip
    assert walked == set(composites.PRESETS)


PRESETS = {
    "deep_taylor": lambda i, n: rules.WSquare(zero_bias=True) if i == 0 else rules.ZPlus(zero_bias=True),
    "epsilon_plus": lambda i, n: rules.ZPlus() if i < n - 2 else rules.Epsilon(),
    "epsilon_plus_flat": lambda i, n: rules.Flat() if i == 0 else rules.ZPlus() if i < n - 2 else rules.Epsilon(),
    "epsilon_gamma_box": lambda i, n: (
        rules.ZBox(LOW, 7.0) if i == 0 else rules.Gamma() if i < n - 2 else rules.Epsilon()
    ),
    "epsilon_alpha2_beta1": lambda i, n: rules.AlphaBeta() if i < n - 2 else rules.Epsilon(),
    "epsilon_alpha2_beta1_flat": lambda i, n: (
        rules.Flat() if i == 0 else rules.AlphaBeta() if i < n - 2 else rules.Epsilon()
    ),
}
UNIFORM = {
    "epsilon": rules.Epsilon(),
    "gamma": rules.Gamma(),
    "alpha_beta": rules.AlphaBeta(),
    "zplus": rules.ZPlus(),
    "wsquare": rules.WSquare(),
    "flat": rules.Flat(),
}


@pytest.mark.parametrize("name", [*PRESETS, *UNIFORM])
def test_presets(name):
    model, x = NETWORKS[1]
    parameters = {"low": LOW, "high": 7.0} if name == "epsilon_gamma_box" else {}
    composite = composites.PRESETS[name](**parameters)
    assert isinstance(composite, Composite)
    found = Explainer(model, composite)(x, "all")
    rule_of = PRESETS.get(name) or (lambda i, n: UNIFORM[name])
    expected = walk(model, x, one_hot_scores(model(x)), rule_of)["input"]
    assert relative_error(found, expected) <= TOLERANCE
