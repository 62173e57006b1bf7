"""Models with functions that have a backward of their own: gradients are the backward's, relevance is the forward's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastlrp
from fastlrp import composites, groups, rules
from tests.models.custom_functions import (
    Binary,
    Clamp,
    Clipped,
    Fourier,
    Gate,
    InPlace,
    Model,
    OfSizes,
    Quiet,
    Reversal,
    Sign,
    Softmax,
    Step,
    Swish,
    Two,
    derivative,
    gradient,
)

F64 = torch.float64
bound_before = Swish.apply
clamp: Any = Clamp.apply
BEFORE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "straight through": lambda m, h: Sign.apply(h),
    "comparison": lambda m, h: Step.apply(h) + h.tanh(),
    "reversal": lambda m, h: Reversal.apply(h, 0.7).relu(),
    "swish": lambda m, h: bound_before(h),
    "in place": lambda m, h: (InPlace.apply(h) + h.sin()) * h,
    "clamp": lambda m, h: clamp(h, -0.3, 0.3),
    "weight": lambda m, h: Binary.apply(h, m.inner.weight, m.inner),
    "weight alone": lambda m, h: nn.functional.linear(h, Sign.apply(m.inner.weight)).relu(),
    "two": lambda m, h: torch.add(*Two.apply(h, h.tanh())[:2]),
    "one of two": lambda m, h: Two.apply(h, h.tanh())[1],
    "clipped": lambda m, h: Clipped.apply(3 * h).tanh(),
    "sizes": lambda m, h: OfSizes.apply(h, h.shape[0]),
    "within": lambda m, h: Swish.apply(Sign.apply(h) * h),
    "complex": lambda m, h: torch.fft.irfft(Fourier.apply(torch.fft.rfft(h)), n=5),
    "attention": lambda m, h: _attention(m, h, Softmax.apply),
    "gate": lambda m, h: h * Gate.apply(m.inner(h)),
    "no_grad": lambda m, h: _without_gradients(h) + h.tanh(),
    "no_grad within": lambda m, h: m.inner(Quiet.apply(h)),
    "no_grad within, and behind": lambda m, h: _scaled(m.inner(Quiet.apply(h)), h),
    "written into": lambda m, h: Reversal.apply(h.clone(), 2.0).clone().relu_(),
}


def _attention(m: Any, h: Tensor, softmax: Any) -> Tensor:
    q = h.unsqueeze(-1) * h.new_tensor([[0.3, -1.0, 2.0]])  # (B, 5, 3)
    scores = q @ m.inner(h).unsqueeze(-1).expand(-1, -1, 3).mT
    weights: Tensor = softmax(scores)
    return (weights @ q.tanh()).sum(-1)


def _without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        return Swish.apply(h)


def _scaled(h: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = 1 + x.abs()
    return h + x * scale


@pytest.mark.parametrize("name", BEFORE)
def test_gradients_are_those_of_autograd(name: str) -> None:
    model, x = Model(BEFORE[name]), torch.randn(3, 4, dtype=F64)
    torch.testing.assert_close(gradient(model, x), derivative(model, x), rtol=1e-12, atol=1e-12)
    report = fastlrp.Explainer(model, "gradient").verify(x, "all", initial="one")
    assert report.ok == (name != "sizes"), "alone a sample is a batch of another size"


def test_targets_meet_a_backward_that_is_not_linear_one_by_one() -> None:
    """More targets than channels, whose gradients a basis would give; groups, whose gradients the way up would."""
    model, x = Model(BEFORE["clipped"]), torch.randn(3, 4, dtype=F64)
    model.above = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 60)).double()
    torch.testing.assert_close(gradient(model, x), derivative(model, x), rtol=1e-12, atol=1e-12)
    with fastlrp.Explainer(model, "gradient").forward(x) as record:
        down = record.relevance("all", initial="one", groups=groups.features([0, 3]))
        torch.testing.assert_close(down, derivative(model, x)[..., [0, 3]], rtol=1e-12, atol=1e-12)
        with pytest.raises(fastlrp.UnsupportedOperationError, match="way up needs rules that are linear"):
            record.relevance("all", initial="one", groups=groups.features([0, 3]), direction="up")


def around(m: Any, h: Tensor) -> Tensor:
    class Around(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * h.tanh()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return g

    return Around.apply(2 * h)


def test_a_function_that_reads_tensors_from_around_it() -> None:
    model, x = Model(around), torch.randn(3, 4, dtype=F64)
    with pytest.raises(fastlrp.UnsupportedOperationError, match=r"gradient of Around.*its arguments alone.*Pass"):
        gradient(model, x)
    followed = composites.gradient().with_entries((composites.kind("custom_backward"), rules.Pass()))
    like = Model(lambda m, h: 2 * h * h.tanh())
    found = fastlrp.explain(model, x, "all", followed, initial="one")
    torch.testing.assert_close(found, derivative(like, x), rtol=1e-12, atol=1e-12)


class Mapped(Clamp):
    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


def test_a_forward_pass_takes_the_gradient_of_a_function() -> None:
    def slope(m: Any, h: Tensor) -> Tensor:
        with torch.enable_grad():
            free = h.detach().requires_grad_()
            (found,) = torch.autograd.grad(Swish.apply(free).square().sum(), free)
        return h * found

    model, x = Model(slope), torch.randn(3, 4, dtype=F64)
    with fastlrp.Explainer(model, "gradient").forward(x) as record:
        torch.testing.assert_close(record.output, model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(model, x), derivative(model, x), rtol=1e-12, atol=1e-12)


def test_functions_within_transforms_are_refused() -> None:
    apply: Any = Mapped.apply
    model = Model(lambda m, h: torch.vmap(lambda row: apply(row, -0.3, 0.3))(h))
    with pytest.raises(fastlrp.CaptureError, match=r"Function inside of torch.vmap.*apply it to the whole batch"):
        fastlrp.explain(model, torch.randn(3, 4, dtype=F64), 0)


def test_guided_backprop_goes_through_the_backward() -> None:
    model, x = Model(lambda m, h: Sign.apply(h.relu())), torch.randn(3, 4, dtype=F64)
    like = Model(lambda m, h: h.relu())
    found, expected = (fastlrp.explain(m, x, "all", "guided_backprop", initial="one") for m in (model, like))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Windows(nn.Module):
    """The batch stands elsewhere: folded into windows, or behind the sequence."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.function = nn.Linear(3, 3), function
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:  # (B, 4, 3)
        h = self.inner(x.reshape(-1, 2, 3))
        h = self.function(h).view(x.shape).transpose(0, 1)
        return self.function(self.inner(h)).sum(0)


@pytest.mark.parametrize("function", [Swish.apply, lambda h: Reversal.apply(h, 2.0), Sign.apply])
def test_the_batch_may_travel(function: Any) -> None:
    model, x = Windows(function), torch.randn(3, 4, 3, dtype=F64)
    torch.testing.assert_close(gradient(model, x), derivative(model, x), rtol=1e-12, atol=1e-12)
    for composite in ("gradient", "epsilon"):
        assert fastlrp.Explainer(model, composite).verify(x, "all").ok


def test_other_threads_apply_functions_meanwhile() -> None:
    found, model = [], Model(BEFORE["straight through"])

    def elsewhere() -> None:
        x = torch.ones(2, requires_grad=True)
        found.append(torch.autograd.grad(Sign.apply(x).sum(), x)[0])

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            return Sign.apply(model.below(x))

    fastlrp.explain(Waits().eval(), torch.randn(2, 4, dtype=F64), 0, "gradient")
    assert found
    assert all(torch.equal(g, torch.ones(2)) for g in found)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_looked_through(reentrant: bool) -> None:
    model, x = Model(lambda m, h: checkpoint(m.inner, h.tanh(), use_reentrant=reentrant)), torch.randn(3, 4, dtype=F64)
    like = Model(lambda m, h: m.inner(h.tanh()))
    for composite in ("gradient", "epsilon"):
        found = fastlrp.explain(model, x, "all", composite)
        torch.testing.assert_close(found, fastlrp.explain(like, x, "all", composite), rtol=1e-12, atol=1e-12)


LIKE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "straight through": lambda m, h: h.sign(),
    "swish": lambda m, h: h * h.sigmoid(),
    "in place": lambda m, h: (2 * h + (2 * h).sin()) * (2 * h),
    "clamp": lambda m, h: h.clamp(-0.3, 0.3),
    "two": lambda m, h: h * h.tanh() + (h + 2 * h.tanh()),
    "weight": lambda m, h: nn.functional.linear(h, m.inner.weight.sign()) * 0.5 + m.inner(h),
    "reversal": lambda m, h: h.relu(),
    "attention": lambda m, h: _attention(m, h, lambda scores: scores.softmax(-1)),
    "gate": lambda m, h: h * m.inner(h).sigmoid(),
    "within": lambda m, h: (h.sign() * h) * (h.sign() * h).sigmoid(),
}


@pytest.mark.parametrize("composite", ["epsilon", "attnlrp", "cp_lrp", "gamma"])
@pytest.mark.parametrize("name", LIKE)
@pytest.mark.each_value
def test_relevance_is_that_of_the_operations(name: str, composite: str) -> None:
    x = torch.randn(3, 4, dtype=F64)
    model, like = Model(BEFORE[name]), Model(LIKE[name])
    torch.testing.assert_close(model(x), like(x))
    found = fastlrp.explain(model, x, "all", composite)
    torch.testing.assert_close(found, fastlrp.explain(like, x, "all", composite), rtol=1e-12, atol=1e-12)
    assert fastlrp.Explainer(model, composite).verify(x, "all").ok
