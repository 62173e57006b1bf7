"""Captum's LRP where its rules and fastlrp's coincide, and where they do not.

Read off captum 0.9 (attr/_core/lrp.py, attr/_utils/lrp_rules.py):

* Every rule divides by ``z + sgn(z) * eps``, ``sgn(0) = +1``, as here; eps is 1e-9 except in ``EpsilonRule(eps)``.
* ``EpsilonRule`` is Epsilon. Max-pools get it too: the winner takes all, times ``y / (y + 1e-9)``. Average pools get
  it as well, which is Norm; so does batch norm, a layer of its own: with eps near 0 the same as merged.
* ``Alpha1_Beta0_Rule`` clamps the weight, not the bias, and does not look at the sign of x. It is ZPlus where
  ``x >= 0`` and the bias is set to zero or is not negative; for x of both signs it is ModifiedWeights(clamp).
* ``GammaRule`` is ``w + gamma w+`` with the bias left as it is: PlainGamma without a bias. (fastlrp, Zennit and
  RelevancePropagation.jl modify the bias too.) After a ReLU, for x >= 0, that is Gamma.
* Activations pass. The result is multiplied by the target's output: ``initial="output"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import rules
from fastlrp.composites import Composite, first, kind
from tests.peers.zennit_oracle import relative_error
from tests.torchvision_models import random_model, randomise_batch_norm

attr = pytest.importorskip("captum.attr", reason="captum is not installed")
theirs = pytest.importorskip("captum.attr._utils.lrp_rules")

TARGETS = [0, 2, 7]
STABILIZER = 1e-9
TOLERANCE = 1e-11  # Measured: 2.6e-12


class Net(nn.Module):
    """A small VGG. Captum takes each module once, and convolutions, pools, linear layers, ReLU, tanh, dropout only."""

    def __init__(self, bias: str = "any", norm: bool = False, pool: type[nn.Module] = nn.MaxPool2d) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 12), (12, 12)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias != "none")]
            layers += [nn.BatchNorm2d(outputs)] if norm else []
            layers += [nn.ReLU()] + ([pool(2)] if outputs == 12 else [])
        self.features = nn.Sequential(*layers)
        self.average = nn.AdaptiveAvgPool2d((2, 2))
        has = bias != "none"
        self.classifier = nn.Sequential(
            nn.Linear(48, 24, has), nn.ReLU(), nn.Dropout(), nn.Linear(24, 16, has), nn.Tanh(), nn.Linear(16, 10, has)
        )
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, 0, 0.2)
                if bias == "positive":
                    parameter.data.abs_()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.average(self.features(x)), 1))


def _net(**options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return randomise_batch_norm(Net(**options)).double().eval(), torch.randn(2, 3, 12, 12, dtype=torch.float64)


def _captum(model: nn.Module, x: Tensor, assign: Callable[[nn.Module, int], Any]) -> Tensor:
    """Relevance under the rules that ``assign`` gives to convolutions and linear layers, by module and position.

    Max-pools get a smaller eps than Captum's 1e-9, which makes a difference of 1e-8 to 5e-8.
    """
    found = []
    for target in TARGETS:
        position = 0
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.rule = assign(module, position)
                position += 1
            elif isinstance(module, nn.MaxPool2d):
                module.rule = theirs.EpsilonRule(1e-30)
        found.append(attr.LRP(model).attribute(x.clone().requires_grad_(), target=target).detach())
    return torch.stack(found, 1)


def _composite(*entries: tuple[Any, rules.Rule]) -> Composite:
    return Composite(
        (
            *entries,
            (kind("activation"), rules.Pass()),
            (kind("add", "avg_pool", "adaptive_avg_pool"), rules.Norm(STABILIZER)),
        )
    )


@pytest.mark.parametrize("epsilon", [1e-9, 1e-3, 0.25])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_epsilon_on_all_layers(epsilon: float, pool: type[nn.Module]) -> None:
    model, x = _net(pool=pool)
    expected = _captum(model, x, lambda module, position: theirs.EpsilonRule(epsilon))
    relevance = fastlrp.explain(model, x, TARGETS, _composite((kind("conv", "linear"), rules.Epsilon(epsilon))))
    assert relative_error(relevance, expected) <= TOLERANCE


def test_epsilon_with_batch_norm() -> None:
    """Two layers there, one here: equal as far as eps (1e-9) does not matter."""
    model, x = _net(norm=True)
    expected = _captum(model, x, lambda module, position: theirs.EpsilonRule(STABILIZER))
    relevance = fastlrp.explain(model, x, TARGETS, _composite((kind("conv", "linear"), rules.Epsilon(STABILIZER))))
    assert relative_error(relevance, expected) <= 1e-6  # Measured: 1.4e-7


def test_epsilon_on_vgg11() -> None:
    model = random_model("vgg11", dtype=torch.float64, classes=10)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # Captum's hooks need it.
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = _captum(model, x, lambda module, position: theirs.EpsilonRule(1e-6))
    relevance = fastlrp.explain(model, x, TARGETS, _composite((kind("conv", "linear"), rules.Epsilon(1e-6))))
    assert relative_error(relevance, expected) <= 1e-13  # Measured: 2.8e-15


def _above(w: Tensor) -> Tensor:
    return w.clamp(min=0)


@pytest.mark.parametrize(("bias", "zero"), [("any", True), ("positive", False), ("none", False)])
def test_alpha1_beta0(bias: str, zero: bool) -> None:
    """z+ on convolutions, epsilon on linear layers. The first layer sees inputs of both signs."""
    model, x = _net(bias=bias)

    def assign(module: nn.Module, position: int) -> Any:
        if isinstance(module, nn.Conv2d):
            return theirs.Alpha1_Beta0_Rule(set_bias_to_zero=zero)
        return theirs.EpsilonRule(1e-6)

    composite = _composite(
        (first(), rules.ModifiedWeights(_above, STABILIZER, zero)),
        (kind("conv"), rules.ZPlus(STABILIZER, zero)),
        (kind("linear"), rules.Epsilon(1e-6)),
    )
    assert relative_error(fastlrp.explain(model, x, TARGETS, composite), _captum(model, x, assign)) <= TOLERANCE


def test_alpha1_beta0_differs_where_a_bias_is_negative() -> None:
    """Captum leaves it in the denominator, which may then be anything; here only its positive part is."""
    model, x = _net(bias="any")
    x = x.abs()
    expected = _captum(
        model, x, lambda m, i: theirs.Alpha1_Beta0_Rule() if isinstance(m, nn.Conv2d) else theirs.EpsilonRule(1e-6)
    )
    entries: Sequence[Any] = ((kind("conv"), rules.ZPlus(STABILIZER)), (kind("linear"), rules.Epsilon(1e-6)))
    assert relative_error(fastlrp.explain(model, x, TARGETS, _composite(*entries)), expected) > 0.05
    own = (kind("conv"), _BiasAsItIs()), entries[1]
    assert relative_error(fastlrp.explain(model, x, TARGETS, _composite(*own)), expected) <= TOLERANCE


class _BiasAsItIs(rules.Custom):
    """Captum's Alpha1_Beta0_Rule as a rule of one's own."""

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        (x,) = inputs
        with torch.enable_grad():
            point = x.clone().requires_grad_(True)
            constant = forward(torch.zeros_like(x))
            # The weight's positive part, from the layer as a function: max(w, 0) on every basis vector.
            basis = torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *x.shape[1:])
            matrix = (forward(basis) - constant[:1]).flatten(1).clamp(min=0)
            z = point.flatten(1) @ matrix + constant.flatten(1)
            s = relevance.flatten(2) / (z + STABILIZER * torch.where(z < 0, -1.0, 1.0)).unsqueeze(1)
        return ((x.unsqueeze(1).flatten(2) * (s.detach() @ matrix.T)).unflatten(2, x.shape[1:]),)


@pytest.mark.parametrize(("bias", "zero"), [("any", True), ("none", False)])
@pytest.mark.parametrize("gamma", [0.25, 10.0])
def test_gamma(bias: str, zero: bool, gamma: float) -> None:
    model, x = _net(bias=bias)

    def assign(module: nn.Module, position: int) -> Any:
        if isinstance(module, nn.Conv2d):
            return theirs.GammaRule(gamma, set_bias_to_zero=zero)
        return theirs.EpsilonRule(1e-6)

    composite = _composite(
        (kind("conv"), rules.PlainGamma(gamma, STABILIZER, zero)), (kind("linear"), rules.Epsilon(1e-6))
    )
    assert relative_error(fastlrp.explain(model, x, TARGETS, composite), _captum(model, x, assign)) <= TOLERANCE


def test_gamma_is_the_generalised_one_after_a_relu() -> None:
    """Without biases, from the second layer on: no neuron with ``z <= 0`` carries relevance."""
    model, x = _net(bias="none")

    def assign(module: nn.Module, position: int) -> Any:
        return theirs.GammaRule(0.25) if isinstance(module, nn.Conv2d) else theirs.EpsilonRule(1e-6)

    composite = _composite(
        (first(), rules.PlainGamma(0.25, STABILIZER)),
        (kind("conv"), rules.Gamma(0.25, STABILIZER)),
        (kind("linear"), rules.Epsilon(1e-6)),
    )
    assert relative_error(fastlrp.explain(model, x, TARGETS, composite), _captum(model, x, assign)) <= TOLERANCE


def test_captum_changed_nothing() -> None:
    model, x = _net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _captum(model, x, lambda module, position: theirs.Alpha1_Beta0_Rule(set_bias_to_zero=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(hasattr(module, "rule") for module in model.modules())
