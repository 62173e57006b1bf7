"""Entries for operations that take no rule: an error that says what stands for them, never silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites, rules
from fastlrp.plan import assign

CONSTANT = torch.tensor([[1.0, -2.0]], dtype=torch.float64)


class Tripled(rules.Custom):
    """Three times what arrives to the first operand: nothing else gives these numbers."""

    linear_in_relevance = True

    def propagate(self, forward: Any, inputs: Any, output: Tensor, relevance: Tensor) -> Any:
        return tuple(3 * relevance.sum(-1, keepdim=True).expand(*relevance.shape[:2], *x.shape[1:]) for x in inputs)


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.a, self.norm = function, nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.b = nn.LazyLinear(2)
        self.drop, self.wide = nn.Dropout(), nn.Flatten()
        self.double().eval()(torch.zeros(1, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self, self.a(x)))


def gelu(h: Tensor) -> Tensor:
    return 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.04 * h**3)))


WRITTEN_OUT = {
    "diff": (lambda m, h: h.diff(), "'narrow', 'sub'"),
    "var_mean": (lambda m, h: torch.var_mean(h.view(-1, 3, 2), dim=2)[0], "'var'"),
    "logaddexp2": (lambda m, h: torch.logaddexp2(h[:, :3], h[:, 3:]), "'mul', 'stack', 'logsumexp'"),
    "kron": (lambda m, h: torch.kron(h, CONSTANT), "'mul'"),
    "glu": (lambda m, h: F.glu(h), "'narrow', 'sigmoid', 'mul'"),
    "lerp": (lambda m, h: torch.lerp(h[:, :3], h[:, 3:], 0.3), "'mul', 'add'"),
    "hstack": (lambda m, h: torch.hstack([h, h[:, :2]]), "'cat' stands"),
    "tanh": (lambda m, h: gelu(h), "'composed_activation' stands"),
    "abs": (lambda m, h: torch.fft.fft(h).abs(), "'linalg_vector_norm' stands"),
    "batch_norm": (lambda m, h: m.norm(h), "'linear' stands"),
}  # fmt: skip
CARRYING = {
    "narrow": lambda m, h: h.narrow(1, 0, 3),
    "cat": lambda m, h: torch.cat([h, h], 1),
    "dropout": lambda m, h: m.drop(h),
    "masked_fill": lambda m, h: h.masked_fill(h > 1, 0.0),
}
INPUT = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)


@pytest.mark.parametrize("name", WRITTEN_OUT)
@pytest.mark.parametrize("by_name", [True, False], ids=["operation", "predicate"])
def test_what_is_written_out(name: str, by_name: bool) -> None:
    function, parts = WRITTEN_OUT[name]
    matcher = composites.operation("relu", name) if by_name else (lambda layer: layer.operation == name)
    mine = composites.epsilon_plus().with_entries((matcher, Tripled()))
    with pytest.raises(ValueError, match=rf"is for '{name}' in the model itself|is for '{name}' in module") as error:
        fastlrp.explain(Between(function), INPUT, 0, mine)
    assert parts in str(error.value)
    assert "the rule would not be used" in str(error.value)


def test_the_way_out_that_the_message_names() -> None:
    model = Between(WRITTEN_OUT["diff"][0])
    mine = composites.lrp0().with_entries((composites.operation("diff"), Tripled()))
    with pytest.raises(ValueError, match=r"Call fastlrp\.register_rule\('diff', rule\) before the explainer is made"):
        fastlrp.explain(model, INPUT, [1], mine, layers=["a"])
    try:
        fastlrp.register_rule("diff", rules.Gradient())
        found = fastlrp.explain(model, INPUT, [1], mine, layers=["a"])["a"]
    finally:
        assign._REGISTERED.pop("diff")
    below = model.a(INPUT).diff().detach() * model.b.weight[1].detach()
    torch.testing.assert_close(found, (3 * below.sum(1)).view(2, 1, 1).expand(2, 1, 6))


def test_an_explainer_asked_under_another_composite() -> None:
    explainer = fastlrp.Explainer(Between(WRITTEN_OUT["glu"][0]), "epsilon_plus")
    record = explainer.forward(INPUT)
    with pytest.raises(ValueError, match="is for 'glu'"):
        record.under(composites.epsilon_plus().with_entries((composites.operation("glu"), Tripled())))


@pytest.mark.parametrize("name", CARRYING)
def test_what_only_carries(name: str) -> None:
    model = Between(CARRYING[name])
    whole = composites.epsilon_plus()
    with pytest.raises(ValueError, match=rf"matches '{name}' in .* it only carries entries from one place to another"):
        fastlrp.explain(model, INPUT, 0, whole.with_entries((composites.operation(name), Tripled())))
    for same in (rules.Pass(), rules.Gradient(), rules.Norm()):
        found = fastlrp.explain(model, INPUT, 0, whole.with_entries((composites.operation(name), same)))
        assert torch.equal(found, fastlrp.explain(model, INPUT, 0, whole))
    with pytest.raises(ValueError, match=rf"'{name}' \(kind '.*'\) takes no rule: it only carries entries"):
        fastlrp.register_rule(name, Tripled())


def test_kinds_and_types_that_only_carry() -> None:
    model = Between(lambda m, h: m.wide(m.drop(h)))
    whole = composites.epsilon_plus()
    for matcher, text in ((composites.kind("move"), r"kind\('move'\)"), (nn.Flatten, "Flatten"), (nn.Dropout, "Dropo")):
        with pytest.raises(ValueError, match=rf"entry \({text}.*no operation that takes a rule"):
            fastlrp.explain(model, INPUT, 0, whole.with_entries((matcher, Tripled())))
        fastlrp.explain(model, INPUT, 0, whole.with_entries((matcher, rules.Pass())))


def test_what_the_model_does_not_have_is_no_fault() -> None:
    model, whole = Between(lambda m, h: h.relu()), composites.epsilon_plus()
    for matcher in (composites.operation("diff", "narrow"), composites.kind("move"), nn.Dropout, nn.GLU):
        found = fastlrp.explain(model, INPUT, 0, whole.with_entries((matcher, Tripled())))
        assert torch.equal(found, fastlrp.explain(model, INPUT, 0, whole))


def test_predicates_need_not_expect_what_takes_no_rule() -> None:
    model, whole = Between(WRITTEN_OUT["batch_norm"][0]), composites.epsilon_plus()
    for predicate in (
        lambda layer: layer.kind == "linear" and layer.index < layer.count / 2,
        lambda layer: layer.kind == "linear" and layer.index / layer.count < 0.5,
    ):
        found = fastlrp.explain(model, INPUT, 0, whole.with_entries((predicate, rules.Gamma(0.5))))
        assert torch.equal(found, fastlrp.explain(model, INPUT, 0, whole.with_entries(("a", rules.Gamma(0.5)))))
    with pytest.raises(TypeError):  # Of a ReLU, which takes a rule: its index is None.
        fastlrp.explain(
            Between(lambda m, h: h.relu()), INPUT, 0, whole.with_entries((lambda n: n.index < 1, Tripled()))
        )


def test_names() -> None:
    for wrong, close in (("rellu", "'relu'"), ("cross_entropy", "'cross_entropy_loss'"), ("conv2", "'conv2d'")):
        with pytest.raises(ValueError, match=rf"unknown operation '{wrong}'.*{close}"):
            composites.operation(wrong)
    assert composites.operation("relu_", "aten::relu", "nobody::relu") == composites.operation("relu", "nobody::relu")
    for name in ("complex_angle", "vmap", "composed_activation", "segment_softmax", "amax"):
        composites.operation(name)
