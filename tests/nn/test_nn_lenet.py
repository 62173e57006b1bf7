"""LeNet-5 of the LRP Toolbox: all of its numbers, through the thin modules and through an Explainer."""

from __future__ import annotations

import pytest
import torch

from fastlrp import Explainer, composites, nn, rules
from fastlrp.composites import PROFILES, kind, preset
from tests import goldens
from tests.nn import lenet
from tests.reference.cases import relative_error

pytestmark = goldens.needs_goldens

TOLERANCE = 5e-8  # The files are float32; measured: 2.6e-8.
FLOAT32 = 2e-6  # Measured: 9.7e-7


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return lenet.golden()


@pytest.fixture(scope="module")
def net(expected) -> nn.Sequential:
    return lenet.network()


@pytest.fixture
def scores(net, expected) -> torch.Tensor:
    net.set_lrp_parameters()
    scores = net.forward(lenet.digits(expected), lrp_aware=True)
    assert relative_error(scores, expected["logits"]) < TOLERANCE
    return scores


@pytest.mark.parametrize("suffix", ["", "_slow"])
@pytest.mark.parametrize("name", list(lenet.VARIANTS))
def test_one_variant(name, suffix, net, scores, expected):
    variant, parameter = lenet.VARIANTS[name]
    relevance = net.lrp(torch.diag_embed(scores), variant + suffix, parameter)
    assert relevance.shape == (10, 10, 1, 32, 32)
    assert relative_error(relevance.squeeze(2), expected[name]) < TOLERANCE


def set_mixed(net: nn.Sequential, name: str) -> None:
    net.set_lrp_parameters("alphabeta", 2 if name.startswith("alphabeta_2") else 1)
    for module in net:
        if name == "alphabeta_2_conv_simple_pool" and isinstance(module, nn.SumPool2d):
            module.set_lrp_parameters("simple")
    if "first" in name:
        net[0].set_lrp_parameters(name.rpartition("_")[2])


@pytest.mark.parametrize("name", lenet.MIXED)
def test_parameters_of_each_layer(name, net, scores, expected):
    set_mixed(net, name)
    relevance = net.lrp(torch.diag_embed(scores))
    assert relative_error(relevance.squeeze(2), expected[name]) < TOLERANCE
    explicit = net.lrp(torch.diag_embed(scores), "epsilon", 0.1)
    assert relative_error(explicit.squeeze(2), expected["epsilon_0.1"]) < TOLERANCE


@pytest.mark.parametrize("name", [*lenet.VARIANTS, *lenet.MIXED])
def test_layer_by_layer(name, net, scores, expected):
    if name in lenet.MIXED:
        set_mixed(net, name)
        variant: tuple = (None, None)
    else:
        variant = lenet.VARIANTS[name]
    R = torch.diag_embed(scores)
    for module in reversed(list(net)):
        R = net.lrp_layerwise(module, R, *variant)
    assert relative_error(R.squeeze(2), expected[name]) < TOLERANCE


def by_profile(name: str) -> composites.Composite:
    calls = {
        "simple": ("lrp0", {}),
        "epsilon_1": ("epsilon", {"epsilon": 1.0}),
        "epsilon_0.1": ("epsilon", {"epsilon": 0.1}),
        "alphabeta_1": ("alpha_beta", {"alpha": 1, "beta": 0}),
        "alphabeta_2": ("alpha_beta", {"alpha": 2, "beta": 1}),
        "flat": ("flat", {}),
        "ww": ("wsquare", {}),
    }
    if name == "alphabeta_2_conv_simple_pool":
        simple = rules.Norm(PROFILES["toolbox"].pool_stabilizer, of_sum=True)
        return preset("alpha_beta", "toolbox").with_entries((kind("avg_pool"), simple))
    if name == "alpha1_first_ww":
        first = rules.WSquare(0.0, zero_bias=True)
    elif name == "alpha1_first_flat":
        first = rules.Flat(0.0)
    else:
        return preset(calls[name][0], "toolbox", **calls[name][1])
    return preset("alpha_beta", "toolbox", alpha=1, beta=0).with_entries((composites.first(), first))


@pytest.mark.parametrize("modules", ["thin", "plain"])
@pytest.mark.parametrize("name", [*lenet.VARIANTS, *lenet.MIXED])
def test_explainer_with_the_toolbox_profile(name, modules, net, expected):
    model = net if modules == "thin" else lenet.plain()
    explainer = Explainer(model, by_profile(name))
    relevance = explainer(lenet.digits(expected), "all")
    assert relative_error(relevance.squeeze(2), expected[name]) < TOLERANCE


def test_explainer_takes_the_profile_by_name(expected):
    relevance = Explainer(lenet.plain(), "lrp0", profile="toolbox")(lenet.digits(expected), "all")
    assert relative_error(relevance.squeeze(2), expected["simple"]) < TOLERANCE


def test_every_golden_is_tested(expected):
    assert set(lenet.VARIANTS) | set(lenet.MIXED) == set(expected) - {"images", "labels", "logits"}


@pytest.mark.parametrize("name", list(lenet.VARIANTS))
def test_float32(name, expected):
    net = lenet.network(torch.float32)
    scores = net.forward(lenet.digits(expected).float(), lrp_aware=True)
    relevance = net.lrp(torch.diag_embed(scores), *lenet.VARIANTS[name])
    assert relative_error(relevance.squeeze(2).double(), expected[name]) < FLOAT32
