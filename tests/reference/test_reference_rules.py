"""Identities between rules, the ledger, and what the rules do not depend on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.reference import weightless
from fastlrp.reference.redistribution import Affine, Ledger
from tests.reference import textbook as rules
from tests.reference.cases import Case, every_layer, make_case, relative_error, stabilizer

RULES: dict[str, Callable[[Case, Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Ledger]]] = {
    "epsilon": lambda c, st, R: rules.epsilon(c.layer, c.x, R, st),
    "epsilon_zero_bias": lambda c, st, R: rules.epsilon(c.layer, c.x, R, st, True),
    "zplus": lambda c, st, R: rules.zplus(c.layer, c.x, R, st),
    "alpha2beta1": lambda c, st, R: rules.alpha_beta(c.layer, c.x, R, st, 2.0, 1.0),
    "alpha2beta1_zero_bias": lambda c, st, R: rules.alpha_beta(c.layer, c.x, R, st, 2.0, 1.0, True),
    "gamma": lambda c, st, R: rules.gamma(c.layer, c.x, R, st, 0.25),
    "gamma_zero_bias": lambda c, st, R: rules.gamma(c.layer, c.x, R, st, 0.25, True),
    "plain_gamma": lambda c, st, R: rules.modified_weights(c.layer, c.x, R, st, lambda w: w + w.clamp(min=0)),
    "zbox": lambda c, st, R: rules.zbox(c.layer, c.x, R, st, -3.0, 4.0),
    "wsquare": lambda c, st, R: rules.wsquare(c.layer, c.x, R, st),
    "flat": lambda c, st, R: rules.flat(c.layer, c.x, R, st),
    "norm": lambda c, st, R: weightless.norm(lambda x: c.layer.apply(x, c.layer.weight, c.layer.bias), c.x, R, st),
}
every_rule = pytest.mark.parametrize("rule", list(RULES))
LRP0 = stabilizer(0.0)


def total(R: Tensor) -> Tensor:
    return R.flatten(2).sum(dim=2)


def imbalance(relevance: Tensor, ledger: Ledger, R: Tensor) -> float:
    """Largest violation of the identity, relative to all that moved."""
    parts = [total(relevance), ledger.bias, ledger.stabilizer, ledger.dead]
    scale = R.abs().sum() + relevance.abs().sum() + sum(part.abs().sum() for part in parts)
    return float((sum(parts) - total(R)).abs().max() / scale)


@every_rule
@every_layer
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.5])
def test_the_ledger_explains_what_does_not_arrive(rule: str, name: str, epsilon: float) -> None:
    case = make_case(name)
    case.x[0] = 0  # a sample in which every neuron is dead or lives by its bias
    relevance, ledger = RULES[rule](case, stabilizer(epsilon), case.R)
    assert relevance.shape == (3, 2, *case.x.shape[1:])
    assert bool(relevance.isfinite().all())
    assert imbalance(relevance, ledger, case.R) < 1e-15  # measured: 6e-17


@every_rule
def test_targets_are_independent_and_propagation_is_linear(rule: str) -> None:
    case = make_case("conv2d_strided")
    run = RULES[rule]
    both, _ = run(case, stabilizer(1e-3), case.R)
    for k in range(2):
        torch.testing.assert_close(run(case, stabilizer(1e-3), case.R[:, k : k + 1])[0], both[:, k : k + 1])
    mixed, _ = run(case, stabilizer(1e-3), 2 * case.R[:, :1] - 3 * case.R[:, 1:])
    assert relative_error(mixed, 2 * both[:, :1] - 3 * both[:, 1:]) < 1e-14
    assert run(case, stabilizer(1e-3), case.R[:, :0])[0].shape[1] == 0


@every_layer
@pytest.mark.parametrize("zero_bias", [False, True])
def test_zplus_is_alpha1_beta0(name: str, zero_bias: bool) -> None:
    case = make_case(name)
    st = stabilizer(1e-6)
    expected, ledger = rules.alpha_beta(case.layer, case.x, case.R, st, 1.0, 0.0, zero_bias)
    relevance, own = rules.zplus(case.layer, case.x, case.R, st, zero_bias)
    torch.testing.assert_close(relevance, expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(own.bias, ledger.bias, rtol=1e-14, atol=1e-14)


@every_layer
def test_alpha_beta_is_linear_in_alpha_and_beta(name: str) -> None:
    case = make_case(name)
    st = stabilizer(1e-6)

    def run(alpha: float, beta: float) -> Tensor:
        return rules.alpha_beta(case.layer, case.x, case.R, st, alpha, beta)[0]

    assert relative_error(run(3.0, 2.0), 3 * run(1.0, 0.0) + 2 * run(0.0, 1.0)) < 1e-14


def positive_case(name: str) -> Case:
    """Inputs >= 0, as after a ReLU, and no bias."""
    case = make_case(name)
    x = case.x.abs()
    layer = Affine(case.layer.apply, case.layer.weight, None)
    return Case(case.module, layer, x, case.R)


@every_layer
def test_gamma_to_infinity_is_zplus(name: str) -> None:
    case = positive_case(name)
    R = torch.where(case.z.unsqueeze(1) > 0, case.R, 0.0)
    relevance, _ = rules.gamma(case.layer, case.x, R, LRP0, 1e9)
    assert relative_error(relevance, rules.zplus(case.layer, case.x, R, LRP0)[0]) < 1e-6


@every_layer
def test_gamma_zero_is_lrp0(name: str) -> None:
    case = make_case(name)
    relevance, _ = rules.gamma(case.layer, case.x, case.R, LRP0, 0.0)
    assert relative_error(relevance, rules.epsilon(case.layer, case.x, case.R, LRP0)[0]) < 1e-13


@every_layer
def test_gamma_is_plain_gamma_for_positive_inputs_and_outputs(name: str) -> None:
    case = positive_case(name)
    R = torch.where(case.z.unsqueeze(1) > 0, case.R, 0.0)
    relevance, _ = rules.gamma(case.layer, case.x, R, LRP0, 0.25)
    plain, _ = rules.modified_weights(case.layer, case.x, R, LRP0, lambda w: w + 0.25 * w.clamp(min=0))
    assert relative_error(relevance, plain) < 1e-13


@every_layer
def test_epsilon_to_zero_conserves_without_a_bias(name: str) -> None:
    case = positive_case(name)
    relevance, ledger = rules.epsilon(case.layer, case.x, case.R, LRP0)
    alive = total(case.R) - ledger.dead
    assert relative_error(total(relevance), alive) < 1e-12

    def lost(epsilon: float) -> float:
        return relative_error(total(rules.epsilon(case.layer, case.x, case.R, stabilizer(epsilon))[0]), alive)

    assert lost(1e-9) < 1e-6 < lost(1e-2)


@pytest.mark.parametrize("rule", ["wsquare", "flat"])
@every_layer
def test_wsquare_and_flat_do_not_depend_on_the_input(rule: str, name: str) -> None:
    case = make_case(name)
    other = Case(case.module, case.layer, torch.full_like(case.x, -7.0), case.R)
    st = stabilizer(1e-6)
    torch.testing.assert_close(RULES[rule](case, st, case.R)[0], RULES[rule](other, st, case.R)[0], rtol=0, atol=0)


@every_layer
def test_zbox_at_the_lower_corner_keeps_only_negative_weights(name: str) -> None:
    case = make_case(name)
    corner = Case(case.module, case.layer, torch.zeros_like(case.x), case.R)
    relevance, _ = rules.zbox(corner.layer, corner.x, case.R, LRP0, 0.0, 1.0)
    ones = torch.ones_like(case.x)
    negative = Affine(case.layer.apply, case.layer.weight.clamp(max=0), None)
    assert relative_error(relevance, rules.epsilon(negative, ones, case.R, LRP0)[0]) < 1e-13


@every_layer
def test_norm_is_epsilon(name: str) -> None:
    case = make_case(name)
    relevance, ledger = RULES["norm"](case, stabilizer(1e-3), case.R)
    expected, other = rules.epsilon(case.layer, case.x, case.R, stabilizer(1e-3))
    assert relative_error(relevance, expected) < 1e-13  # 1.5e-14 measured: the order of sums differs between CPUs
    torch.testing.assert_close(ledger.bias, other.bias, rtol=1e-11, atol=1e-12)


def test_vjp_is_linear_and_equals_the_jacobian() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, dtype=torch.float64)
    weight = torch.randn(3, 5, dtype=torch.float64)

    def forward(value: Tensor) -> Tensor:
        return torch.tanh(F.linear(value, weight))

    s = torch.randn(2, 4, 3, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(forward, sample) for sample in x])
    torch.testing.assert_close(rules.vjp(forward, x, s), torch.einsum("boi,bko->bki", jacobian, s))
    combined = rules.vjp(forward, x, s[:, :2] - 2 * s[:, 2:])
    torch.testing.assert_close(combined, rules.vjp(forward, x, s[:, :2]) - 2 * rules.vjp(forward, x, s[:, 2:]))


def test_vjp_works_without_gradients_enabled_and_leaves_no_graph() -> None:
    x = torch.ones(1, 2, dtype=torch.float64)
    with torch.no_grad():
        out = rules.vjp(lambda value: value.square(), x, torch.ones(1, 1, 2, dtype=torch.float64))
    assert out.tolist() == [[[2.0, 2.0]]]
    assert not out.requires_grad
    assert not x.requires_grad


def test_the_ledger_of_a_sum() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 4, 5).double(), torch.randn(3, 1, 5).double(), torch.randn(1, 4, 1).double()]
    R = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    shares, ledger = weightless.norm_sum(inputs, R, stabilizer(0.1))
    assert [tuple(share.shape) for share in shares] == [(3, 2, 4, 5), (3, 2, 1, 5), (3, 2, 4, 1)]
    arrived = sum(total(share) for share in shares)
    torch.testing.assert_close(arrived + ledger.stabilizer + ledger.bias + ledger.dead, total(R))


@pytest.mark.parametrize("mode", ["winner", "ties", "average", "sum"])
def test_the_ledger_of_a_max_pool(mode: weightless.MaxPoolMode) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64).clamp(min=0)
    x[0, 0] = 0
    R = torch.randn(2, 2, 3, 4, 3, dtype=torch.float64)
    relevance, ledger = weightless.max_pool(x, R, mode, [3, 2], [2, 2], [1, 0], [1, 1], False, stabilizer(0.1))
    assert imbalance(relevance, ledger, R) < 1e-15
