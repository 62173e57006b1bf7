"""Products of two activations: the uniform rule by hand, by its identities and through whole models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.composites import kind

A = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]], dtype=torch.float64)
B = torch.tensor([[[2.0, 0.0], [1.0, 4.0]]], dtype=torch.float64)


class Product(nn.Module):
    def __init__(self, expression: str = "matmul") -> None:
        super().__init__()
        self.expression = expression

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b if self.expression == "matmul" else torch.einsum(self.expression, a, b)


class Bilinear(nn.Module):
    """Attention without the softmax: three products of weights, two of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 5) for _ in range(3))
        self.last = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        return self.last((scores @ self.v(x)).flatten(1))


def uniform(epsilon: float = 0.0) -> composites.Composite:
    return composites.epsilon(epsilon).with_entries((kind("product"), rules.Uniform(epsilon)))


@pytest.mark.parametrize("expression", ["matmul", "bij,bjk->bik"])
def test_by_hand(expression):
    """``y = A B = [[4, 8], [5, -4]]``; relevance ``[[4, 0], [0, -4]]`` is 1 for each unit of y that has any.

    c_A = S B^T / 2 with S = [[1, 0], [0, 1]]: [[1, 1/2], [0, 2]]; c_B = A^T S / 2 = [[1/2, 3/2], [1, -1/2]].
    """
    start = torch.tensor([[[[4.0, 0.0], [0.0, -4.0]]]], dtype=torch.float64)
    found = fastlrp.Explainer(Product(expression), uniform())((A, B), start)
    expected_a = torch.tensor([[[[1.0, 1.0], [0.0, -2.0]]]], dtype=torch.float64)
    expected_b = torch.tensor([[[[1.0, 0.0], [1.0, -2.0]]]], dtype=torch.float64)
    torch.testing.assert_close(found[0], expected_a, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found[1], expected_b, rtol=1e-14, atol=1e-14)
    assert float(found[0].sum()) == float(found[1].sum()) == 0  # Half of 4 - 4 each.


def test_epsilon_keeps_its_share():
    """``y = 4``, epsilon 1: each factor gets ``4 / 5`` of half."""
    one = torch.tensor([[[2.0]]], dtype=torch.float64)
    found = fastlrp.Explainer(Product(), uniform(1.0))((one, one), torch.full((1, 1, 1, 1), 10.0, dtype=torch.float64))
    assert float(found[0]) == pytest.approx(4.0, rel=1e-14)
    assert float(found[1]) == pytest.approx(4.0, rel=1e-14)


def test_both_factors_are_the_same_value():
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,bi->b", x, x).unsqueeze(1)

    x = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    found = fastlrp.Explainer(Square(), uniform())(x, [0])
    torch.testing.assert_close(found, torch.tensor([[[1.0, 9.0]]], dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Bilinear().double().eval()


def halved(model: Bilinear, x: Tensor) -> Tensor:
    """The definition by autograd: the halves of a product's gradient are those with the other factor detached."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a.detach() @ b + a @ b.detach()) / 2

    scores = product(model.q(x), model.k(x).transpose(1, 2))
    return model.last(product(scores, model.v(x)).flatten(1))


def test_whole_model_is_gradient_times_input_with_halved_products(model):
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    found = fastlrp.Explainer(model, uniform())(x, "all", initial="output")
    point = x.clone().requires_grad_()
    scores = halved(model, point)
    for k in range(3):
        (gradient,) = torch.autograd.grad(scores[:, k].sum(), point, retain_graph=True)
        torch.testing.assert_close(found[:, k], gradient * x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("composite", ["uniform", "gradient"])
def test_the_reference_agrees_and_samples_are_apart(model, composite):
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, uniform(1e-3) if composite == "uniform" else "gradient")
    report = explainer.verify(x, [0, 2])
    assert report.ok
    if composite == "uniform":
        assert abs(report.kept["unexplained"]) < 1e-9
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(explainer(x[order], [1]), explainer(x, [1])[order], rtol=1e-12, atol=1e-14)


def test_one_step_for_both_factors(model):
    explainer = fastlrp.Explainer(model, uniform(), example_inputs=torch.randn(1, 4, 5, dtype=torch.float64))
    steps = [step for step in explainer.plan.program.backward if "Uniform" in step.name]
    assert [len(step.outs) for step in steps] == [2, 2]
    assert explainer.plan.check() is None


def test_a_composite_without_an_entry_says_which_rule_there_is(model):
    only_layers = composites.Composite(((kind("linear"), rules.Epsilon()),))
    with pytest.raises(fastlrp.UnsupportedOperationError, match=r"product of two activations.*rules\.Uniform\(\)"):
        fastlrp.explain(model, torch.randn(1, 4, 5, dtype=torch.float64), [0], only_layers)
    composite = composites.lrp0().with_entries((kind("product"), rules.ZPlus()))
    with pytest.raises(TypeError, match=r"ZPlus.* is not defined for matmul .*: use Uniform, ValueOnly, Heads or"):
        fastlrp.explain(model, torch.randn(1, 4, 5, dtype=torch.float64), [0], composite)
