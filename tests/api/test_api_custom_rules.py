"""Rules of the user's own: modified weights, rules that are written out, registered ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
import fastlrp.plan
from fastlrp import Explainer, Stabilizer, UnsupportedOperationError, composites, register_rule, rules
from fastlrp.composites import first, kind
from tests.api.models import make, relative_error, samples
from tests.api.oracle import one_hot_scores, walk

# Measured: 6e-16.
TIGHT = 1e-12


REST = composites.epsilon()


def test_identity_weights_are_epsilon():
    x = samples("convnet")
    own = composites.uniform(rules.ModifiedWeights(lambda w: w, 0.1), 0.1)
    expected = Explainer(make("convnet"), composites.epsilon(0.1))(x, "all")
    assert relative_error(Explainer(make("convnet"), own)(x, "all"), expected) <= TIGHT


def test_positive_weights_are_plain_gamma():
    x = samples("convnet")
    own = rules.ModifiedWeights(lambda w: w + 0.3 * w.clamp(min=0), name="mine")
    expected = Explainer(make("convnet"), composites.uniform(rules.PlainGamma(0.3)))(x, "all")
    explainer = Explainer(make("convnet"), composites.uniform(own, name="all"))
    assert torch.equal(explainer(x, "all"), expected)
    assert str(explainer.plan).count("mine") == 3, "the plan shows the rule's name"


class OwnEpsilon(rules.Custom):
    """Epsilon in a few lines: one backward pass for each target."""

    def propagate(self, forward, inputs, output, relevance):
        (x,) = inputs
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            z = forward(x)
        s = relevance / Stabilizer(0.1)(z.detach()).unsqueeze(1)
        c = [torch.autograd.grad(z, x, s[:, k], retain_graph=True)[0] for k in range(s.shape[1])]
        return (x.detach().unsqueeze(1) * torch.stack(c, 1),)


@pytest.mark.each_value
@pytest.mark.parametrize("lrp_aware", [True, False])
@pytest.mark.parametrize("name", ["convnet", "segment", "mlp"])
def test_a_written_out_epsilon(name, lrp_aware):
    own = REST.with_entries((kind("conv", "linear"), OwnEpsilon()))
    expected = REST.with_entries((kind("conv", "linear"), rules.Epsilon(0.1)))
    x = samples(name)
    with Explainer(make(name), own).forward(x, lrp_aware=lrp_aware) as record:
        found = record.relevance("all", layers="all")
    for layer, relevance in Explainer(make(name), expected)(x, "all", layers="all").items():
        assert relative_error(found[layer], relevance) <= TIGHT, layer


def test_a_written_out_rule_with_a_folded_batch_norm():
    """``forward`` is the convolution with its batch norm, as the rule sees one layer."""
    own = REST.with_entries((kind("conv"), OwnEpsilon()))
    expected = REST.with_entries((kind("conv"), rules.Epsilon(0.1)))
    x = samples("residual")
    assert (
        relative_error(Explainer(make("residual"), own)(x, "all"), Explainer(make("residual"), expected)(x, "all"))
        <= 1e-10
    )


class Wrong(rules.Custom):
    def __init__(self, answer):
        self.answer = answer

    def propagate(self, forward, inputs, output, relevance):
        return self.answer(relevance)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            lambda r: r,
            TypeError,
            r"Wrong.propagate must return a tuple with one entry for each of the 1 inputs of linear",
        ),
        (lambda r: (r, r), TypeError, "one entry for each of the 1 inputs of linear .*, got a tuple of 2"),
        (lambda r: (r[:, :, :2],), ValueError, r"relevance of shape \(2, 1, 2\) for input 0 of linear .*\(2, 1, 4\)"),
    ],
)
def test_a_written_out_rule_that_returns_nonsense(answer, error, message):
    composite = REST.with_entries((first(), Wrong(answer)))
    with pytest.raises(error, match=message):
        Explainer(make("mlp"), composite)(samples("mlp"), 0)


def test_a_written_out_rule_may_give_nothing():
    composite = REST.with_entries((first(), Wrong(lambda r: (None,))))
    found = Explainer(make("mlp"), composite)(samples("mlp"), "all")
    assert torch.equal(found, torch.zeros(2, 3, 4, dtype=torch.float64))


def test_custom_without_propagate():
    class Forgotten(rules.Custom):
        pass

    with pytest.raises(
        NotImplementedError, match=r"Forgotten must define propagate\(forward, inputs, output, relevance"
    ):
        Explainer(make("mlp"), REST.with_entries((first(), Forgotten())))(samples("mlp"), 0)


class Digamma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.wave, self.b = nn.Linear(4, 5), Wave(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.wave(self.a(x)))


class Wave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.digamma()


def test_an_operation_without_a_rule_names_the_ways_out(monkeypatch):
    monkeypatch.setattr(fastlrp.plan.assign, "_REGISTERED", {})
    torch.manual_seed(0)
    model, x = Digamma().double().eval(), samples("mlp")
    with pytest.raises(
        UnsupportedOperationError, match=r"no rule for operation 'digamma' in module 'wave' \(Wave\)"
    ) as error:
        Explainer(model, "epsilon", example_inputs=x)
    assert "with_entries((fastlrp.composites.operation('digamma'), rule))" in str(error.value)
    assert "fastlrp.register_rule('digamma', rule)" in str(error.value)
    by_entry = Explainer(model, REST.with_entries(("wave", rules.Pass())))(x, "all")
    by_operation = Explainer(model, REST.with_entries((composites.operation("digamma"), rules.Pass())))(x, "all")
    assert torch.equal(by_operation, by_entry)
    with pytest.raises(ValueError, match=r"knows 'cumsum' \(kind 'linear_map'\), so its rule comes from the composite"):
        register_rule("cumsum", rules.Pass())
    by_type = Explainer(model, REST.with_entries((Wave, rules.Pass())))(x, "all")
    gradient = Explainer(model, "gradient")(x, 1, initial="one")
    point = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(point)[:, 1].sum(), point)
    assert relative_error(gradient[:, 0], plain) <= TIGHT
    register_rule("aten::digamma", rules.Pass())
    registered = Explainer(model, "epsilon")(x, "all")
    assert torch.equal(by_entry, registered)
    assert torch.equal(by_type, registered)
    hidden = model.a(x).detach()
    head = walk(nn.Sequential(model.b), hidden.digamma(), one_hot_scores(model(x)), lambda i, n: rules.Epsilon())[
        "input"
    ]
    expected = walk(nn.Sequential(model.a), x, head, lambda i, n: rules.Epsilon())["input"]
    assert relative_error(registered, expected) <= TIGHT
    with pytest.raises(TypeError, match="register_rule needs a fastlrp rule, got str"):
        register_rule("digamma", "pass")
