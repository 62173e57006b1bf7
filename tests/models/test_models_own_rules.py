"""Rules of one's own for operations that have none: registered, or as an entry of the composite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, register_rule, rules
from tests.models.cases import Written, linear, vector
from tests.models.oracle import input_times_gradient
from tests.models.own_rules import Proportional

pytestmark = pytest.mark.usefixtures("own_registry")


def _with_hypot() -> nn.Module:
    return Written(
        lambda m, x: m.last(torch.hypot(m.a(x), m.b(x))), a=nn.Linear(10, 16), b=nn.Linear(10, 16), last=linear(16)
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize("name", ["hypot", "aten::hypot", "aten.hypot.default"])
def test_register_rule(name: str) -> None:
    model, x = _with_hypot(), vector().double()
    register_rule(name, Proportional())
    explainer = fastlrp.Explainer(model, "lrp0")
    torch.testing.assert_close(explainer(x, [0, 2]), input_times_gradient(model, x))
    assert explainer.verify(x, [0, 2]).ok


def test_an_entry_of_the_composite() -> None:
    model, x = _with_hypot(), vector().double()
    for matcher in (lambda layer: layer.operation == "hypot", composites.kind("unknown")):
        composite = composites.lrp0().with_entries((matcher, Proportional()))
        torch.testing.assert_close(fastlrp.explain(model, x, [0, 2], composite), input_times_gradient(model, x))


def test_pass_and_gradient_for_an_operation_of_ones_own() -> None:
    model = Written(lambda m, x: m.b(torch.digamma(m.a(x))), a=nn.Linear(10, 16), b=linear(16)).double().eval()
    x = vector().double()
    register_rule("digamma", rules.Pass())
    found = fastlrp.explain(model, x, [1], "lrp0", layers=["a"])
    torch.testing.assert_close(found["a"][:, 0], (model.b.weight[1] * torch.digamma(model.a(x))).detach())
    point = x.clone().requires_grad_(True)
    gradient = torch.autograd.grad(model(point)[:, 1].sum(), point)[0]
    register_rule("digamma", rules.Gradient())
    torch.testing.assert_close(fastlrp.explain(model, x, [1], "gradient", initial="one")[:, 0], gradient)


def test_a_wrong_rule_of_ones_own_is_told() -> None:
    class Short(rules.Custom):
        def propagate(self, forward: Any, inputs: Any, output: Tensor, relevance: Tensor) -> Any:
            return (relevance,)

    register_rule("hypot", Short())
    with pytest.raises(TypeError, match="one entry for each of the 2 inputs of hypot"):
        fastlrp.explain(_with_hypot(), vector().double(), [0])
    with pytest.raises(TypeError, match="register_rule needs a fastlrp rule, got str"):
        register_rule("hypot", "pass")  # type: ignore[arg-type]
