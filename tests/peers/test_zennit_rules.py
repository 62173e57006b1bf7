"""Single rules of Zennit, each on all layers with a weight of small networks of every kind, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.composites import Composite, first, kind
from tests.fixtures import (
    captured_once,  # noqa: F401
    seeded_apart,
)
from tests.peers.zennit_oracle import relative_error, relevance

theirs = pytest.importorskip("zennit.rules", reason="zennit is not installed", exc_type=ImportError)
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite  # noqa: E402
from zennit.types import Activation, AvgPool, Convolution, Linear  # noqa: E402

pytestmark = pytest.mark.usefixtures("captured_once")
TOLERANCE = 1e-12  # Measured: 1.7e-13
EPSILON = 1e-6

NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "mlp": (lambda: [nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)], (7,)),
    "tokens": (
        lambda: [nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 4)],
        (3, 6),
    ),
    "conv1d": (
        lambda: [nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3, dilation=2, groups=2),
                 nn.SiLU(), nn.AvgPool1d(2, 1), nn.Flatten(), nn.Linear(6, 4)],
        (3, 12),
    ),
    "conv2d": (
        lambda: [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 6, (2, 3), groups=2),
                 nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(36, 4)],
        (3, 9, 11),
    ),
    "conv2d_without_bias": (
        lambda: [nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 6, 3, bias=False),
                 nn.ReLU(), nn.Flatten(), nn.Linear(12, 4, bias=False)],
        (3, 9, 8),
    ),
    "conv3d": (
        lambda: [nn.Conv3d(2, 6, 2, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 4, 2), nn.Sigmoid(),
                 nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 4)],
        (2, 4, 5, 6),
    ),
    "transposed": (
        lambda: [nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
                 nn.ConvTranspose2d(6, 4, 2, groups=2, dilation=2), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(),
                 nn.Linear(48, 4)],
        (3, 4, 5),
    ),
    "transposed1d_3d": (
        lambda: [nn.ConvTranspose1d(3, 6, 3, stride=2), nn.ReLU(), nn.Unflatten(2, (1, 3, 3)),
                 nn.ConvTranspose3d(6, 4, 2, stride=(1, 2, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4)],
        (3, 4),
    ),
}  # fmt: skip

RULES: dict[str, tuple[Callable[[], Any], rules.Rule]] = {
    "epsilon": (lambda: theirs.Epsilon(EPSILON), rules.Epsilon(EPSILON)),
    "large_epsilon": (lambda: theirs.Epsilon(0.25), rules.Epsilon(0.25)),
    "epsilon_zero_bias": (lambda: theirs.Epsilon(EPSILON, zero_params="bias"), rules.Epsilon(EPSILON, zero_bias=True)),
    "zplus": (lambda: theirs.ZPlus(), rules.ZPlus()),
    "zplus_zero_bias": (lambda: theirs.ZPlus(zero_params="bias"), rules.ZPlus(zero_bias=True)),
    "alpha2beta1": (lambda: theirs.AlphaBeta(2, 1), rules.AlphaBeta(2, 1)),
    "alpha3beta2_stabilizer": (lambda: theirs.AlphaBeta(3, 2, stabilizer=0.01), rules.AlphaBeta(3, 2, 0.01)),
    "alpha2beta1_zero_bias": (
        lambda: theirs.AlphaBeta(2, 1, zero_params="bias"),
        rules.AlphaBeta(2, 1, zero_bias=True),
    ),
    "gamma": (lambda: theirs.Gamma(0.25), rules.Gamma(0.25)),
    "large_gamma": (lambda: theirs.Gamma(30.0), rules.Gamma(30.0)),
    "wsquare": (lambda: theirs.WSquare(), rules.WSquare()),
    "wsquare_zero_bias": (lambda: theirs.WSquare(zero_params="bias"), rules.WSquare(zero_bias=True)),
    "flat": (lambda: theirs.Flat(), rules.Flat()),
}


@cache
@seeded_apart
def _network(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = NETWORKS[name]
    model = nn.Sequential(*make()).double().eval()
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, 0, 0.3)
    return model, torch.randn(2, *shape, dtype=torch.float64)


def _ours(*entries: tuple[Any, rules.Rule]) -> Composite:
    elsewhere = (
        (kind("activation"), rules.Pass()),
        (kind("avg_pool", "adaptive_avg_pool"), rules.Norm(EPSILON)),
    )
    return Composite((*entries, *elsewhere))


def _theirs(*entries: tuple[Any, Any], first_map: Any = None) -> Any:
    layer_map = [*entries, (Activation, theirs.Pass()), (AvgPool, theirs.Norm(EPSILON))]
    return SpecialFirstLayerMapComposite(layer_map, first_map) if first_map else LayerMapComposite(layer_map)


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("rule", list(RULES))
def test_one_rule_on_all_layers(network: str, rule: str) -> None:
    model, x = _network(network)
    make, ours = RULES[rule]
    expected = relevance(model, x, range(4), _theirs((Linear, make())))
    got = fastlrp.explain(model, x, "all", _ours((kind("conv", "linear"), ours)))
    assert relative_error(got, expected) <= TOLERANCE


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("bounds", ["numbers", "per_channel", "per_entry"])
def test_zbox_at_the_first_layer(network: str, bounds: str) -> None:
    model, x = _network(network)
    shape = {"numbers": (1,) * x.dim(), "per_channel": (1, x.shape[1], *(1,) * (x.dim() - 2)), "per_entry": x.shape}
    if bounds == "per_entry":
        low, high = x.amin(0, keepdim=True) - 1, x.amax(0, keepdim=True) + 0.5
    else:
        low = -4 - torch.rand(shape[bounds], dtype=torch.float64)
        high = 4 + torch.rand(shape[bounds], dtype=torch.float64)
    box = theirs.ZBox(low.expand_as(x), high.expand_as(x))
    expected = relevance(model, x, range(4), _theirs((Linear, theirs.Gamma(0.25)), first_map=[(Linear, box)]))
    entries = (first(), rules.ZBox(low, high)), (kind("conv", "linear"), rules.Gamma(0.25))
    assert relative_error(fastlrp.explain(model, x, "all", _ours(*entries)), expected) <= TOLERANCE


@pytest.mark.parametrize("network", [name for name in NETWORKS if "conv" in name])
@pytest.mark.parametrize("rule", ["epsilon", "gamma", "alpha2beta1", "zplus"])
@pytest.mark.parametrize("at_first", ["flat", "wsquare"])
def test_rules_whose_relevance_is_not_proportional_to_the_input(network: str, rule: str, at_first: str) -> None:
    """Flat and w2 at the first layer, and between layers that flow in proportion."""
    model, x = _network(network)
    top, bottom = RULES[rule], RULES[at_first]
    expected = relevance(
        model, x, range(4), _theirs((Convolution, bottom[0]()), (nn.Linear, top[0]()), first_map=[(Linear, top[0]())])
    )
    entries = (first(), top[1]), (kind("conv"), bottom[1]), (kind("linear"), top[1])
    assert relative_error(fastlrp.explain(model, x, "all", _ours(*entries)), expected) <= TOLERANCE


def test_norm_of_a_sum() -> None:
    """Zennit's Sum module sums the last axis; fastlrp's counterpart is the operation itself."""
    from zennit.layer import Sum

    class Net(nn.Module):
        def __init__(self, module: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3, stride=1), nn.LazyLinear(4)
            self.sum, self.relu, self.module = Sum(), nn.ReLU(), module

        def forward(self, x: Tensor) -> Tensor:
            terms = self.relu(self.a(x)), self.b(x), x[:, :1, 1:-1, 1:-1].expand(-1, 8, -1, -1)
            y = self.sum(torch.stack(terms, -1)) if self.module else terms[0] + terms[1] + terms[2]
            return self.c(y.flatten(1))

    x = torch.randn(2, 3, 8, 8)
    models = []
    for module in (True, False):
        model = Net(module).eval()
        model(x)
        models.append(model.double())
    models[1].load_state_dict(models[0].state_dict())
    their_map = [(Sum, theirs.Norm(EPSILON)), (Activation, theirs.Pass()), (Linear, theirs.ZPlus())]
    expected = relevance(models[0], x.double(), range(4), LayerMapComposite(their_map))
    composite = composites.zplus(EPSILON)
    assert relative_error(fastlrp.explain(models[0], x.double(), "all", composite), expected) <= TOLERANCE


def test_gamma_with_zero_bias_differs_in_the_sign_of_the_output() -> None:
    """Zennit reads the sign of z off the output with its bias, and divides by the z without: see rules.Gamma."""
    model, x = _network.__wrapped__("mlp")  # its biases are changed below
    expected = relevance(model, x, range(4), _theirs((Linear, theirs.Gamma(0.25, zero_params="bias"))))
    got = fastlrp.explain(model, x, "all", _ours((kind("linear"), rules.Gamma(0.25, zero_bias=True))))
    assert relative_error(got, expected) > 0.01
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    expected = relevance(model, x, range(4), _theirs((Linear, theirs.Gamma(0.25, zero_params="bias"))))
    got = fastlrp.explain(model, x, "all", _ours((kind("linear"), rules.Gamma(0.25, zero_bias=True))))
    assert relative_error(got, expected) <= TOLERANCE
