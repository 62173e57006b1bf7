"""What the replacement refuses, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlrp.compat.captum import LRP, EpsilonRule, GammaRule, IdentityRule, LayerLRP, PropagationRule
from tests.compat.captum_scripts import SmallCnn, TwoInputs, images, prepared


def test_rules_that_are_none() -> None:
    model = prepared(SmallCnn())
    model.features[4].rule = 1
    for make in (LRP, lambda m: LayerLRP(m, m.features)):
        with pytest.raises(TypeError, match=r"features\.4\.rule must be a propagation rule .* got int: 1"):
            make(model)
    del model.features[4].rule
    lrp = LRP(model)
    model.features[4].rule = "gamma"  # Later.
    with pytest.raises(TypeError, match=r"features\.4\.rule must be a propagation rule .* got str"):
        lrp.attribute(images(), target=1)
    model.features[4].rule = None
    assert lrp.attribute(images(), target=1).shape == (2, 3, 8, 8)


class _Own(GammaRule):
    """A user's."""

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        module.weight.data = module.weight.data.abs()


@pytest.mark.parametrize("make", [_Own, PropagationRule])
def test_rules_with_a_behaviour_of_their_own(make: type[PropagationRule]) -> None:
    model = prepared(SmallCnn())
    model.features[4].rule = make()
    with pytest.raises(TypeError, match=rf"features\.4\.rule is a {make.__name__}, .*ModifiedWeights.*Custom"):
        LRP(model).attribute(images(), target=1)


def test_a_rule_of_captums_with_a_behaviour_of_its_own() -> None:
    theirs = pytest.importorskip("captum.attr._utils.lrp_rules")

    class Own(theirs.EpsilonRule):
        def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
            module.weight.data = module.weight.data.abs()

    class Larger(theirs.EpsilonRule):
        """Nothing but another number."""

        def __init__(self) -> None:
            super().__init__(0.5)

    model, x = prepared(SmallCnn()), images()
    model.features[4].rule = Own()
    with pytest.raises(TypeError, match=r"features\.4\.rule is a Own, whose way .* or use captum\.attr\.LRP"):
        LRP(model).attribute(x, target=1)
    model.features[4].rule = Larger()
    larger = LRP(model).attribute(x, target=1)
    model.features[4].rule = EpsilonRule(0.5)
    assert torch.equal(LRP(model).attribute(x, target=1), larger)


@pytest.mark.parametrize("rule", [EpsilonRule(-1.0), GammaRule(-0.5)])
def test_numbers_that_no_rule_has(rule: PropagationRule) -> None:
    model = prepared(SmallCnn())
    model.features[4].rule = rule
    with pytest.raises(ValueError, match=r"features\.4\.rule, .*must be"):
        LRP(model).attribute(images(), target=1)


def test_a_module_without_rule_and_default() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2.0

    model = prepared(nn.Sequential(nn.Linear(3, 4), Scale(), nn.Linear(4, 2)))
    x = torch.randn(2, 3).double()
    with pytest.raises(TypeError, match=r"module '1' of type Scale has no rule, .*IdentityRule"):
        LRP(model).attribute(x, target=1)
    model[1].rule = IdentityRule()
    assert LRP(model).attribute(x, target=1).shape == (2, 3)


def test_identity_on_a_layer_that_changes_the_shape() -> None:
    model = prepared(SmallCnn())
    model.features[4].rule = IdentityRule()
    with pytest.raises(ValueError, match=r"IdentityRule on features\.4: its input \(2, 6, 4, 4\) and output"):
        LRP(model).attribute(images(), target=1)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (10, IndexError, r"target 10 is out of range for an output \(2, 10\)"),
        ([1, 10], IndexError, "out of range"),
        (None, ValueError, "leaves 10 entries of the output"),
        ([1, 2, 3], ValueError, r"one entry for each sample: got 3 for 2 samples.*targets="),
        (torch.zeros(2, 2, dtype=torch.long), ValueError, r"one integer or \(B,\), got \(2, 2\)"),
        (torch.tensor([0.0, 1.0]), TypeError, "torch.float64|torch.float32"),
        (1.0, TypeError, "a target is an integer"),
        (True, TypeError, "a target is an integer"),
        ("cat", TypeError, "integer or a tuple of integers, got str"),
        ((0, 1), ValueError, "has 2 indices, the output has 1 axes"),
    ],
)
def test_targets_that_do_not_fit(target: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LRP(prepared(SmallCnn())).attribute(images(), target=target)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([], ValueError, "targets is empty"),
        (3, TypeError, "targets must be a sequence of targets, 'all' or 'top5', got int"),
        ("best", ValueError, "'best' is not known"),
        ("top11", IndexError, "asks for 11 classes, the output has 10"),
        (torch.zeros(3, 2, dtype=torch.long), ValueError, r"must be \(K,\) or \(2, K\), got \(3, 2\)"),
        (torch.zeros(2, 3), TypeError, "a target is an integer"),
        ([1, 12], IndexError, "target 12 is out of range"),
    ],
)
def test_many_targets_that_do_not_fit(targets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LRP(prepared(SmallCnn())).attribute(images(), targets=targets)


def test_inputs_that_do_not_fit() -> None:
    model, x = prepared(SmallCnn()), images()
    lrp = LRP(model)
    with pytest.raises(ValueError, match="not both"):
        lrp.attribute(x, 1, targets=[1])
    with pytest.raises(TypeError, match="inputs must be a tensor, got list"):
        lrp.attribute([x], 1)
    with pytest.raises(TypeError, match=r"inputs\[1\] is torch.int64, which has no relevance: pass it in additional"):
        lrp.attribute((x, torch.arange(2)), 1)
    with pytest.raises(ValueError, match=r"additional_forward_args\[0\] is a tensor \(3,\); its first axis"):
        LRP(prepared(TwoInputs())).attribute(torch.randn(2, 3).double(), 1, torch.randn(3).double())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn.Module, got function"):
        LRP(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"float32, the model's parameters are torch\.float64"):
        lrp.attribute(x.float(), 1)
