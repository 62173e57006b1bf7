"""Profiles against the numbers of the software whose conventions they have."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastlrp import Explainer, composites, rules
from fastlrp.composites import PRESETS, PROFILES, preset
from tests import goldens
from tests.fixtures import seeded_apart
from tests.reference.cases import relative_error

# iNNvestigate: single layers, float32 files

METHODS = {
    "LRPZ": ("lrp0", {}),
    "LRPEpsilon": ("epsilon", {}),
    "LRPZPlus": ("zplus", {}),
    "LRPAlpha1Beta0": ("alpha_beta", {"alpha": 1, "beta": 0}),
    "LRPAlpha2Beta1": ("alpha_beta", {}),
    "LRPWSquare": ("wsquare", {}),
    "LRPFlat": ("flat", {}),
}


def keras_layer(arrays: dict[str, torch.Tensor], method: str, name: str) -> nn.Module:
    if name == "MaxPooling2D":
        return nn.MaxPool2d(2)
    kernel = arrays[f"{method}/{name}/weights__0"]
    kernel = kernel[None, None] if kernel.dim() == 2 else kernel  # (h, w, in, out)
    layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], tuple(kernel.shape[:2])).double()
    with torch.no_grad():
        layer.weight.copy_(kernel.permute(3, 2, 0, 1))
        layer.bias.copy_(arrays[f"{method}/{name}/weights__1"])
    return nn.Sequential(layer, nn.ReLU()) if name.endswith("relu") else layer


@goldens.needs_goldens
@pytest.mark.parametrize("name", ["Dense", "Dense_relu", "Conv2D_relu", "MaxPooling2D"])
@pytest.mark.parametrize("method", list(METHODS))
def test_innvestigate(method, name):
    arrays = {key: goldens.double(array) for key, array in goldens.load("innvestigate_layers.npz").items()}
    x, model = arrays["input"].movedim(-1, 1), keras_layer(arrays, method, name)
    output = arrays[f"{method}/{name}/output"]
    y = model(x)
    one_hot = torch.zeros_like(output).scatter_(1, output.argmax(1, keepdim=True), output.amax(1, keepdim=True))
    R = one_hot.reshape(len(y), *y.shape[2:], y.shape[1]).movedim(-1, 1)
    known, parameters = METHODS[method]
    relevance = Explainer(model, preset(known, "innvestigate", **parameters))(x, R.unsqueeze(1))[:, 0]
    # Measured: 1.4e-7
    assert relative_error(relevance.movedim(1, -1), arrays[f"{method}/{name}/attribution"]) < 3e-7


# Captum, live


class Net(nn.Module):
    """Captum has no rule for ``nn.Flatten``."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), pool, nn.Conv2d(6, 5, 2), nn.Tanh())
        self.head = nn.Linear(45, 7)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def network(pool: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model = Net(pool)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.3)
    return model.double().eval()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)], ids=["max", "average"])
@pytest.mark.parametrize(
    ("known", "parameters", "rule"),
    [
        ("epsilon", {}, ("EpsilonRule", 1e-9)),
        ("epsilon", {"epsilon": 0.25}, ("EpsilonRule", 0.25)),
        ("gamma", {"gamma": 0.4}, ("GammaRule", 0.4)),
        ("zplus", {}, ("Alpha1_Beta0_Rule",)),
    ],
)
def test_captum(known, parameters, rule, pool):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    theirs = pytest.importorskip("captum.attr._utils.lrp_rules")
    model, x = network(pool), torch.randn(3, 2, 10, 10, dtype=torch.float64)
    found = []
    for target in range(7):
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.rule = getattr(theirs, rule[0])(*rule[1:])
        found.append(attr.LRP(model).attribute(x.clone().requires_grad_(), target=target).detach())
    relevance = Explainer(model, preset(known, "captum", **parameters))(x, "all")
    # Max-pools lose 1e-9 / y there, average pools have Epsilon(1e-9) here as there. Measured: 1.2e-8
    assert relative_error(relevance, torch.stack(found, 1)) < 5e-8


# The tutorial: rho on weights and biases, incr on denominators, in PyTorch


def tutorial(model: nn.Sequential, x: torch.Tensor, target: int, rho, incr) -> torch.Tensor:
    """Its loop: forward through the modified layer, divide, gradient, multiply; max-pools as average pools."""
    activations = [x]
    for layer in model:
        activations.append(layer(activations[-1]))
    R = torch.zeros_like(activations[-1])
    R[:, target] = activations[-1][:, target]
    for layer, a in zip(reversed(model), reversed(activations[:-1]), strict=True):
        if isinstance(layer, nn.ReLU):
            continue
        if isinstance(layer, nn.Flatten):
            R = R.view(a.shape)
            continue
        leaf = a.detach().requires_grad_()
        if isinstance(layer, nn.MaxPool2d):
            z = incr(F.avg_pool2d(leaf, 2))
        elif isinstance(layer, nn.Conv2d):
            z = incr(F.conv2d(leaf, rho(layer.weight), rho(layer.bias)))
        else:
            z = incr(F.linear(leaf, rho(layer.weight), rho(layer.bias)))
        (z * (R / z).detach()).sum().backward()
        R = (leaf * leaf.grad).detach()
    return R


def plus(z):
    return z + 1e-9


def plus_rms(z):
    """The tutorial adds 1e-9 too, which beside 0.25 rms the profile leaves out."""
    return z + 0.25 * ((z**2).mean() ** 0.5).detach()


@pytest.mark.parametrize(
    ("known", "rho", "incr", "tolerance"),
    [
        ("lrp0", lambda p: p, plus, 1e-12),
        ("gamma", lambda p: p + 0.25 * p.clamp(min=0), plus, 1e-12),
        ("epsilon", lambda p: p, plus_rms, 1e-10),
    ],
)
def test_tutorial(known, rho, incr, tolerance):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7)
    )
    model, x = model.double().eval(), torch.rand(2, 2, 10, 10, dtype=torch.float64)
    found = Explainer(model, known, profile="tutorial")(x, "all")
    if known == "epsilon":
        # At pools the profile has +1e-9 alone; the tutorial's recipe for a whole VGG gives each zone its own.
        more = PROFILES["tutorial"].epsilon
        with_pools = preset(known, "tutorial").with_entries((composites.kind("max_pool"), rules.Norm(more)))
        found = Explainer(model, with_pools)(x, "all")
    for target in range(7):
        expected = tutorial(model, x, target, rho, incr)
        assert relative_error(found[:, target], expected) < tolerance, target


# What they are made of


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "epsilon_gamma_box"])
def test_zennit_is_the_preset_itself(name):
    ours, theirs = preset(name), PRESETS[name]()
    assert [rule for _, rule in ours.entries] == [rule for _, rule in theirs.entries]
    assert (ours.max_pool, ours.name) == (theirs.max_pool, theirs.name)


@cache
@seeded_apart
def averaging() -> tuple[nn.Module, torch.Tensor]:
    return network(nn.AvgPool2d(2)), torch.randn(2, 2, 10, 10, dtype=torch.float64)


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("profile", list(PROFILES))
@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_under_every_profile_agrees_with_the_reference(name, profile):
    model, x = averaging()
    parameters = {"low": -5.0, "high": 5.0} if name == "epsilon_gamma_box" else {}
    report = Explainer(model, preset(name, profile, **parameters)).verify(x, "all")
    assert report.ok, str(report)
    assert report.alone is not None or profile == "tutorial"  # Whose epsilon is relative to the batch.


def test_parameters_given_have_precedence():
    assert preset("zplus", "captum", stabilizer=0.5).entries[0][1].stabilizer == 0.5
    assert preset("epsilon", "toolbox", epsilon=0.5, max_pool="winner").max_pool == "winner"
    assert preset("epsilon", "toolbox").max_pool == "ties"


def test_errors():
    with pytest.raises(ValueError, match="unknown profile 'matlab': expected one of zennit, toolbox"):
        preset("epsilon", "matlab")
    with pytest.raises(ValueError, match="unknown composite 'eps': expected one of epsilon_plus"):
        preset("eps", "toolbox")
    with pytest.raises(TypeError, match="zplus has no parameter 'epsilon': it takes stabilizer, zero_bias, max_pool"):
        preset("zplus", "toolbox", epsilon=1)
    with pytest.raises(ValueError, match=r"'epsilon_plus' is already made: use .*preset\(name, 'captum'"):
        Explainer(nn.Linear(2, 2), composites.epsilon_plus(), profile="captum")
    with pytest.raises(ValueError, match="unknown profile 'zenit'"):
        Explainer(nn.Linear(2, 2), "epsilon", profile="zenit")
