"""Products and quotients with integers, masks and constants: a divisor is a gate, a constant takes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import UnsupportedOperationError, composites, rules
from tests.models.cases import Written

# With h = a(x): nothing but the divisor carries relevance.
DIVISORS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "integer": lambda m, x, h: (x > 0).sum(1, keepdim=True) / h,
    "integer_of_the_same_shape": lambda m, x, h: (3 * h.detach()).to(torch.int32) / h,
    "bool": lambda m, x, h: (h > 0) / h,
    "number": lambda m, x, h: 2 / h,
    "parameter": lambda m, x, h: m.p / h,
    "sizes_only": lambda m, x, h: torch.ones_like(h) / h,
    "method": lambda m, x, h: (x > 0).sum(1, keepdim=True).div(h),
    "true_divide": lambda m, x, h: torch.true_divide((h > 0).int(), h),
}
# The one float operand gets all.
SIGNALS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "integer_times": lambda m, x, h: (x > 0).sum(1, keepdim=True) * h,
    "times_integer": lambda m, x, h: h * (h > 0).int(),
    "bool_times": lambda m, x, h: (h > 0) * h,
    "by_integer": lambda m, x, h: h / (1 + (x > 0).sum(1, keepdim=True)),
    "by_number": lambda m, x, h: h / 2,
    "by_parameter": lambda m, x, h: h / m.p,
    "by_sizes_only": lambda m, x, h: h / torch.full_like(h, 2.0),
    "by_float": lambda m, x, h: h / (1 + h.square()),
    "by_bool": lambda m, x, h: h / (x.sum(1, keepdim=True) < 1e9),
}


def model_of(body: Callable[[Any, Tensor, Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(5, 4), "b": nn.Linear(4, 3), "p": nn.Parameter(torch.rand(4) + 1)}
    model = Written(lambda m, x: m.b(body(m, x, m.a(x))), **layers).double().eval()
    return model, torch.randn(3, 5).double()


@pytest.mark.parametrize("name", DIVISORS)
def test_a_reciprocal_passes_relevance(name: str) -> None:
    """As element-wise functions do, in either form of the rule; the gradient is autograd's."""
    model, x = model_of(DIVISORS[name])
    y = DIVISORS[name](model, x, model.a(x))
    explainer = fastlrp.Explainer(model, "lrp0")
    chained = composites.lrp0().with_entries((composites.kind("mul", "activation"), rules.Pass(chained=True)))
    with explainer.forward(x) as record:
        for composite in (composites.lrp0(), chained):
            found = record.under(composite).relevance([2], layers=["a"])["a"]
            torch.testing.assert_close(found[:, 0], (y * model.b.weight[2]).detach())
    assert explainer.verify(x, [0, 2]).ok
    point = x.clone().requires_grad_()
    expected = torch.autograd.grad(model(point)[:, 2].sum(), point)[0]
    torch.testing.assert_close(fastlrp.explain(model, x, [2], "gradient", initial="one")[:, 0], expected)


def test_fractions_by_hand() -> None:
    """Of 6 over h the divisor is all there is; of a product with it, it is a gate."""
    start = torch.full((1, 1, 2), 6.0).double()
    x = torch.tensor([[2.0, -4.0]]).double()
    for body, expected in (
        (lambda m, x: 6 / x, [6.0, 6.0]),
        (lambda m, x: x.reciprocal(), [6.0, 6.0]),
        (lambda m, x: 6 / x[:, :1] * torch.ones(2), [12.0, 0.0]),
        (lambda m, x: x * (-3 / x[:, :1]), [6.0, 6.0]),
    ):
        found = fastlrp.explain(Written(body).eval(), x, start, "lrp0")
        torch.testing.assert_close(found[0], torch.tensor([expected]).double())


@pytest.mark.parametrize("name", SIGNALS)
def test_all_to_the_signal(name: str) -> None:
    model, x = model_of(SIGNALS[name])
    explainer = fastlrp.Explainer(model, "lrp0")
    found = explainer(x, [2], layers=["a"])["a"]
    y = SIGNALS[name](model, x, model.a(x))
    torch.testing.assert_close(found[:, 0], (y * model.b.weight[2]).detach())
    assert explainer.verify(x, [0, 2]).ok


def test_operations_whose_derivative_pytorch_lacks():
    """A floor is constant but for its steps, so that ``x // 0.3`` has the derivative 0; others say what to do."""
    x = torch.tensor([[1.0, -0.7]])
    floored = Written(lambda m, x: x // 0.3 + torch.floor_divide(x, m.p) + 2 * x, p=nn.Parameter(torch.rand(2) + 1))
    explainer = fastlrp.Explainer(floored.eval(), "gradient")
    gradient = explainer(x, [0, 1], initial="one")
    assert gradient.tolist() == [[[2.0, 0.0], [0.0, 2.0]]]
    assert explainer.verify(x, [0, 1]).ok
    step = Written(lambda m, x: x + torch.heaviside(x, torch.ones_like(x))).eval()
    with pytest.raises(UnsupportedOperationError, match=r"PyTorch has no derivative of 'heaviside'.*a fastlrp"):
        fastlrp.explain(step, x, [0], "gradient")


def test_counts_have_the_precision_of_the_model():
    """Relevance per unit is divided by 6 in float64: PyTorch's ``1 / count`` of an integer tensor is a float32."""
    model, x = model_of(SIGNALS["by_integer"])
    x = x.abs()
    relevance = fastlrp.explain(model, x, [0, 1, 2], "attnlrp")
    expected = x.unsqueeze(1) * (model.b.weight @ model.a.weight).detach() / 6
    torch.testing.assert_close(relevance, expected, rtol=1e-13, atol=0)
