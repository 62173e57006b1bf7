"""Captum's own tools with the replacement in the place of its methods, against the same tools with the original."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlrp.compat.captum import LRP, EpsilonRule, GammaRule, LayerLRP
from tests.compat.captum_scripts import TwoInputs, relative_error

captum_attr = pytest.importorskip("captum.attr")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor")


class Network(nn.Module):
    """Captum has no rule for ``nn.Flatten``."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Linear(4 * 4 * 4, 5)]
        self.layers = nn.ModuleList(layers)

    def __getitem__(self, number: int) -> nn.Module:
        return self.layers[number]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x.flatten(1) if isinstance(layer, nn.Linear) else x)
        return x


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().double()


X = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_it_is_what_captum_asks_for() -> None:
    lrp, layer = LRP(network()), LayerLRP(model := network(), model[0])
    for name in ("Attribution", "GradientAttribution", "LRP"):
        assert isinstance(lrp, getattr(captum_attr, name))
        assert isinstance(layer, getattr(captum_attr, name))
    for name in ("LayerAttribution", "LayerLRP"):
        assert isinstance(layer, getattr(captum_attr, name))
        assert not isinstance(lrp, getattr(captum_attr, name))
    assert not isinstance(lrp, captum_attr.IntegratedGradients)
    assert not isinstance(lrp, nn.Module)
    assert type(lrp) is LRP
    assert lrp.get_name() == captum_attr.LRP.get_name() == LRP.get_name()
    assert layer.get_name() == captum_attr.LayerLRP.get_name() == "Layer L R P"
    assert lrp.forward_func is lrp.model


def test_copies_are_of_its_own_type() -> None:
    class Own(LRP):
        """A subclass of a user."""

    for lrp in (LRP(network()), Own(network())):
        again = copy.copy(lrp)
        assert type(again) is type(lrp)
        assert isinstance(again, captum_attr.Attribution)
        assert again.__class__ is lrp.__class__
    assert type(copy.deepcopy(LRP(network()))) is LRP
    assert type(pickle.loads(pickle.dumps(LRP(network())))) is LRP


@pytest.mark.slow
def test_captum_is_never_imported_for_it() -> None:
    code = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from fastlrp.compat.captum import LRP, LayerLRP\n"
        "lrp = LRP(nn.Sequential(nn.Linear(2, 2)))\n"
        "assert lrp.__class__ is LRP and isinstance(lrp, LRP) and lrp.get_name() == 'L R P'\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'captum']\n"
        "from captum.attr import Attribution\n"
        "assert isinstance(lrp, Attribution), 'made before Captum was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def both(make: Any, **options: Any) -> tuple[Any, Any]:
    """What a tool gives with the original and with the replacement, from the same random numbers."""
    found = []
    for method in (captum_attr.LRP, LRP):
        model = network()
        torch.manual_seed(3)
        found.append(make(method(model), model, **options))
    return found[0], found[1]


def same(theirs: Any, ours: Any) -> None:
    if isinstance(theirs, (tuple, list)):
        assert type(theirs) is type(ours)
        assert len(theirs) == len(ours)
        for a, b in zip(theirs, ours, strict=True):
            same(a, b)
    else:
        assert theirs.shape == ours.shape
        assert relative_error(ours, theirs.detach()) < 1e-10


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nt_type": "smoothgrad_sq", "stdevs": 0.3},
        {"nt_type": "vargrad", "nt_samples": 4},
        {"nt_samples": 5, "nt_samples_batch_size": 2},
        {"return_convergence_delta": True, "nt_samples": 3, "nt_samples_batch_size": 2},
        {"target": [0, 1, 4]},
        {"target": torch.tensor([0, 1, 4])},
    ],
)
def test_noise_tunnel(options: dict[str, Any]) -> None:
    same(*both(lambda lrp, model: captum_attr.NoiseTunnel(lrp).attribute(X, **{"target": 1, **options})))


def test_noise_tunnel_with_rules_and_delta() -> None:
    def run(lrp: Any, model: Network) -> Any:
        rules = sys.modules["captum.attr._utils.lrp_rules"]
        model[0].rule, model[3].rule = rules.GammaRule(0.25), rules.EpsilonRule(1e-2)
        tunnel = captum_attr.NoiseTunnel(lrp)
        assert tunnel.has_convergence_delta()
        assert tunnel.multiplies_by_inputs
        return tunnel.attribute(X, target=2, nt_samples=3, return_convergence_delta=True)

    same(*both(run))


def test_noise_tunnel_of_two_inputs() -> None:
    found = []
    for method in (captum_attr.LRP, LRP):
        torch.manual_seed(0)
        model = TwoInputs().eval().double()
        inputs = tuple(torch.randn(2, 3, dtype=torch.float64) for _ in range(2))
        torch.manual_seed(4)
        tunnel = captum_attr.NoiseTunnel(method(model))
        found.append(tunnel.attribute(inputs, target=0, nt_samples=3, stdevs=(0.1, 0.5)))
    same(*found)


def test_noise_tunnel_of_a_layer() -> None:
    """Captum's own LayerLRP cannot be in a tunnel (it lacks what the tunnel calls), so noise of zero is the check."""
    model = network()
    layers = LayerLRP(model, model[0])
    found = captum_attr.NoiseTunnel(layers).attribute(X, target=1, nt_samples=2, stdevs=0.0)
    same(captum_attr.LayerLRP(model, model[0]).attribute(X, target=1), found)


def test_metrics() -> None:
    from captum.metrics import infidelity, sensitivity_max

    def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(x) * 0.1
        return noise, x - noise

    def run(lrp: Any, model: Network) -> Any:
        attributions = lrp.attribute(X, target=1)
        wrong = infidelity(model, perturb, X, attributions.detach(), target=1, n_perturb_samples=4)
        sensitive = sensitivity_max(lrp.attribute, X, perturb_radius=0.05, n_perturb_samples=3, target=1)
        return wrong, sensitive

    same(*both(run))


def test_gradient_func_is_the_plain_gradient() -> None:
    def run(lrp: Any, model: Network) -> Any:
        x = X.clone().requires_grad_()
        return [lrp.gradient_func(model, x, target) for target in (1, torch.tensor([0, 1, 4]), [2, 2, 0])]

    same(*both(run))


def test_layers_in_the_size_of_the_input() -> None:
    model = network()
    found = LayerLRP(model, model[0]).attribute(X, target=1)
    larger = LayerLRP.interpolate(found, (16, 12), "bilinear")
    same(captum_attr.LayerLRP.interpolate(found, (16, 12), "bilinear"), larger)
    same(captum_attr.LayerAttribution.interpolate(found, 20), LayerLRP.interpolate(found, 20))


def test_another_layer_of_the_same_object() -> None:
    """Captum's TCAV gives one object one layer after the other."""
    model = network()
    layers = LayerLRP(model, model[0])
    first = layers.attribute.__wrapped__(layers, X, target=1)
    layers.layer = model[2]
    assert layers.layer is model[2]
    same(layers.attribute(X, target=1), LayerLRP(model, model[2]).attribute(X, target=1))
    layers.layer = [model[0]]
    same(layers.attribute(X, target=1)[0], first)
    with pytest.raises(ValueError, match="not a module of this model"):
        layers.layer = nn.Linear(1, 1)


def test_pictures() -> None:
    pytest.importorskip("matplotlib").use("agg")
    from captum.attr import visualization

    found = LRP(network()).attribute(X, target=1)[0].numpy().transpose(1, 2, 0)
    figure, _ = visualization.visualize_image_attr(found, sign="all", use_pyplot=False)
    assert figure.axes


def test_two_models_of_captums_tests_are_refused_and_listed() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()[0].unsqueeze(0))

    dropout = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 3)).train()
    for model, message in ((First().eval(), "batch"), (dropout, "training mode")):
        with pytest.raises((RuntimeError, ValueError), match=message):
            LRP(model).attribute(torch.rand(1, 4), target=1)


def test_own_rules_still_work_in_a_tunnel() -> None:
    model = network()
    model[0].rule, model[3].rule = GammaRule(0.25), EpsilonRule(1e-2)
    found = captum_attr.NoiseTunnel(LRP(model, keep_rules=True)).attribute(X, target=2, nt_samples=2)
    assert found.shape == X.shape
