"""The Caffe tool's formula types: against its rules written out on matrices, autograd, the reference, and Zennit."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp
from fastlrp import Explainer, Stabilizer, rules
from fastlrp.composites.caffe import ALIASES, FORMULA_TYPES, from_formula_type, sensitivity
from fastlrp.composites.tutorial import pixel_bounds
from tests.api.oracle import walk
from tests.composites.caffe_tool import (
    BETA,
    EPSILON,
    HIGH,
    LOW,
    Rule,
    images,
    network,
    their_alpha_beta,
    their_epsilon,
    their_flat,
    their_relevance,
    their_wsquare,
    their_zbox,
)
from tests.fixtures import seeded_apart
from tests.models.oracle import relative_error
from tests.torchvision_models import import_models

# Measured: 4.6e-15.
TOLERANCE = 1e-13
AB, EPS = their_alpha_beta, their_epsilon
CASES: dict[int, tuple[Rule, Rule, dict[int, Rule], dict[str, Any]]] = {
    0: (EPS, EPS, {}, {"epsilon": EPSILON}),
    2: (AB, AB, {}, {"beta": BETA}),
    6: (AB, AB, {0: their_zbox}, {"beta": BETA, "low": LOW, "high": HIGH}),
    8: (EPS, EPS, {0: their_zbox}, {"epsilon": EPSILON, "low": LOW, "high": HIGH}),
    54: (EPS, EPS, {0: their_flat}, {"epsilon": EPSILON}),
    56: (EPS, EPS, {0: their_wsquare}, {"epsilon": EPSILON}),
    58: (AB, AB, {0: their_flat}, {"beta": BETA}),
    60: (AB, AB, {0: their_wsquare, 1: their_wsquare}, {"beta": BETA, "lowest": 2}),
    100: (AB, EPS, {}, {"beta": BETA, "epsilon": EPSILON}),
    102: (AB, EPS, {0: their_flat}, {"beta": BETA, "epsilon": EPSILON, "lowest": 1}),
    104: (AB, EPS, {0: their_wsquare}, {"beta": BETA, "epsilon": EPSILON}),
    114: (EPS, EPS, {0: AB, 1: AB, 2: AB}, {"beta": BETA, "epsilon": EPSILON, "lowest": 3}),
}
DERIVATIVES = (11, 26, 99, 166)


@cache
@seeded_apart
def unchanged() -> tuple[nn.Sequential, Tensor]:
    """One network and its input for the tests that change neither."""
    return network(), images()


def test_every_formula_type_is_compared() -> None:
    assert {*CASES, *DERIVATIVES} == set(FORMULA_TYPES)
    assert list(FORMULA_TYPES) == [0, 2, 6, 8, 11, 26, 54, 56, 58, 60, 99, 100, 102, 104, 114, 166]


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("max_pool", ["winner", "average"])
@pytest.mark.parametrize("code", list(CASES))
def test_equals_the_tools_rules_on_matrices(code: int, max_pool: str) -> None:
    convolution, dense, bottom, parameters = CASES[code]
    model, x = unchanged()
    composite = from_formula_type(code, max_pool=max_pool, **parameters)
    found = fastlrp.explain(model, x, [1, 3], composite)
    expected = torch.stack([
        torch.stack([their_relevance(model, sample, k, convolution, dense, bottom, max_pool) for k in (1, 3)])
        for sample in x
    ])  # fmt: skip
    # The tool's flat gives all of a neuron's relevance to each of the three channels.
    scale = 3 if their_flat in bottom.values() else 1
    assert relative_error(scale * found, expected) <= TOLERANCE


@pytest.mark.parametrize("code", list(CASES))
def test_equals_the_reference_with_padding(code: int) -> None:
    """A padded convolution: what rule stands where, in the definitions of fastlrp.reference."""
    _, _, bottom, parameters = CASES[code]
    stabilizer = Stabilizer(1e-16)
    epsilon = rules.Epsilon(EPSILON)
    alpha_beta = rules.AlphaBeta(1 + BETA, BETA, stabilizer)
    theirs = {
        their_epsilon: epsilon, their_alpha_beta: alpha_beta, their_flat: rules.Flat(stabilizer),
        their_wsquare: rules.WSquare(stabilizer, zero_bias=True), their_zbox: rules.ZBox(LOW, HIGH, stabilizer),
    }  # fmt: skip
    model, x = network(), images()
    model[0].padding = (1, 1)

    def rule_of(position: int, count: int) -> rules.Rule:
        convolution, dense = CASES[code][:2]
        return theirs[bottom.get(position, convolution if position < 2 else dense)]

    scores = model(x)
    R = torch.diag_embed(scores).detach()
    expected = walk(model, x, R, rule_of, average=stabilizer)["input"]
    found = fastlrp.explain(model, x, "all", from_formula_type(code, **parameters))
    assert relative_error(found, expected) <= TOLERANCE


class _Clipped(torch.autograd.Function):
    """A ReLU whose backward pass clips; ``guided``: behind the gradient's own mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guided: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.guided = guided
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        clipped = gradient.clamp(min=0)
        return (clipped * (x > 0) if ctx.guided else clipped), None


def derivative(model: nn.Sequential, x: Tensor, code: int, start: str) -> Tensor:
    """``(B, 5, 3, H, W)`` by autograd, with another backward pass at the ReLUs for 26 and 166."""
    found = []
    for k in range(5):
        point = a = x.clone().requires_grad_()
        for layer in model:
            clip = isinstance(layer, nn.ReLU) and code in (26, 166)
            a = _Clipped.apply(a, code == 166) if clip else layer(a)
        weight = a[:, k].detach() if start == "output" else torch.ones(len(x), dtype=x.dtype)
        found.append(torch.autograd.grad(a[:, k], point, weight)[0])
    return torch.stack(found, 1)


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("start", ["one", "output"])
@pytest.mark.parametrize("code", DERIVATIVES)
def test_derivatives_equal_autograd(code: int, start: str) -> None:
    model, x = unchanged()
    found = fastlrp.explain(model, x, "all", from_formula_type(code), initial=start)
    expected = derivative(model, x, code, start)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_sensitivity_is_the_norm_over_channels() -> None:
    """By hand, and as the tool has it: of the gradient of the score, times the score that it starts from."""
    assert sensitivity(torch.tensor([3.0, -4.0, 0.0]).view(1, 1, 3, 1, 1)).item() == 5.0
    assert sensitivity(torch.tensor([[[3.0, -4.0]]])).tolist() == [[[3.0, 4.0]]]
    model, x = network(), images()
    found = sensitivity(fastlrp.explain(model, x, "all", from_formula_type(99)))
    assert found.shape == (2, 5, 12, 12)
    gradient = derivative(model, x, 99, "one")
    scores = model(x).detach().abs()[:, :, None, None]
    expected = scores * (gradient[:, :, 0] ** 2 + gradient[:, :, 1] ** 2 + gradient[:, :, 2] ** 2).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"gradient must be \(B, K, C, \*S\) or \(B, K, F\), got \(3, 4\)"):
        sensitivity(torch.rand(3, 4))


def test_what_coincides_with_zennit() -> None:
    import_models()  # zennit imports torchvision
    theirs = pytest.importorskip("zennit.composites", reason="zennit is not installed", exc_type=ImportError)
    from tests.peers import zennit_oracle

    model, x = network(), images()
    same = {"epsilon": 1e-6, "stabilizer": 1e-6}
    pairs = {
        (100, 1.0): theirs.EpsilonAlpha2Beta1(), (102, 1.0): theirs.EpsilonAlpha2Beta1Flat(),
        (100, 0.0): theirs.EpsilonPlus(), (102, 0.0): theirs.EpsilonPlusFlat(),
    }  # fmt: skip
    for (code, beta), composite in pairs.items():
        expected = zennit_oracle.relevance(model, x, [1, 3], composite)
        found = fastlrp.explain(model, x, [1, 3], from_formula_type(code, beta=beta, **same))
        assert relative_error(found, expected) <= TOLERANCE, code
    box = theirs.EpsilonGammaBox(low=torch.full_like(x, LOW), high=torch.full_like(x, HIGH), gamma=0.0, epsilon=1e-6)
    found = fastlrp.explain(model, x, [1, 3], from_formula_type(8, low=LOW, high=HIGH, **same))
    assert relative_error(found, zennit_oracle.relevance(model, x, [1, 3], box)) <= TOLERANCE
    for code, composite in ((26, theirs.DeconvNet()), (166, theirs.GuidedBackprop())):
        expected = zennit_oracle.relevance(model, x, [1, 3], composite, "one")
        found = fastlrp.explain(model, x, [1, 3], from_formula_type(code), initial="one")
        assert relative_error(found, expected) <= TOLERANCE, code


def test_zbox_with_a_mean_image_and_with_bounds_per_channel() -> None:
    """The tool's bounds are those of 0..255 less its mean image."""
    model, mean = network(), 255 * torch.rand(1, 3, 12, 12, dtype=torch.float64)
    x = 255 * torch.rand(2, 3, 12, 12, dtype=torch.float64) - mean
    composite = from_formula_type(6, low=-mean, high=255 - mean)
    expected = walk(
        model, x, torch.diag_embed(model(x)).detach(),
        lambda i, n: rules.AlphaBeta(2, 1, 1e-16) if i else rules.ZBox(-mean, 255 - mean, 1e-16),
        average=Stabilizer(1e-16),
    )["input"]  # fmt: skip
    assert relative_error(fastlrp.explain(model, x, "all", composite), expected) <= TOLERANCE
    low, high = pixel_bounds()
    assert fastlrp.explain(model, images(), 0, from_formula_type(8, low=low, high=high)).isfinite().all()


# Names, defaults, errors


def test_the_tools_own_names() -> None:
    model, x = network(), images()
    same = [
        (0, {"epsstab": 0.3}, {"epsilon": 0.3}),
        (2, {"alphabeta_beta": 0.5, "maxpoolingtoavgpoolinginbackwardpass": 1}, {"beta": 0.5, "max_pool": "average"}),
        (102, {"auxiliaryvariable_maxlayerindexforflatdistinconv": 0}, {"lowest": 1}),
        (2, {"maxpoolingtoavgpoolinginbackwardpass": 0}, {}),
    ]
    for code, theirs, ours in same:
        first, second = (fastlrp.explain(model, x, 1, from_formula_type(code, **p)) for p in (theirs, ours))
        assert torch.equal(first, second)
    assert {ours for ours, _ in ALIASES.values()} <= {"epsilon", "beta", "lowest", "max_pool"}


def test_defaults() -> None:
    found = from_formula_type(100)
    assert found.max_pool == "winner"
    by_kind = {rule for _, rule in found.entries[:2]}
    assert by_kind == {rules.AlphaBeta(2.0, 1.0, 1e-16), rules.Epsilon(1e-6)}
    assert found.name == "formula type 100"
    assert FORMULA_TYPES[102] == (
        "alpha-beta on convolutions, epsilon on dense layers; flat in the lowest layers "
        "(beta=1.0, epsilon=1e-06, lowest=1, max_pool='winner', stabilizer=1e-16)"
    )
    assert FORMULA_TYPES[114].startswith("epsilon; alpha-beta in the lowest layers (epsilon=1e-06, beta=1.0, lowest, ")
    assert FORMULA_TYPES[99] == "gradient: apply sensitivity() to the result"


@pytest.mark.parametrize(
    ("code", "parameters", "error", "match"),
    [
        (3, {}, ValueError, r"unknown formula type 3: expected one of 0, 2, 6, 8, 11, 26, 54, .*, 114, 166"),
        ("54", {}, ValueError, r"unknown formula type '54'"),
        (True, {}, ValueError, r"unknown formula type True"),
        (6, {}, ValueError, r"type 6 needs low and high\. formula type 6 is alpha-beta; zB at the first layer \(beta"),
        (8, {"low": 0.0}, ValueError, r"type 8 needs high"),
        (8, {"low": 1.0, "high": 0.0}, ValueError, r"low must not exceed high"),
        (114, {}, ValueError, r"type 114 needs lowest"),
        (0, {"beta": 1.0}, TypeError, r"'beta' is no parameter of formula type 0: it takes epsilon, max_pool, stab"),
        (2, {"alpha": 2.0}, TypeError, r"'alpha' is no parameter of formula type 2: it takes beta, "),
        (26, {"epsilon": 1.0}, TypeError, r"no parameter of formula type 26: it takes no parameters"),
        (2, {"beta": -1.0}, ValueError, r"beta must be a number >= 0 \(alpha is 1 \+ beta\), got -1\.0"),
        (2, {"beta": "1"}, ValueError, r"beta must be a number >= 0 .*, got '1'"),
        (2, {"beta": 1.0, "alphabeta_beta": 1.0}, ValueError, r"beta is given twice: 'alphabeta_beta' is the Caffe"),
        (54, {"lowest": 0}, ValueError, r"lowest must be a number of layers, at least 1, got 0"),
        (54, {"lowest": 1.0}, ValueError, r"lowest must be a number of layers, at least 1, got 1\.0"),
        (54, {"auxiliaryvariable_maxlayerindexforflatdistinconv": 4}, ValueError, r"=4 counts all layers .* 4 is 2, 8"),
        (2, {"maxpoolingtoavgpoolinginbackwardpass": 2}, ValueError, r"must be 0 or 1, got 2"),
        (2, {"max_pool": "mean"}, ValueError, r"max_pool must be 'winner', 'ties', 'average' or 'sum'"),
        (0, {"epsilon": -1.0}, ValueError, r"epsilon must be a finite number >= 0"),
    ],
)
def test_errors(code: Any, parameters: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        from_formula_type(code, **parameters)


def test_models_without_convolutions_and_many_lowest_layers() -> None:
    """More lowest layers than there are: all of them."""
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval(), torch.randn(2, 4).double()
    flat = fastlrp.explain(model, x, "all", from_formula_type(54, lowest=9))
    expected = (model(x).detach() / 4).unsqueeze(2).expand(-1, -1, 4)
    torch.testing.assert_close(flat, expected, rtol=1e-12, atol=0)


def test_float32_with_weights_next_to_nothing() -> None:
    """Weights that training has driven to 1e-39: a negative part of that size, and 1/N would be infinite."""
    model, x = network().float(), images().float()
    with torch.no_grad():
        model[3].weight.abs_()
        model[3].bias.abs_()
        model[3].weight[:, 0] = -1e-39
    with pytest.raises(ValueError, match=r"relevance became NaN or infinite at conv2d \(3\) under AlphaBeta"):
        Explainer(model, from_formula_type(100, stabilizer=0.0))(x, "all", layers="all")
    found = Explainer(model, from_formula_type(100, stabilizer=1e-16))(x, "all", layers="all")
    assert all(bool(relevance.isfinite().all()) for relevance in found.values())


@pytest.mark.slow
@pytest.mark.usefixtures("captured_once")
def test_same_numbers_from_every_backend() -> None:
    model, x = network(), images()
    for code, (_, _, _, parameters) in CASES.items():
        results = [
            Explainer(model, from_formula_type(code, **parameters), backend=backend)(x, [0, 2])
            for backend in ("reference", "torch", "auto")
        ]
        for result in results[1:]:
            assert relative_error(result, results[0]) <= TOLERANCE, code


def test_functional_relu_counts_as_a_relu() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.body[0](x)), 2)
            x = F.avg_pool2d(F.relu(self.body[3](x)), 2).flatten(1)
            return self.body[9](F.relu(self.body[7](x)))

    model, x = Functional().eval(), images()
    for code in (26, 102, 166):
        ours, theirs = (fastlrp.explain(m, x, 2, from_formula_type(code)) for m in (model, model.body))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
