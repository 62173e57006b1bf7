"""The replacement by itself: without Captum, many targets, what is kept and noticed between calls."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import rules
from fastlrp.compat.captum import (
    LRP,
    Addition_Module,
    Alpha1_Beta0_Rule,
    EpsilonRule,
    GammaRule,
    LayerLRP,
)
from fastlrp.compat.captum import explainer as captures
from tests.compat.captum_scripts import (
    Functional,
    Perceptron,
    SmallCnn,
    TwoInputs,
    images,
    prepared,
    relative_error,
    state,
    unchanged,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.slow
def test_without_captum() -> None:
    code = (
        "import sys; sys.modules['captum'] = None\n"
        "import torch\n"
        "from torch import nn\n"
        "from fastlrp.compat.captum import *\n"
        "model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()\n"
        "model[0].rule, model[2].rule = GammaRule(0.5), EpsilonRule(1e-3)\n"
        "x = torch.randn(2, 3)\n"
        "relevance, delta = LRP(model).attribute(x, target=1, return_convergence_delta=True)\n"
        "print(relevance.shape, delta.shape, LayerLRP(model, model[0]).attribute(x, target=1).shape)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('captum', 'zennit') and sys.modules[m]])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    shapes, loaded = run.stdout.strip().splitlines()
    assert shapes == "torch.Size([2, 3]) torch.Size([2]) torch.Size([2, 4])"
    assert loaded == "[]"


def test_by_hand() -> None:
    """``x = (1, 2)``, weights (3, -1), bias -4, so ``z = -3``."""
    model = nn.Sequential(nn.Linear(2, 1)).double()
    model[0].weight.data, model[0].bias.data = torch.tensor([[3.0, -1.0]]).double(), torch.tensor([-4.0]).double()
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)

    def relevance(rule: Any) -> list[float]:
        model[0].rule = rule
        return LRP(model).attribute(x).flatten().tolist()

    assert relevance(EpsilonRule(1.0)) == pytest.approx([3 / -4 * -3, -2 / -4 * -3])
    assert relevance(GammaRule(1.0)) == pytest.approx([6.0 * -3 / 1e-9, -2.0 * -3 / 1e-9])  # 6 - 2 - 4 = 0, sgn(0) = +1
    assert relevance(GammaRule(1.0, set_bias_to_zero=True)) == pytest.approx([6 / 4 * -3, -2 / 4 * -3])
    assert relevance(Alpha1_Beta0_Rule()) == pytest.approx([3 / -1 * -3, 0.0])
    assert relevance(Alpha1_Beta0_Rule(True)) == pytest.approx([-3.0, 0.0])


# Many targets


def test_forms_of_many_targets() -> None:
    model, x = prepared(SmallCnn()), images(3)
    lrp = LRP(model)
    each = [lrp.attribute(x, target=k, return_convergence_delta=True) for k in range(10)]
    every, deltas = (torch.stack(parts, 1) for parts in zip(*each, strict=True))
    for targets in ("all", range(10), list(range(10)), tuple(range(10)), torch.arange(10), torch.arange(10).numpy()):
        found, delta = lrp.attribute(x, targets=targets, return_convergence_delta=True)
        assert found.shape == (3, 10, 3, 8, 8)
        assert relative_error(found, every) <= 1e-12
        assert relative_error(delta, deltas) <= 1e-12
    best = model(x).topk(3).indices
    own = torch.stack([every[i, best[i]] for i in range(3)])
    for targets in ("top3", best, [column.tolist() for column in best.T], list(best.T)):
        assert relative_error(lrp.attribute(x, targets=targets), own) <= 1e-12
    one = lrp.attribute(x, targets=[4], return_convergence_delta=True)
    assert one[0].shape == (3, 1, 3, 8, 8)
    assert one[1].shape == (3, 1)


def test_many_targets_of_an_output_with_more_axes() -> None:
    model, x = prepared(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3))), images()
    targets = [(0, 1, 2), (5, 0, 0), [(1, 1, 1), (2, 2, 2)]]
    lrp = LRP(model)
    found = lrp.attribute(x, targets=targets)
    for k, target in enumerate(targets):
        assert relative_error(found[:, k], lrp.attribute(x, target=target)) <= 1e-12


def test_many_targets_of_several_inputs() -> None:
    model = prepared(TwoInputs())
    x, y = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    (first, second), delta = LRP(model).attribute((x, y), targets="all", return_convergence_delta=True)
    assert first.shape == second.shape == (4, 5, 3)
    scores = model(x, y)
    assert torch.allclose(delta, scores - first.sum(2) - second.sum(2))


def test_memory_is_bounded() -> None:
    model, x = prepared(SmallCnn()), images(4)
    small = LRP(model, max_memory="1MB").attribute(x, targets="all")
    assert relative_error(small, LRP(model).attribute(x, targets="all")) <= 1e-12


# What is kept, and what is noticed


def test_nothing_of_the_model_is_changed() -> None:
    for make in (SmallCnn, Functional):
        model, x = prepared(make()), images()
        before = state(model)
        LRP(model).attribute(x, target=1, return_convergence_delta=True)
        LayerLRP(model, None).attribute(x, targets=[0, 1])
        assert unchanged(before, state(model))
        assert not x.requires_grad


def test_rules_are_forgotten_as_captum_does() -> None:
    model, x = prepared(SmallCnn()), images()
    lrp = LRP(model)
    default = lrp.attribute(x, target=1)
    model.features[0].rule = GammaRule(2.0)
    other = lrp.attribute(x, target=1)
    assert not any(hasattr(module, "rule") for module in model.modules())
    assert relative_error(other, default) > 0.01
    assert torch.equal(lrp.attribute(x, target=1), default)
    model.features[0].rule = GammaRule(2.0)
    with pytest.raises(IndexError):
        lrp.attribute(x, target=10)
    assert not hasattr(model.features[0], "rule")


def test_rules_can_be_kept() -> None:
    model, x = prepared(SmallCnn()), images()
    rule = model.features[0].rule = GammaRule(2.0)
    lrp = LRP(model, keep_rules=True)
    first = lrp.attribute(x, target=1)
    assert model.features[0].rule is rule
    assert torch.equal(lrp.attribute(x, target=1), first)
    rule.gamma = 0.1  # The same object with another number.
    assert relative_error(lrp.attribute(x, target=1), first) > 0.01
    rule.gamma = 2.0
    assert torch.equal(lrp.attribute(x, target=1), first)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Models, one entry for each capture."""
    found: list[nn.Module] = []
    capture = captures.capture

    def counted(model: nn.Module, *rest: Any) -> Any:
        found.append(model)
        return capture(model, *rest)

    monkeypatch.setattr(captures, "capture", counted)
    return found


def test_one_capture_for_all_rules_objects_and_batch_sizes(captured: list[nn.Module]) -> None:
    model = prepared(SmallCnn())
    for rule in (EpsilonRule(), GammaRule(), Alpha1_Beta0_Rule(), EpsilonRule(0.1), GammaRule(1.0), EpsilonRule()):
        model.features[4].rule = rule
        LRP(model).attribute(images(3), target=1)
        model.features[4].rule = rule
        LayerLRP(model, model.features[4]).attribute(images(1), target=[2])
    assert captured == [model]
    LRP(model).attribute(images(1, 12), target=1)  # Another size of image.
    assert len(captured) == 2


@pytest.mark.slow
def test_changed_weights_and_modules_are_noticed(captured: list[nn.Module]) -> None:
    model, x = prepared(SmallCnn()), images()
    lrp = LRP(model)

    def is_right() -> None:
        captures._GRAPHS.pop(model, None)
        fresh = LRP(model).attribute(x, target=1)
        assert torch.equal(found, fresh)

    before = lrp.attribute(x, target=1)
    with torch.no_grad():
        model.features[0].weight.mul_(1.5)
    found = lrp.attribute(x, target=1)
    assert len(captured) == 1
    assert not torch.equal(found, before)
    is_right()
    model.features[2] = nn.Tanh()
    found = lrp.attribute(x, target=1)
    is_right()
    model.features[0].weight = nn.Parameter(torch.randn_like(model.features[0].weight))
    found = LRP(model).attribute(x, target=1)  # A new object, with a graph of before.
    is_right()
    with pytest.raises(fastlrp.CaptureError, match="training mode"):
        lrp.attribute(x, target=1) if model.train() else None
    model.eval()
    model.features[0].weight.data.mul_(2.0)  # Leaves no trace.
    lrp.refresh()
    found = lrp.attribute(x, target=1)
    is_right()


def test_a_replaced_module_under_the_same_rule_is_noticed() -> None:
    model = prepared(SmallCnn())
    x = images()
    lrp = LRP(model, keep_rules=True)
    model.features[1].rule = GammaRule(0.5)
    lrp.attribute(x, target=1)
    other = prepared(SmallCnn()).features[1]
    other.rule = model.features[1].rule
    model.features[1] = other
    assert torch.equal(lrp.attribute(x, target=1), LRP(model).attribute(x, target=1))


def test_an_empty_batch() -> None:
    model, x = prepared(SmallCnn()), images(0)
    found, delta = LRP(model).attribute(x, target=1, return_convergence_delta=True)
    assert found.shape == x.shape
    assert delta.shape == (0,)
    assert LRP(model).attribute(x, targets="top2").shape == (0, 2, 3, 8, 8)


def test_models_are_not_kept_alive() -> None:
    model, x = prepared(SmallCnn()), images()
    gone = weakref.ref(model)
    LRP(model).attribute(x, target=1)
    LayerLRP(model, model.features).attribute(x, target=1)
    assert model in captures._GRAPHS
    del model
    gc.collect()
    assert gone() is None


# fastlrp's own rules


def test_rules_of_fastlrp_on_modules() -> None:
    """On a model where batch norms and eps make no difference they are those of an Explainer."""
    model, x = prepared(SmallCnn(norm=False)), images().abs()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.rule = rules.ZPlus()
        elif isinstance(module, (nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d)):
            module.rule = rules.Epsilon() if isinstance(module, nn.Linear) else rules.Norm()
    found = LRP(model, keep_rules=True).attribute(x, targets=[1, 2])
    assert relative_error(found, fastlrp.explain(model, x, [1, 2], "epsilon_plus")) <= 1e-12
    model.features[0].rule = rules.ZBox(0.0, 4.0)
    assert LRP(model).attribute(x, target=1).min() >= -1e9


def test_a_custom_rule_on_a_module() -> None:
    class Half(rules.Custom):
        def propagate(self, forward: Any, inputs: Any, output: Tensor, relevance: Tensor) -> Any:
            return (relevance / 2,)

    model, x = prepared(SmallCnn()), images()
    whole = LRP(model).attribute(x, target=1)
    model.classifier[1].rule = Half()
    assert torch.equal(LRP(model).attribute(x, target=1), whole)  # Captum ignores rules on ReLU, Tanh and Dropout.
    model.classifier[1] = nn.Sigmoid()
    whole = LRP(model).attribute(x, target=1)
    model.classifier[1].rule = Half()
    assert relative_error(LRP(model).attribute(x, target=1), whole / 2) <= 1e-12


def test_an_input_that_does_not_matter_has_no_relevance() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.linear(x) + 0 * y.shape[1]

    x, y = torch.randn(2, 3).double(), torch.randn(2, 5).double()
    found, nothing = LRP(prepared(First())).attribute((x, y), target=1)
    assert found.shape == (2, 3)
    assert torch.equal(nothing, torch.zeros_like(y))


def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    model = Perceptron().eval()
    model.linear.rule = GammaRule(0.5, set_bias_to_zero=True)
    LRP(model).attribute(torch.ones(1, 3), verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        "Applied GammaRule(0.5, set_bias_to_zero=True) on layer Linear(in_features=3, out_features=3, bias=False)",
        "Applied EpsilonRule(1e-09) on layer Linear(in_features=3, out_features=1, bias=False)",
    ]


def test_rules_show_their_numbers() -> None:
    assert repr(EpsilonRule(0.5)) == "EpsilonRule(STABILITY_FACTOR=0.5)"
    assert repr(GammaRule()) == "GammaRule(gamma=0.25, set_bias_to_zero=False)"
    assert Addition_Module()(torch.ones(2), torch.ones(2)).tolist() == [2.0, 2.0]
