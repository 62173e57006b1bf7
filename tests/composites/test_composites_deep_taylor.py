"""Deep Taylor decomposition: by hand, against the reference and Zennit's rules put together, and what it conserves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import Stabilizer, rules
from fastlrp.composites import deep_taylor, zplus
from tests.api.oracle import walk
from tests.models.oracle import relative_error
from tests.torchvision_models import import_models

# Measured: 7e-16.
TOLERANCE = 1e-13
LOW, HIGH = -1.0, 1.5


def network(bias: str = "any") -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5),
    ).double().eval()  # fmt: skip
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.bias, 0, 0.1)
            if bias == "negative":
                layer.bias.data = -0.1 * layer.bias.data.abs()
    model[9].weight.data[:3].abs_()  # So that some scores are positive.
    return model


def images() -> Tensor:
    return LOW + (HIGH - LOW) * torch.rand(3, 3, 12, 12, dtype=torch.float64)


def test_by_hand() -> None:
    """w = (3, -1), x = (1, 2), then a ReLU and twice its output; a bias of -0.5 below takes no part.

    The score is R = 2 (3 - 2 - 0.5) = 1. Without bounds w2: 9/10 and 1/10. In [0, 3]: z = 0.5 + 0.5 + 3 = 4,
    contributions 3 (1 - 0) = 3 and -1 (2 - 3) = 1: 3/4 and 1/4.
    """
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -1.0]]))
        model[0].bias.fill_(-0.5)
        model[2].weight.fill_(2.0)
        model[2].bias.zero_()
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    for composite, expected in (
        (deep_taylor(stabilizer=0.0), [0.9, 0.1]),
        (deep_taylor(0.0, 3.0, stabilizer=0.0), [0.75, 0.25]),
    ):
        found = fastlrp.explain(model, x, 0, composite).flatten()
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("zero_bias", [True, False])
@pytest.mark.parametrize("bounds", [{}, {"low": LOW, "high": HIGH}], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("max_pool", ["winner", "average"])
def test_equals_the_reference(bounds: dict[str, float], zero_bias: bool, max_pool: Any) -> None:
    model, x = network(), images()
    stabilizer = Stabilizer()
    bottom = rules.ZBox(LOW, HIGH, stabilizer) if bounds else rules.WSquare(stabilizer, zero_bias)
    hidden = rules.ZPlus(stabilizer, zero_bias)
    composite = deep_taylor(**bounds, zero_bias=zero_bias, max_pool=max_pool)
    R = torch.diag_embed(model(x)).detach()
    expected = walk(model, x, R, lambda i, n: hidden if i else bottom, max_pool)["input"]
    assert relative_error(fastlrp.explain(model, x, "all", composite), expected) <= TOLERANCE


def test_equals_zennits_rules_put_together() -> None:
    import_models()  # zennit imports torchvision
    theirs = pytest.importorskip("zennit.composites", reason="zennit is not installed", exc_type=ImportError)
    from zennit import rules as their_rules
    from zennit import types

    from tests.peers import zennit_oracle

    model, x = network(), images()
    hidden = their_rules.ZPlus(zero_params="bias")
    for bottom, composite in (
        (their_rules.WSquare(zero_params="bias"), deep_taylor()),
        (their_rules.ZBox(low=torch.full_like(x, LOW), high=torch.full_like(x, HIGH)), deep_taylor(LOW, HIGH)),
    ):
        other = theirs.SpecialFirstLayerMapComposite(
            layer_map=[
                (types.Activation, their_rules.Pass()), (types.AvgPool, their_rules.Norm()),
                (types.Convolution, hidden), (types.Linear, hidden),
            ],
            first_map=[(types.Convolution, bottom)],
        )  # fmt: skip
        expected = zennit_oracle.relevance(model, x, [1, 3], other)
        assert relative_error(fastlrp.explain(model, x, [1, 3], composite), expected) <= TOLERANCE


@pytest.mark.parametrize("bias", ["any", "negative"])
@pytest.mark.parametrize("bounds", [{}, {"low": LOW, "high": HIGH}], ids=["unbounded", "bounded"])
def test_conserves_and_is_positive(bounds: dict[str, float], bias: str) -> None:
    """All of a positive score arrives at the pixels, whatever the biases, and no pixel speaks against it."""
    model, x = network(bias), images()
    scores = model(x).detach()
    found = fastlrp.explain(
        model, x, "all", deep_taylor(**bounds, stabilizer=0.0), initial=lambda scores: scores.clamp(min=0)
    )
    assert float(found.min()) >= -1e-15
    positive = scores > 0.01
    assert bool(positive.any())
    torch.testing.assert_close(found.flatten(2).sum(2)[positive], scores[positive], rtol=1e-12, atol=0)
    assert bool((found.flatten(2).abs().sum(2)[scores <= 0] == 0).all())


def test_a_positive_bias_keeps_its_share_when_asked_to() -> None:
    model, x = network(), images()
    kept = fastlrp.explain(model, x, "all", deep_taylor(zero_bias=False), initial="one").flatten(2).sum(2)
    given = fastlrp.explain(model, x, "all", deep_taylor(), initial="one").flatten(2).sum(2)
    assert bool((kept < given - 1e-3).any())


def test_input_that_is_an_activation() -> None:
    """Zero to infinity: z+ at the bottom too."""
    model, x = network(), images().abs()
    found = fastlrp.explain(model, x, "all", zplus(zero_bias=True))
    R = torch.diag_embed(model(x)).detach()
    expected = walk(model, x, R, lambda i, n: rules.ZPlus(1e-6, True))["input"]
    assert relative_error(found, expected) <= TOLERANCE


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"needs both bounds .* or neither, got low=0\.0, high=None: for an unbounded"):
        deep_taylor(low=0.0)
    with pytest.raises(ValueError, match=r"got low=None, high=1\.0"):
        deep_taylor(high=1.0)
    with pytest.raises(ValueError, match="low must not exceed high"):
        deep_taylor(1.0, 0.0)
    with pytest.raises(TypeError, match="expected a number or a Stabilizer"):
        deep_taylor(stabilizer="small")  # type: ignore[arg-type]
