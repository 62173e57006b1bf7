"""Every affine rule against Zennit, on inputs of both signs, with biases, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastlrp.reference import weightless
from fastlrp.reference.redistribution import Affine
from tests.reference import textbook as rules
from tests.reference.cases import Case, every_layer, import_zennit_rules, make_case, relative_error, stabilizer

zennit = import_zennit_rules()

ST = stabilizer(1e-6)
LOW, HIGH = -3.0, 4.0
RULES = {
    "epsilon": (lambda: zennit.Epsilon(0.25), lambda l, x, R: rules.epsilon(l, x, R, stabilizer(0.25))),
    "epsilon_zero_bias": (
        lambda: zennit.Epsilon(1e-6, zero_params="bias"),
        lambda l, x, R: rules.epsilon(l, x, R, ST, zero_bias=True),
    ),
    "zplus": (lambda: zennit.ZPlus(), lambda l, x, R: rules.zplus(l, x, R, ST)),
    "zplus_zero_bias": (
        lambda: zennit.ZPlus(zero_params="bias"),
        lambda l, x, R: rules.zplus(l, x, R, ST, zero_bias=True),
    ),
    "alpha2beta1": (lambda: zennit.AlphaBeta(2, 1), lambda l, x, R: rules.alpha_beta(l, x, R, ST, 2, 1)),
    "alpha2beta1_zero_bias": (
        lambda: zennit.AlphaBeta(2, 1, zero_params="bias"),
        lambda l, x, R: rules.alpha_beta(l, x, R, ST, 2, 1, zero_bias=True),
    ),
    "gamma": (lambda: zennit.Gamma(0.25), lambda l, x, R: rules.gamma(l, x, R, ST, 0.25)),
    "zbox": (lambda: zennit.ZBox(LOW, HIGH), lambda l, x, R: rules.zbox(l, x, R, ST, LOW, HIGH)),
    "wsquare": (lambda: zennit.WSquare(), lambda l, x, R: rules.wsquare(l, x, R, ST)),
    "wsquare_zero_bias": (
        lambda: zennit.WSquare(zero_params="bias"),
        lambda l, x, R: rules.wsquare(l, x, R, ST, zero_bias=True),
    ),
    "flat": (lambda: zennit.Flat(), lambda l, x, R: rules.flat(l, x, R, ST)),
    "norm": (
        lambda: zennit.Norm(),
        lambda l, x, R: weightless.norm(lambda value: l.apply(value, l.weight, l.bias), x, R, ST),
    ),
}


def zennit_relevance(rule: object, module: torch.nn.Module, x: Tensor, R: Tensor) -> Tensor:
    """Zennit's relevance of ``x``, target by target."""
    handle = rule.register(module)  # type: ignore[attr-defined]
    try:
        results = []
        for k in range(R.shape[1]):
            point = x.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(module(point), point, R[:, k])
            results.append(gradient.detach())
        return torch.stack(results, dim=1)
    finally:
        handle.remove()


@every_layer
@pytest.mark.parametrize("rule", list(RULES))
def test_affine_rules_equal_zennit(rule: str, name: str) -> None:
    case = make_case(name, seed=1)
    theirs, ours = RULES[rule]
    expected = zennit_relevance(theirs(), case.module, case.x, case.R)
    relevance, _ = ours(case.layer, case.x, case.R)
    assert relative_error(relevance, expected) <= 1e-14  # measured: 4.1e-16


def test_zbox_with_bounds_per_channel() -> None:
    case = make_case("conv2d", seed=1)
    low = torch.tensor([-3.0, -4.0, -5.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    high = torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    expected = zennit_relevance(zennit.ZBox(low, high), case.module, case.x, case.R)
    relevance, _ = rules.zbox(case.layer, case.x, case.R, ST, low, high)
    assert relative_error(relevance, expected) <= 1e-14


def test_gamma_with_zero_bias_differs_in_the_sign_of_the_output() -> None:
    # Zennit takes the sign of z with the bias, the denominator without it; here the layer then has no bias at all.
    case = make_case("linear", seed=1)
    zero = torch.zeros_like(case.module.bias)
    without = Affine(case.layer.apply, case.layer.weight, zero)
    relevance, _ = rules.gamma(case.layer, case.x, case.R, ST, 0.25, zero_bias=True)
    torch.testing.assert_close(relevance, rules.gamma(without, case.x, case.R, ST, 0.25)[0])
    same_sign = (case.z * case.layer.apply(case.x, case.layer.weight, zero) > 0).unsqueeze(1)
    R = torch.where(same_sign, case.R, 0.0)
    expected = zennit_relevance(zennit.Gamma(0.25, zero_params="bias"), case.module, case.x, R)
    assert relative_error(rules.gamma(case.layer, case.x, R, ST, 0.25, zero_bias=True)[0], expected) <= 1e-14


@pytest.mark.parametrize(
    ("module", "shape"), [(torch.nn.AvgPool2d(2), (3, 6, 4)), (torch.nn.AvgPool1d(3, 2, 1), (3, 7))]
)
def test_norm_of_average_pools_equals_zennit(module: torch.nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, *shape, dtype=torch.float64)
    R = torch.randn(2, 3, *module(x).shape[1:], dtype=torch.float64)
    expected = zennit_relevance(zennit.Norm(), module, x, R)
    assert relative_error(weightless.norm(module, x, R, ST)[0], expected) <= 1e-14


def test_gradient_family_equals_zennit() -> None:
    torch.manual_seed(0)
    x, R = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    relu = torch.nn.ReLU()
    torch.testing.assert_close(weightless.deconvnet(R), zennit_relevance(zennit.ReLUDeconvNet(), relu, x, R))
    expected = zennit_relevance(zennit.ReLUGuidedBackprop(), relu, x, R)
    torch.testing.assert_close(weightless.guided_backprop(x, R), expected)


def test_a_case_has_inputs_of_both_signs_and_zeros() -> None:
    case: Case = make_case("conv2d", seed=1)
    assert bool((case.x < 0).any())
    assert bool((case.x > 0).any())
    assert bool((case.x == 0).any())
