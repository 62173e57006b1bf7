"""Rules for weights at pools, whose weights are all one: by hand, and against the reference layer by layer."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from fastlrp import Explainer, composites, rules
from fastlrp.composites import Composite, kind
from tests.fixtures import seeded_apart

AVERAGE, MAX, ADAPTIVE = kind("avg_pool"), kind("max_pool"), kind("adaptive_avg_pool")


def through(pool: nn.Module, x: torch.Tensor, rule: rules.Rule, R: torch.Tensor, kinds=AVERAGE) -> torch.Tensor:
    return Explainer(pool, Composite(((kinds, rule),)))(x, R.unsqueeze(1))[:, 0]


X = torch.tensor([[[1.0, 3.0, -2.0, -6.0, 0.0, 5.0]]], dtype=torch.float64)
R = torch.tensor([[[8.0, 16.0, 5.0]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (rules.Norm(0.0), [2.0, 6.0, 4.0, 12.0, 0.0, 5.0]),
        # The mean of the window is 2, -4, 2.5; the sum 4, -8, 5.
        (rules.Norm(1.0), [8 / 2 / 3, 24 / 2 / 3, 16 / 5, 48 / 5, 0.0, 12.5 / 3.5]),
        (rules.Norm(1.0, of_sum=True), [8 / 5, 24 / 5, 32 / 9, 96 / 9, 0.0, 25 / 6]),
        (rules.ZPlus(0.0), [2.0, 6.0, 0.0, 0.0, 0.0, 5.0]),
        (rules.ZPlus(1.0), [8 / 5, 24 / 5, 0.0, 0.0, 0.0, 25 / 6]),
        (rules.AlphaBeta(2, 1, 0.0), [4.0, 12.0, -4.0, -12.0, 0.0, 10.0]),
        (rules.AlphaBeta(2, 1, 1.0), [16 / 5, 48 / 5, -32 / 9, -96 / 9, 0.0, 50 / 6]),
        (rules.AlphaBeta(0.5, -0.5, 0.0), [1.0, 3.0, 2.0, 6.0, 0.0, 2.5]),
        (rules.AlphaBeta(0, -1, 0.0), [0.0, 0.0, 4.0, 12.0, 0.0, 0.0]),
        (rules.Flat(0.0), [4.0, 4.0, 8.0, 8.0, 2.5, 2.5]),
        (rules.Flat(2.0), [2.0, 2.0, 4.0, 4.0, 1.25, 1.25]),
        (rules.WSquare(0.0), [4.0, 4.0, 8.0, 8.0, 2.5, 2.5]),
    ],
)
def test_by_hand(rule, expected):
    found = through(nn.AvgPool1d(2), X, rule, R)
    torch.testing.assert_close(found, torch.tensor([[expected]], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", [rules.Flat(0.0), rules.WSquare(0.0)])
def test_flat_at_a_max_pool(rule):
    found = through(nn.MaxPool1d(2), X, rule, R, MAX)
    assert found.tolist() == [[[4.0, 4.0, 8.0, 8.0, 2.5, 2.5]]]


def test_padding_gets_nothing():
    found = through(nn.AvgPool1d(3, padding=1), X, rules.Flat(0.0), torch.tensor([[[6.0, 9.0]]], dtype=torch.float64))
    assert found.tolist() == [[[3.0, 3.0, 3.0, 3.0, 3.0, 0.0]]]


POOLS = [
    (nn.AvgPool2d(2), AVERAGE),
    (nn.AvgPool2d(3, 2, padding=1), AVERAGE),
    (nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False), AVERAGE),
    (nn.AvgPool2d((2, 3), (1, 2), divisor_override=5), AVERAGE),
    (nn.AdaptiveAvgPool2d((3, 2)), ADAPTIVE),
]
EVERY = [
    rules.Norm(0.1, of_sum=True),
    rules.AlphaBeta(2, 1, 0.1),
    rules.AlphaBeta(0.25, -0.75, 0.1),
    rules.ZPlus(0.1),
    rules.Flat(0.1),
    rules.WSquare(0.1),
]


@cache
@seeded_apart
def _network(pool: nn.Module, positive: bool) -> nn.Module:
    middle = [nn.ReLU()] if positive else []
    model = nn.Sequential(nn.Conv2d(2, 4, 3), *middle, pool, nn.Flatten(), nn.LazyLinear(20)).double().eval()
    model(torch.zeros(2, 2, 9, 8, dtype=torch.float64))
    return model


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize(("pool", "kinds"), POOLS, ids=lambda p: str(p) if isinstance(p, nn.Module) else "")
@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_against_the_reference(rule, pool, kinds, positive):
    model = _network(pool, positive)
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    composite = Composite(((kinds, rule),)) | Composite(
        ((kind("conv", "linear"), rules.Epsilon(0.01)), (kind("activation"), rules.Pass()))
    )
    report = Explainer(model, composite).verify(x, "all")
    assert report.ok, str(report)


@pytest.mark.parametrize("rule", [rules.Flat(0.1), rules.WSquare(0.1)], ids=str)
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True)])
def test_max_pools_against_the_reference(rule, pool):
    model = _network(pool, True)
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    composite = Composite(((MAX, rule), (kind("conv", "linear"), rules.ZPlus()), (kind("activation"), rules.Pass())))
    explainer = Explainer(model, composite)
    report = explainer.verify(x, "all")
    assert report.ok, str(report)
    assert str(rule) in str(explainer.plan)


@pytest.mark.parametrize(
    ("rule", "bias", "expected"),
    [
        (rules.PlainGamma(1.0, 0.0), 3.0, [4 / 6, -4 / 6]),  # 4 - 4 + 6
        (rules.PlainGamma(1.0, 0.0, modify_bias=False), 3.0, [4 / 3, -4 / 3]),
        (rules.ModifiedWeights(lambda w: w.clamp(min=0), 0.0), -3.0, [1.0, 0.0]),  # 2 + 0
        (rules.ModifiedWeights(lambda w: w.clamp(min=0), 0.0, modify_bias=False), -3.0, [-2.0, 0.0]),  # 2 - 3
        (rules.ModifiedWeights(lambda w: 2 * w, 0.0, modify_bias=False), -3.0, [-4 / 7, 8 / 7]),  # 4 - 8 - 3
    ],
)
def test_a_bias_that_stays_as_it_is(rule, bias, expected):
    layer = nn.Linear(2, 1).double()
    layer.weight.data, layer.bias.data = torch.tensor([[2.0, -1.0]]).double(), torch.tensor([bias]).double()
    x = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    explainer = Explainer(layer, Composite(((kind("linear"), rule),)))
    found = explainer(x, torch.ones(1, 1, 1, dtype=torch.float64))[0, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert explainer.verify(x, 0).ok


@pytest.mark.parametrize("mode", ["average", "sum", "ties"])
def test_an_adaptive_max_pool_has_no_average_pool_of_its_shape(mode) -> None:
    model = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(TypeError, match=r"adaptive.*use max_pool='winner'|tie-splitting is not defined"):
        Explainer(model, composites.epsilon_plus(max_pool=mode), example_inputs=torch.randn(2, 3, 5, 5))
