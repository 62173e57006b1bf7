"""The operations (linear, conv, elementwise) equal the textbook rules; their arguments mean what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastlrp.reference.conv import conv_relevance
from fastlrp.reference.elementwise import elementwise_coefficients
from fastlrp.reference.linear import linear_relevance
from fastlrp.reference.redistribution import Affine
from tests.reference import textbook as rules
from tests.reference.cases import Case, every_layer, make_case, relative_error, stabilizer

EPSILON = 1e-6
TOLERANCE = 1e-13  # relative; measured 4e-16
# Parts that add up to the rule: sign of the weight and bias, rule and alpha of the operation. Then the textbook.
RULES = {
    "epsilon": ([(1, "epsilon", 1.0)], lambda c, R, st: rules.epsilon(c.layer, c.x, R, st)[0]),
    "zplus": ([(1, "zplus", 1.0)], lambda c, R, st: rules.zplus(c.layer, c.x, R, st)[0]),
    "alpha_beta": (
        [(1, "zplus", 2.0), (-1, "zplus", -1.0)],
        lambda c, R, st: rules.alpha_beta(c.layer, c.x, R, st, 2.0, 1.0)[0],
    ),
    "gamma": ([(1, "gamma", 0.25)], lambda c, R, st: rules.gamma(c.layer, c.x, R, st, 0.25)[0]),
}
every_rule = pytest.mark.parametrize("rule", list(RULES))


def sums(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """``z``, ``P + b+`` and ``N + b-`` of the layer."""
    layer, x = case.layer, case.x
    above, below = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    bias = layer.bias
    positive = layer.apply(x.clamp(min=0), above, None if bias is None else bias.clamp(min=0))
    positive = positive + layer.apply(x.clamp(max=0), below, None)
    negative = layer.apply(x.clamp(min=0), below, None if bias is None else bias.clamp(max=0))
    negative = negative + layer.apply(x.clamp(max=0), above, None)
    return case.z, positive.detach(), negative.detach()


def operation(
    case: Case, R: Tensor, u: Tensor | None, v: Tensor | None, signed: bool = True, multiply: bool = True
) -> Tensor:
    """The operation of the layer's kind, with its geometry."""
    module, weight, x = case.module, case.layer.weight, case.x
    prepared = weight.clamp(min=0)
    if isinstance(module, nn.Linear):
        return linear_relevance(R, weight, u, v, x, prepared, signed, multiply)
    assert isinstance(module, nn.modules.conv._ConvNd)
    geometry = [list(module.stride), list(module.padding), list(module.dilation)]
    tail = (module.transposed, list(module.output_padding), module.groups, signed, multiply)
    return conv_relevance(R, weight, u, v, x, prepared, list(x.shape[2:]), *geometry, *tail)


def with_sign(case: Case, sign: int) -> Case:
    """The layer with its weight and bias times ``sign``; the positive part of ``-W`` is the negative one of W."""
    layer = case.layer
    bias = None if layer.bias is None else sign * layer.bias
    return Case(case.module, Affine(layer.apply, sign * layer.weight, bias), case.x, case.R)


def propagate(
    case: Case,
    rule: str,
    epsilon: float,
    factor: Tensor | None = None,
    signed: bool = True,
    multiply: bool = True,
) -> Tensor:
    """What the operations make of the case's relevance: the sum over the parts of the rule."""
    total = torch.zeros(())
    for sign, name, alpha in RULES[rule][0]:
        part = with_sign(case, sign)
        u, v = elementwise_coefficients(*sums(part), factor, name, alpha, epsilon)
        total = total + operation(part, part.R, u, v, signed, multiply)
    return total


@every_rule
@every_layer
@pytest.mark.parametrize("epsilon", [0.0, EPSILON])
def test_two_coefficients_equal_the_textbook_rule(rule: str, name: str, epsilon: float) -> None:
    case = make_case(name, seed=2)
    relevance = propagate(case, rule, epsilon)
    assert relevance.dtype == torch.float64
    assert relative_error(relevance, RULES[rule][1](case, case.R, stabilizer(epsilon))) <= TOLERANCE


@every_rule
@every_layer
@pytest.mark.parametrize("epsilon", [0.0, EPSILON])
def test_unsigned_equals_signed_for_inputs_that_are_not_negative(rule: str, name: str, epsilon: float) -> None:
    case = make_case(name, seed=2)
    case = Case(case.module, case.layer, case.x.abs(), case.R)
    relevance = propagate(case, rule, epsilon, signed=False)
    expected = RULES[rule][1](case, case.R, stabilizer(epsilon))
    assert relative_error(relevance, expected) <= TOLERANCE
    assert relative_error(propagate(case, rule, epsilon, signed=True), relevance) <= TOLERANCE
    c = propagate(case, rule, epsilon, signed=False, multiply=False)
    torch.testing.assert_close(case.x.unsqueeze(1) * c, relevance)


@every_rule
def test_a_factor_makes_relevance_of_what_flows(rule: str) -> None:
    case = make_case("conv2d", seed=2)
    activation = case.z.clamp(min=0)
    expected = RULES[rule][1](case, case.R * activation.unsqueeze(1), stabilizer(EPSILON))
    assert relative_error(propagate(case, rule, EPSILON, activation), expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed2d"])
def test_float32_is_computed_in_float64(name: str) -> None:
    case = make_case(name, seed=2)
    u, v = elementwise_coefficients(*sums(case), None, "gamma", 0.25, EPSILON)
    single = operation(case, case.R.float(), u, v)
    assert single.dtype == torch.float32
    assert relative_error(single.double(), operation(case, case.R.float().double(), u, v)) < 1e-7


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed2d"])
@pytest.mark.parametrize(("batch", "targets"), [(0, 2), (2, 0)])
def test_empty_batch_and_no_targets(name: str, batch: int, targets: int) -> None:
    case = make_case(name, seed=2, batch=max(batch, 1), targets=max(targets, 1))
    empty = Case(case.module, case.layer, case.x[:batch], case.R[:batch, :targets])
    u, v = elementwise_coefficients(*sums(empty), None, "gamma", 0.25, EPSILON)
    assert operation(empty, empty.R, u, v).shape == (batch, targets, *case.x.shape[1:])


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_missing_arguments_are_named(name: str) -> None:
    case = make_case(name)
    ones = torch.ones_like(case.z)
    assert torch.equal(operation(case, case.R, None, None), operation(case, case.R, ones, None))
    blind = Case(case.module, case.layer, case.x, case.R)
    blind.x = None  # type: ignore[assignment]
    if name == "linear":
        with pytest.raises(ValueError, match="input: needed by multiply=True"):
            operation(blind, case.R, ones, None)
        assert operation(blind, case.R, ones, None, multiply=False).shape == (3, 2, 7)


@pytest.mark.parametrize("alpha", [1.0, -2.0])
@pytest.mark.parametrize("rule", ["epsilon", "zplus", "gamma"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_a_factor_of_zero_gives_zero_never_nan(rule: str, epsilon: float, alpha: float) -> None:
    z = torch.tensor([0.0, 1.0, -1.0, 5e-324, float("inf")], dtype=torch.float64)
    u, v = elementwise_coefficients(z, z.clamp(min=0), z.clamp(max=0), torch.zeros_like(z), rule, alpha, epsilon)
    for coefficient in (u, v):
        assert coefficient is None or bool((coefficient == 0).all())


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "gamma"])
def test_without_epsilon_the_quotient_by_zero_is_zero(rule: str) -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    made = [c for c in elementwise_coefficients(zero, zero, zero, None, rule, 2.0, 0.0) if c is not None]
    assert made
    assert all(c.tolist() == [0.0, 0.0, 0.0] for c in made)


def test_alpha_is_the_share_of_the_part() -> None:
    p = torch.tensor([1.0, 4.0, 0.0])
    u, v = elementwise_coefficients(p, p, None, torch.tensor([1.0, 2.0, 3.0]), "zplus", -2.0, 0.0)
    assert u is None
    assert v is not None
    assert v.tolist() == [-2.0, -1.0, 0.0]


def test_the_sign_of_zero_is_plus() -> None:
    u, v = elementwise_coefficients(torch.zeros(1), None, None, None, "epsilon", 1.0, 0.5)
    assert u is not None
    assert u.dtype == torch.float32
    assert u.tolist() == [2.0]
    assert v is None


def test_coefficients_refuse_what_they_cannot_do() -> None:
    z = torch.ones(2)
    with pytest.raises(ValueError, match=r"rule: expected one of .*'gamma'.* got 'flat'"):
        elementwise_coefficients(z, z, z, None, "flat", 1.0, 0.0)
    with pytest.raises(ValueError, match="negative: rule 'gamma' needs it"):
        elementwise_coefficients(z, z, None, None, "gamma", 1.0, 0.0)
