"""Wrong use: what was wrong, what was expected, what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp.compat import zennit as ours
from fastlrp.compat.zennit import Gradient, IntegratedGradients, SmoothGrad
from tests.compat.zennit import both  # noqa: F401  (skips where Zennit is not installed)

rules = pytest.importorskip("zennit.rules")
from zennit.canonizers import SequentialMergeBatchNorm  # noqa: E402
from zennit.composites import EpsilonPlus, LayerMapComposite, NameMapComposite  # noqa: E402
from zennit.core import Composite  # noqa: E402

MODEL = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
X, TARGET = torch.ones(2, 5), torch.eye(4)[[1, 3]]


@pytest.mark.parametrize("make", [Gradient, SmoothGrad, IntegratedGradients])
def test_second_order(make: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"create_graph=True: .*zennit\.attribution\.Gradient"):
        make(MODEL, EpsilonPlus(), create_graph=True)
    with pytest.raises(NotImplementedError, match=r"attributor\.inactive: .*second-order"):
        _ = make(MODEL, EpsilonPlus()).inactive


@pytest.mark.parametrize(
    ("composite", "error", "message"),
    [
        (EpsilonPlus, TypeError, r"an instance: EpsilonPlus\(\), not the class"),
        (rules.Epsilon(), TypeError, r"is a rule, Epsilon: put it into a composite, .*LayerMapComposite\(\["),
        (SequentialMergeBatchNorm(), TypeError, "composite of Zennit's, a fastlrp.Composite .* got SequentialMerge"),
        (3, TypeError, "None for the gradient; got int"),
        ("epsilon_pluss", ValueError, "unknown composite 'epsilon_pluss': expected one of epsilon_plus"),
        ("epsilon_gamma_box", ValueError, "needs the bounds"),
    ],
)
def test_composites_that_are_none(composite: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Gradient(MODEL, composite)


def test_model_and_input() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        Gradient(lambda x: x, EpsilonPlus())  # type: ignore[arg-type]
    attributor = Gradient(MODEL, EpsilonPlus())
    with pytest.raises(TypeError, match=r"input must be a tensor, got tuple.*fastlrp\.Explainer"):
        attributor((X, X))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x is torch\.float64, the model's parameters are torch\.float32"):
        attributor(X.double())
    with pytest.raises(fastlrp.CaptureError, match=r"training mode.*model\.eval\(\)"):
        Gradient(nn.Sequential(nn.Linear(5, 4), nn.Dropout()), EpsilonPlus())(X)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (3, TypeError, r"output itself; got int\. For classes by number use targets=3"),
        ([1, 3], TypeError, r"got list\. For classes by number use targets=\[1, 3\]"),
        (torch.ones(4), ValueError, r"output's shape \(2, 4\), or \(K, 2, 4\) for K questions at once; got \(4,\)"),
        (torch.ones(2, 5), ValueError, r"got \(2, 5\)\. For one class per sample: torch\.eye\(classes\)"),
        (torch.ones(3, 1, 4), ValueError, r"got \(3, 1, 4\)"),
        (torch.ones(0, 2, 4), ValueError, r"got \(0, 2, 4\)"),
        (torch.ones(2, 4, dtype=torch.complex64), TypeError, r"real tensor as the output is, got torch\.complex64"),
        (lambda y: y.argmax(1), ValueError, r"got \(2,\)"),
        (lambda y: 1.0, TypeError, r"attr_output must give a tensor \(2, 4\), .* got float"),
        (lambda y: y / 0 * 0, ValueError, "attr_output contains NaN or infinity"),
    ],
)
def test_initial_relevance_that_does_not_fit(start: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Gradient(MODEL, EpsilonPlus())(X, start)
    if not isinstance(start, Tensor) or start.dim() != 3:
        with pytest.raises(error):
            Gradient(MODEL, EpsilonPlus(), attr_output=start)(X)


def test_targets_that_do_not_fit() -> None:
    attributor = Gradient(MODEL, EpsilonPlus())
    with pytest.raises(IndexError, match="target 4 is out of range"):
        attributor(X, targets=[0, 4])
    with pytest.raises(ValueError, match=r"output's shape \(2, 4\); got \(3, 2, 4\)"):
        attributor(X, torch.ones(3, 2, 4), targets=1)
    with pytest.raises(KeyError, match="unknown layer 'head'"):
        attributor(X, layers=["head"])
    with pytest.raises(TypeError, match="SmoothGrad averages the input's relevance: layers= is for Gradient"):
        SmoothGrad(MODEL, n_iter=2)(X, layers="all")
    with pytest.raises(ValueError, match="n_iter must be a whole number >= 1, got 0"):
        SmoothGrad(MODEL, n_iter=0)


def _nested(rule: Any) -> LayerMapComposite:
    return LayerMapComposite([(Block, rule), (nn.Linear, rules.ZPlus())])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


class Two(nn.Module):
    """Several inputs, or several outputs, of the module under the hook."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.part, self.head, self.inputs = Part(inputs), nn.Linear(5, 4), inputs

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs == 2:
            return self.head(self.part(x, x.tanh()))
        first, second = self.part(x)
        return self.head(first + second)


class Part(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, *x: Tensor) -> Any:
        return x[0] * x[1] if self.inputs == 2 else (x[0].relu(), x[0].tanh())


@pytest.mark.parametrize(
    ("model", "composite", "message"),
    [
        (lambda: nn.Sequential(Block(), nn.Linear(5, 4)), _nested(rules.Epsilon()),
         r"Zennit's hook Epsilon on '0' \(Block\) cannot .*modules inside it have hooks too \('0.inner'\)"),
        (lambda: Two(2), LayerMapComposite([(Part, rules.Norm())]),
         r"Zennit's hook Norm on 'part' \(Part\) .*several inputs with relevance"),
        (lambda: Two(1), LayerMapComposite([(Part, rules.Norm())]),
         r"Zennit's hook Norm on 'part' \(Part\) .*several outputs|computes something besides"),
        (lambda: nn.Sequential(nn.Dropout(), nn.Linear(5, 4)), NameMapComposite([(["0"], rules.Norm())]),
         r"Zennit's hook Norm on '0' \(Dropout\) .*does nothing in evaluation mode"),
        (lambda: nn.Sequential(nn.Identity(), nn.Linear(5, 4)), NameMapComposite([(["0"], rules.Epsilon())]),
         r"Zennit's hook Epsilon on '0' \(Identity\) .*does nothing in evaluation mode"),
        (lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Flatten(), nn.Linear(5, 4)),
         NameMapComposite([(["0"], rules.Pass())]), r"Zennit's hook Pass on '0' \(Unflatten\) .*different shapes"),
    ],
)  # fmt: skip
def test_hook_that_cannot_be_translated(model: Any, composite: Any, message: str) -> None:
    with pytest.raises(fastlrp.UnsupportedOperationError, match=message) as caught:
        Gradient(model().eval(), composite)(X)
    assert "Ways out: let the composite's module_map return None" in str(caught.value)


def test_hook_of_ones_own_that_returns_another_shape() -> None:
    class Wrong(rules.Hook):
        def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
            return (grad_output[0].sum(1),)

    with pytest.raises(ValueError, match=r"hook Wrong at '2' returned relevance \(2,\) for an input \(2, 6\)"):
        Gradient(MODEL, NameMapComposite([(["2"], Wrong())]))(X)


def test_module_map_that_returns_no_hook() -> None:
    with pytest.raises(TypeError, match=r"module_map returned 'epsilon' for module '': expected a zennit\.core\.Hook"):
        Gradient(MODEL, Composite(lambda context, name, module: "epsilon"))(X)


@pytest.mark.parametrize("kind", ["forward_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_of_the_users(kind: str) -> None:
    def looks(*arguments: Any) -> None:
        raise AssertionError("never called")

    with Gradient(MODEL, EpsilonPlus()) as attributor:
        handle = getattr(MODEL[1], f"register_{kind}")(looks)
        try:
            with pytest.raises(RuntimeError, match=r"module '1' has a .*hook \(looks\).*layers=\['1'\]"):
                attributor(X)
        finally:
            handle.remove()
        attributor(X)


def test_hooks_of_another_composite() -> None:
    composite = EpsilonPlus()
    with composite.context(MODEL):
        for other in ("epsilon_plus", EpsilonPlus()):
            with pytest.raises(RuntimeError, match=r"hooks of another composite of Zennit's: call composite\.remove"):
                Gradient(MODEL, other)(X)
        with EpsilonPlus().context(MODEL), pytest.raises(RuntimeError, match=r"module '0' has 2 of Zennit's hooks"):
            Gradient(MODEL)(X)
    Gradient(MODEL, "epsilon_plus")(X)


def test_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Linear(5, 4)).eval()
    model.file = open(__file__)  # type: ignore[assignment]  # noqa: SIM115
    try:
        with pytest.raises(TypeError, match=r"Sequential cannot be copied .*fastlrp\.Explainer"):
            Gradient(model, EpsilonPlus())(X)
    finally:
        model.file.close()  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("name", ["Occlusion", "occlude_independent", "Attributor"])
def test_what_stays_with_zennit(name: str) -> None:
    with pytest.raises(ImportError, match=f"has no {name}: "):
        getattr(ours, name)
    with pytest.raises(ImportError, match=f"has no {name}: "):
        exec(f"from fastlrp.compat.zennit import {name}")
    assert not hasattr(ours, "something_else")
