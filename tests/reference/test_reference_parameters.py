"""Every parameter of every rule: what it changes, by a formula written out here, and that it changes something."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer, Stabilizer, composites, rules
from fastlrp.rules import Rule

# Measured: 7.4e-16 of the largest entry.
TIGHT = 1e-14

Formula = Callable[[Tensor, Tensor, nn.Module], Tensor]
"""From an input ``(B, n)``, relevance of the output ``(B, m)`` and the model to relevance of the input."""


def shifted(z: Tensor, epsilon: float = 1e-6) -> Tensor:
    return z + epsilon * sign(z)


def sign(z: Tensor) -> Tensor:
    return (z >= 0).to(z.dtype) * 2 - 1


def positive(t: Tensor) -> Tensor:
    return t.clamp(min=0)


def negative(t: Tensor) -> Tensor:
    return t.clamp(max=0)


Shift = Callable[[Tensor], Tensor]


def of_weights(change: Shift = lambda w: w, of_bias: Shift | None = None, st: Shift = shifted) -> Formula:
    """``x_i rho(w_ij) / st(sum_i x_i rho(w_ij) + rho(b_j)) R_j``."""

    def relevance(x: Tensor, R: Tensor, model: nn.Module) -> Tensor:
        w, b = change(model[0].weight), (of_bias or change)(model[0].bias)
        return x * ((R / st(x @ w.T + b)) @ w)

    return relevance


def nothing(b: Tensor) -> Tensor:
    return torch.zeros_like(b)


def of_products(share: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Formula:
    """``share(x (B, 1, n), w (m, n), b (m,), z (B, m))``: ``(B, m, n)``, what each input gets of each output."""

    def relevance(x: Tensor, R: Tensor, model: nn.Module) -> Tensor:
        w, b = model[0].weight, model[0].bias
        return (share(x.unsqueeze(1), w, b, x @ w.T + b) * R.unsqueeze(2)).sum(1)

    return relevance


def over(parts: Tensor, bias: Tensor | float, epsilon: float = 1e-6) -> Tensor:
    return parts / shifted(parts.sum(2) + bias, epsilon).unsqueeze(2)


def alpha_beta(alpha: float = 2.0, beta: float = 1.0, epsilon: float = 1e-6, bias: float = 1.0) -> Formula:
    return of_products(
        lambda x, w, b, z: (
            alpha * over(positive(x * w), bias * positive(b), epsilon)
            - beta * over(negative(x * w), bias * negative(b), epsilon)
        )
    )


def gamma(gamma: float = 0.25, epsilon: float = 1e-6, bias: float = 1.0) -> Formula:
    def share(x: Tensor, w: Tensor, b: Tensor, z: Tensor) -> Tensor:
        above = (z - b + bias * b > 0).unsqueeze(2)
        c, bias_part = x * w, torch.where(above.squeeze(2), positive(b), negative(b))
        raised = c + gamma * torch.where(above, positive(c), negative(c))
        return over(raised, bias * (b + gamma * bias_part), epsilon)

    return of_products(share)


def squares(epsilon: float = 1e-6, bias: float = 1.0) -> Formula:
    return of_products(lambda x, w, b, z: over((w * w).expand(len(x), -1, -1), bias * b * b, epsilon))


def flat(epsilon: float = 1e-6) -> Formula:
    return of_products(lambda x, w, b, z: over(torch.ones_like(x * w), 0.0, epsilon))


def box(low: float = -9.0, high: float = 9.0, epsilon: float = 1e-6) -> Formula:
    return of_products(lambda x, w, b, z: over(x * w - low * positive(w) - high * negative(w), 0.0, epsilon))


def of_slope(st: Shift = shifted) -> Formula:
    """``x_i (dy/dx)^T R / st(y)``."""

    def relevance(x: Tensor, R: Tensor, model: nn.Module) -> Tensor:
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        return x * torch.autograd.grad(y, leaf, R / st(y.detach()))[0]

    return relevance


def sigma_held(epsilon: float = 1e-6) -> Formula:
    def relevance(x: Tensor, R: Tensor, model: nn.Module) -> Tensor:
        norm, y = model[0], model(x)
        c = norm.weight * R / shifted(y, epsilon) / (x.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
        return x * (c - c.mean(1, keepdim=True))

    return relevance


def halves(epsilon: float = 1e-6) -> Formula:
    return lambda x, R, model: of_slope(functools.partial(shifted, epsilon=epsilon))(x, R, model) / 2


def relative(z: Tensor, of_sample: bool) -> Tensor:
    size = z.square().mean(1, keepdim=True).sqrt() if of_sample else z.square().mean().sqrt()
    return z + 0.1 * sign(z) * size


def clipped(z: Tensor) -> Tensor:
    return torch.where(z.abs() < 0.5, 0.5 * sign(z), z)


class Gram(nn.Module):
    """A product of an input with its own transpose."""

    def forward(self, x: Tensor) -> Tensor:
        m = x.view(-1, 2, 3)
        return (m @ m.mT).flatten(1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 4)),
    "pool": lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.AvgPool1d(3), nn.Flatten()),
    "norm": lambda: nn.Sequential(nn.LayerNorm(6)),
    "tanh": lambda: nn.Sequential(nn.Tanh()),
    "product": lambda: Gram(),
}


OPERATIONS = {
    "linear": "linear", "pool": "avg_pool1d", "norm": "layer_norm", "tanh": "tanh", "product": "matmul",
}  # fmt: skip


def squared(w: Tensor) -> Tensor:
    return w * w.abs()


def epsilon(st: Shift) -> Formula:
    return of_weights(st=st)


ONE = functools.partial(shifted, epsilon=1.0)
CASES: list[tuple[str, str, Rule, Rule, Formula]] = [
    # Of which parameter, at which operation, under the rule with another value of it, beside that with the default.
    ("Epsilon.epsilon", "linear", rules.Epsilon(1.0), rules.Epsilon(), of_weights(st=ONE)),
    ("Epsilon.zero_bias", "linear", rules.Epsilon(zero_bias=True), rules.Epsilon(), of_weights(of_bias=nothing)),
    ("ZPlus.stabilizer", "linear", rules.ZPlus(1.0), rules.ZPlus(), alpha_beta(1.0, 0.0, 1.0)),
    ("ZPlus.zero_bias", "linear", rules.ZPlus(zero_bias=True), rules.ZPlus(), alpha_beta(1.0, 0.0, bias=0.0)),
    ("AlphaBeta.alpha", "linear", rules.AlphaBeta(3.0, 2.0), rules.AlphaBeta(), alpha_beta(3.0, 2.0)),
    ("AlphaBeta.beta", "linear", rules.AlphaBeta(0.5, -0.5), rules.AlphaBeta(), alpha_beta(0.5, -0.5)),
    ("AlphaBeta.stabilizer", "linear", rules.AlphaBeta(stabilizer=1.0), rules.AlphaBeta(), alpha_beta(epsilon=1.0)),
    ("AlphaBeta.zero_bias", "linear", rules.AlphaBeta(zero_bias=True), rules.AlphaBeta(), alpha_beta(bias=0.0)),
    ("Gamma.gamma", "linear", rules.Gamma(2.0), rules.Gamma(), gamma(2.0)),
    ("Gamma.stabilizer", "linear", rules.Gamma(stabilizer=1.0), rules.Gamma(), gamma(epsilon=1.0)),
    ("Gamma.zero_bias", "linear", rules.Gamma(zero_bias=True), rules.Gamma(), gamma(bias=0.0)),
    (
        "PlainGamma.gamma", "linear", rules.PlainGamma(2.0), rules.PlainGamma(),
        of_weights(lambda w: w + 2 * positive(w)),
    ),
    (
        "PlainGamma.stabilizer", "linear", rules.PlainGamma(stabilizer=1.0), rules.PlainGamma(),
        of_weights(lambda w: w + 0.25 * positive(w), st=ONE),
    ),
    (
        "PlainGamma.zero_bias", "linear", rules.PlainGamma(zero_bias=True), rules.PlainGamma(),
        of_weights(lambda w: w + 0.25 * positive(w), nothing),
    ),
    (
        "PlainGamma.modify_bias", "linear", rules.PlainGamma(modify_bias=False), rules.PlainGamma(),
        of_weights(lambda w: w + 0.25 * positive(w), lambda b: b),
    ),
    ("ModifiedWeights.modify", "linear", rules.ModifiedWeights(squared), rules.Epsilon(), of_weights(squared)),
    (
        "ModifiedWeights.stabilizer", "linear", rules.ModifiedWeights(squared, 1.0), rules.ModifiedWeights(squared),
        of_weights(squared, st=ONE),
    ),
    (
        "ModifiedWeights.zero_bias", "linear", rules.ModifiedWeights(squared, zero_bias=True),
        rules.ModifiedWeights(squared), of_weights(squared, nothing),
    ),
    (
        "ModifiedWeights.modify_bias", "linear", rules.ModifiedWeights(squared, modify_bias=False),
        rules.ModifiedWeights(squared), of_weights(squared, lambda b: b),
    ),
    ("WSquare.stabilizer", "linear", rules.WSquare(1.0), rules.WSquare(), squares(1.0)),
    ("WSquare.zero_bias", "linear", rules.WSquare(zero_bias=True), rules.WSquare(), squares(bias=0.0)),
    ("Flat.stabilizer", "linear", rules.Flat(1.0), rules.Flat(), flat(1.0)),
    ("ZBox.low", "linear", rules.ZBox(-5.0, 9.0), rules.ZBox(-9.0, 9.0), box(low=-5.0)),
    ("ZBox.high", "linear", rules.ZBox(-9.0, 5.0), rules.ZBox(-9.0, 9.0), box(high=5.0)),
    ("ZBox.stabilizer", "linear", rules.ZBox(-9.0, 9.0, 1.0), rules.ZBox(-9.0, 9.0), box(epsilon=1.0)),
    ("Norm.stabilizer", "pool", rules.Norm(1.0), rules.Norm(), of_slope(ONE)),
    (
        "Norm.of_sum", "pool", rules.Norm(1.0, of_sum=True), rules.Norm(1.0),
        of_slope(functools.partial(shifted, epsilon=1.0 / 3)),
    ),
    ("FixedSigma.stabilizer", "norm", rules.FixedSigma(1.0), rules.FixedSigma(), sigma_held(1.0)),
    ("InputGradient.stabilizer", "tanh", rules.InputGradient(1.0), rules.InputGradient(), of_slope(ONE)),
    ("Uniform.stabilizer", "product", rules.Uniform(1.0), rules.Uniform(), halves(1.0)),
    ("ValueOnly.stabilizer", "product", rules.ValueOnly(1.0), rules.ValueOnly(), halves(1.0)),
    ("HeldSelection.stabilizer", "product", rules.HeldSelection(1.0), rules.HeldSelection(), halves(1.0)),
    ("Stabilizer.epsilon", "linear", rules.Epsilon(Stabilizer(1.0)), rules.Epsilon(), epsilon(ONE)),
    (
        "Stabilizer.relative", "linear", rules.Epsilon(Stabilizer(0.1, relative="sample")),
        rules.Epsilon(Stabilizer(0.1)), epsilon(functools.partial(relative, of_sample=True)),
    ),
    (
        "Stabilizer.relative", "linear", rules.Epsilon(Stabilizer(0.1, relative="tensor")),
        rules.Epsilon(Stabilizer(0.1, relative="sample")), epsilon(functools.partial(relative, of_sample=False)),
    ),
    (
        "Stabilizer.signed", "linear", rules.Epsilon(Stabilizer(0.1, signed=False)), rules.Epsilon(Stabilizer(0.1)),
        epsilon(lambda z: z + 0.1),
    ),
    (
        "Stabilizer.clip", "linear", rules.Epsilon(Stabilizer(0.5, clip=True)), rules.Epsilon(Stabilizer(0.5)),
        epsilon(clipped),
    ),
    ("Stabilizer.in_limit", "linear", rules.Epsilon(Stabilizer.limit()), rules.Epsilon(0.1), epsilon(lambda z: z)),
]  # fmt: skip
ELSEWHERE = {
    "Heads.given": "tests/models/test_models_heads.py",
    "Heads.others": "tests/models/test_models_heads.py",
    "Recurrent.gates": "tests/models/test_models_recurrent.py",
    "Recurrent.stabilizer": "tests/models/test_models_recurrent.py",
    "Recurrent.bias_factor": "tests/models/test_models_recurrent.py",
    "Pass.chained": "test_a_constant_keeps_its_relevance_in_the_chained_form",
    "ModifiedWeights.name": "test_what_is_shown_alone",
    "InputGradient.missing": "test_what_is_shown_alone",
}
"""Parameters whose effect is no formula of one small operation, and where it is tested."""


@functools.cache
def asked(name: str) -> tuple[nn.Module, Tensor, Tensor, Explainer]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        x = torch.randn(3, 6, dtype=torch.float64)
        R = torch.randn(model(x).shape, dtype=torch.float64)
    return model, x, R, Explainer(model, "epsilon", example_inputs=x)


def under(name: str, rule: Rule) -> Tensor:
    """Relevance of the input."""
    _, x, R, explainer = asked(name)
    mine = composites.Composite(((composites.operation(OPERATIONS[name]), rule),))
    with explainer.forward(x) as record:
        found: Tensor = record.under(mine).relevance(R.unsqueeze(1))[:, 0]
    return found


@pytest.mark.parametrize(
    ("parameter", "name", "rule", "beside", "formula"), CASES, ids=[f"{p}-{i}" for i, (p, *_) in enumerate(CASES)]
)
def test_a_parameter_does_what_its_formula_says(
    parameter: str, name: str, rule: Rule, beside: Rule, formula: Formula
) -> None:
    model, x, R, _ = asked(name)
    found = under(name, rule)
    with torch.enable_grad():
        expected = formula(x, R, model).detach()
    size = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= TIGHT * size
    assert float((found - under(name, beside)).abs().max()) > 1e-3 * size, f"{parameter} has no effect"


def test_every_parameter_is_in_the_table() -> None:
    made: list[Any] = [getattr(rules, name) for name in rules.__all__]
    every = {
        f"{c.__name__}.{f.name}"
        for c in (*made, Stabilizer)
        if dataclasses.is_dataclass(c)
        for f in dataclasses.fields(c)
    }
    assert every == {parameter for parameter, *_ in CASES} | set(ELSEWHERE)


def test_what_is_shown_alone() -> None:
    """``name`` and ``missing`` change what plans show, and no number."""
    named = rules.ModifiedWeights(squared, name="squares")
    assert str(named) == "squares"
    assert torch.equal(under("linear", named), under("linear", rules.ModifiedWeights(squared)))
    missing = rules.InputGradient(missing=True)
    assert str(missing) == "gradient (no rule)"
    assert torch.equal(under("tanh", missing), under("tanh", rules.InputGradient()))


def test_a_constant_keeps_its_relevance_in_the_chained_form() -> None:
    model, x = nn.Sequential(nn.Softplus()), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    explainer, R = Explainer(model.eval(), "epsilon"), torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    with explainer.forward(x) as record:
        plain, chained = (
            record.under(composites.Composite(((nn.Softplus, rule),))).relevance(R)
            for rule in (rules.Pass(), rules.Pass(chained=True))
        )
    assert plain.flatten().tolist() == [3.0, 4.0]
    assert chained.flatten().tolist() == [0.0, 4.0]
