"""A rule of one's own that writes into what it gets spoils nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import Explainer, composites, rules


class Proportional(rules.Custom):
    """Epsilon's rule for a linear layer without bias, written out; ``spoils`` writes into its arguments afterwards."""

    linear_in_relevance = True

    def __init__(self, spoils: str = "") -> None:
        self.spoils = spoils

    def propagate(self, forward, inputs, output, relevance):
        point = inputs[0].detach().clone().requires_grad_()
        share = relevance / output.unsqueeze(1)
        with torch.enable_grad():
            y = forward(point)
            parts = [torch.autograd.grad(y, point, s, retain_graph=True)[0] for s in share.unbind(1)]
        found = torch.stack(parts, 1) * inputs[0].unsqueeze(1)
        if self.spoils == "output":
            output.add_(1)
        if self.spoils == "input":
            inputs[0].zero_()
        if self.spoils == "relevance":
            relevance.mul_(2)
        return (found,)


def explainer_with(spoils: str) -> tuple[Explainer, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 5, bias=False)).double().eval()
    composite = composites.lrp0().with_entries((nn.Linear, Proportional(spoils)))
    return Explainer(model, composite), torch.randn(2, 4).double()


@pytest.mark.parametrize("spoils", ["output", "input"])
@pytest.mark.parametrize("lrp_aware", [True, False])
def test_activations_are_copies(spoils, lrp_aware):
    explainer, x = explainer_with(spoils)
    given = x.clone()
    expected = explainer_with("")[0](x, "all")
    with explainer.forward(x, lrp_aware=lrp_aware) as record:
        output = record.output.clone()
        for _ in range(3):
            torch.testing.assert_close(record.relevance("all"), expected)
        torch.testing.assert_close(record.output, output, rtol=0, atol=0)
    assert torch.equal(x, given)
    assert explainer.verify(x, "all").ok


class Gate(rules.Custom):
    """Passes relevance where the output is not zero, and sets the output to zero."""

    def propagate(self, forward, inputs, output, relevance):
        found = relevance * (output.unsqueeze(1) > 0)
        output.zero_()
        return (found,)


def test_in_inference_mode():
    """Whose tensors count no writes."""
    explainer, x = explainer_with("")
    expected = Explainer(explainer.model, "lrp0")(x, "all")
    explainer = Explainer(explainer.model, composites.lrp0().with_entries((nn.ReLU, Gate())))
    with torch.inference_mode(), explainer.forward(x.clone()) as record:
        for _ in range(2):
            torch.testing.assert_close(record.relevance("all").clone(), expected)


def test_writes_into_relevance_are_told():
    explainer, x = explainer_with("relevance")
    with pytest.raises(RuntimeError, match=r"Proportional.propagate wrote into the relevance .* for linear \(2\)"):
        explainer(x, torch.randn(2, 3, 5).double())


class EpsilonFunction(torch.autograd.Function):
    """The epsilon rule of a linear layer, as other software writes it: backward takes and gives relevance."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        z = torch.nn.functional.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, z)
        return z

    @staticmethod
    def backward(ctx, relevance):
        x, weight, z = ctx.saved_tensors
        s = relevance / (z + 1e-6 * torch.where(z < 0, -1.0, 1.0))
        return x * (s @ weight), None, None


def test_a_rule_that_is_an_autograd_function():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).double().eval()
    x = torch.randn(2, 4, dtype=torch.float64)
    layer = model[0]
    own = rules.AutogradFunction(lambda x: EpsilonFunction.apply(x, layer.weight, layer.bias), True)
    composite = fastlrp.composites.epsilon().with_entries(("0", own))
    expected = fastlrp.explain(model, x, "all", "epsilon")
    found = fastlrp.explain(model, x, "all", composite)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        again = fastlrp.explain(model, x, "all", composite)
    torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)
    wrong = rules.AutogradFunction(lambda x: x)
    with pytest.raises(ValueError, match=r"gives \(4,\) for each sample, and the operation .* \(6,\)"):
        fastlrp.explain(model, x, 0, fastlrp.composites.epsilon().with_entries(("0", wrong)))
