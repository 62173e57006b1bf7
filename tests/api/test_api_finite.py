"""Numbers that are not finite: an error that says where they come from, never a map of NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastlrp import Explainer, Stabilizer, composites, explain, rules
from tests.api.models import make, samples


class Divides(nn.Module):
    """Infinite where the hidden layer is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.first(x).relu().reciprocal())


def divides() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Divides().double().eval()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value):
    model, x = make("convnet"), samples("convnet")
    with torch.no_grad():
        model[3].bias[2] = value
    with pytest.raises(ValueError, match=r"output is NaN or infinite for every sample.*not finite is conv2d \(3\)"):
        explain(model, x, 0)


def test_one_sample_of_the_batch():
    model, x = divides(), torch.randn(6, 4, dtype=torch.float64)
    x[:4] = 3 * torch.linalg.lstsq(model.first.weight.detach(), torch.ones(5, dtype=torch.float64)).solution
    finite = model(x).isfinite().all(1)
    composite = composites.epsilon().with_entries((composites.operation("reciprocal"), rules.Pass()))
    explainer = Explainer(model, composite)
    bad = (~finite).nonzero()[:, 0].tolist()
    assert 0 < len(bad) < 6
    with pytest.raises(ValueError, match=rf"sample.* {bad[0]}.*of the batch.*first layer .* is reciprocal"):
        explainer(x, 0)
    assert explainer(x[finite], 0).isfinite().all()


@pytest.mark.each_value
@pytest.mark.parametrize("question", [{"layers": "all"}, {"reduce": "channels"}, {"initial": "one"}])
@pytest.mark.parametrize("lrp_aware", [True, False, "sweep"])
def test_every_kind_of_question(question, lrp_aware):
    model, x = make("convnet"), samples("convnet")
    explainer = Explainer(model)
    explainer(x, 0)
    with torch.no_grad():
        model[0].weight[0] = math.nan
    with explainer.forward(x, lrp_aware) as record:
        with pytest.raises(ValueError, match=r"output is NaN or infinite.*is conv2d \(0\)"):
            record.relevance([0, 1], **question)
        with pytest.raises(ValueError, match=r"output is NaN or infinite"):
            next(record.stream("all", **question))
        out = torch.zeros(2, 5, 3, 8, 8, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"output is NaN or infinite"):
            record.relevance("all", out=out)


def test_relevance_that_is_not_finite_though_the_output_is():
    class Explodes(rules.Custom):
        linear_in_relevance = True

        def propagate(self, forward, inputs, output, relevance):
            return (torch.full((*relevance.shape[:2], *inputs[0].shape[1:]), math.inf, dtype=output.dtype),)

    composite = composites.epsilon_plus().with_entries(("3", Explodes()))
    with pytest.raises(ValueError, match=r"became NaN or infinite at conv2d \(3\) under .*Explodes.*although"):
        explain(make("convnet"), samples("convnet"), [0, 1], composite)


def test_infinity_inside_is_legitimate():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.value = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            scores = self.score(x)
            mask = torch.tensor([False, True, False, False, True])
            return self.value(scores.masked_fill(mask, -math.inf).softmax(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Masked().double().eval()
    found = explain(model, samples("mlp"), "all", "gradient")
    assert found.isfinite().all()


def test_large_but_finite_numbers_are_no_error():
    """The sum of the entries overflows, no entry does."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    x = torch.full((1, 3), 1e38)
    assert explain(model, x, [0, 1], "epsilon").isfinite().all()


@pytest.mark.parametrize(
    ("make_rule", "message"),
    [
        (lambda: rules.Gamma(math.inf), "Gamma: gamma must be >= 0 and finite, got inf"),
        (lambda: rules.Gamma(math.nan), "Gamma: gamma must be >= 0 and finite, got nan"),
        (lambda: rules.PlainGamma(math.inf), "PlainGamma: gamma must be >= 0 and finite, got inf"),
        (lambda: rules.AlphaBeta(math.inf, math.inf), "AlphaBeta: needs a finite alpha >= 0"),
        (lambda: rules.AlphaBeta(math.nan, math.nan), "AlphaBeta: needs a finite alpha >= 0"),
        (lambda: rules.Epsilon(math.inf), "epsilon must be a finite number >= 0, got inf"),
        (lambda: rules.ZPlus(math.nan), "epsilon must be a finite number >= 0, got nan"),
        (lambda: Stabilizer(math.inf, clip=True), "epsilon must be a finite number >= 0, got inf"),
        (lambda: rules.ZBox(-math.inf, 1.0), "ZBox: low and high must be finite"),
        (lambda: rules.ZBox(0.0, torch.tensor([1.0, math.inf])), "ZBox: low and high must be finite"),
        (lambda: composites.epsilon_gamma_box(low=-1.0, high=math.inf), "low and high must be finite"),
        (lambda: composites.gamma(math.inf), "gamma must be >= 0 and finite"),
    ],
)
def test_numbers_of_rules(make_rule, message):
    with pytest.raises(ValueError, match=message):
        make_rule()


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (rules.Gamma(1e39), "gamma"),
        (rules.Epsilon(1e39), "epsilon"),
        (rules.ZPlus(Stabilizer(1e39)), "epsilon"),
        (rules.ZBox(torch.tensor(-1e39, dtype=torch.float64), 1.0), "low"),
    ],
)
def test_numbers_that_the_dtype_does_not_have(rule, name):
    composite = composites.epsilon_plus().with_entries(("0", rule))
    x = samples("convnet", dtype=torch.float32)
    with pytest.raises(ValueError, match=rf"at conv2d \(0\): {name} is 1e\+39, and the largest number of .*float32"):
        explain(make("convnet", torch.float32), x, 0, composite)
    record = Explainer(make("convnet", torch.float32)).forward(x)
    with pytest.raises(ValueError, match=rf"{name} is 1e\+39"):
        record.under(composite)


@pytest.mark.each_value
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("initial", ["output", "one", lambda y: torch.ones_like(y)], ids=["output", "one", "callable"])
def test_a_score_that_is_not_finite(value, initial):
    """Others may be asked for: models mask scores with -inf."""
    model, x = make("convnet"), samples("convnet")
    with torch.no_grad():
        model[6].bias[1] = value
    explainer = Explainer(model)
    for targets in (1, [0, 1], "all"):
        with pytest.raises(ValueError, match=r"output is NaN or infinite .* is linear \(6\)"):
            explainer(x, targets, initial=initial)
    assert explainer(x, [0, 2], initial=initial).isfinite().all()


def dead(*layers: nn.Module) -> nn.Module:
    """Behind a linear layer that is zero, or less, everywhere for zeros."""
    return nn.Sequential(nn.Linear(4, 4, bias=False), *layers, nn.LazyLinear(3)).double().eval()


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.ReLU(), nn.LPPool1d(2, 2)], [nn.LPPool1d(2, 2)], [nn.LPPool1d(3, 2)], [nn.ReLU(), Root()],
        [nn.Hardtanh(0.0, 1.0), Root()], [nn.ReLU6(), nn.Identity(), Root()], [nn.Softshrink(), Root()],
    ],
)  # fmt: skip
def test_nothing_passes_where_a_mask_is_zero(layers):
    """The derivative of a root at 0 is infinite, and a ReLU below it stops it: as autograd has it."""
    model, x = dead(*layers), torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    model(x)
    with torch.no_grad():
        x[1].copy_(torch.tensor([0.3, 0.4, -0.1, 0.9]))
        model[0].weight.copy_(torch.eye(4))
        model[0].weight[3, 1] = 0.5
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    assert gradient.isfinite().all()
    found = explain(model, x, 0, "gradient", initial="one")
    torch.testing.assert_close(found[:, 0], gradient, rtol=1e-12, atol=1e-14)


def test_an_infinite_derivative_is_not_a_matter_of_epsilon():
    model, x = dead(Root()), torch.zeros(2, 4, dtype=torch.float64)
    model(x)
    with pytest.raises(ValueError, match=r"at sqrt \(1\) under Gradient\(\).*derivative, which is infinite"):
        explain(model, x, 0, "gradient")
