"""``LayerLRP`` under both imports: one layer and several, outputs and inputs, deltas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.shim_captum import additive_resnet18, attach
from tests.compat.captum_scripts import (
    Functional,
    Library,
    Perceptron,
    SmallCnn,
    agree,
    images,
    prepared,
    relative_error,
    replacement,
    run,
    theirs,
)
from tests.torchvision_models import random_model

X = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("to_input", [False, True])
def test_one_layer(to_input: bool) -> None:
    def script(lib: Library) -> Any:
        found = []
        for path in ("features.0", "features.1", "features.3", "features.4", "features.6", "classifier.0"):
            model = prepared(SmallCnn())
            model.features[0].rule = lib.Alpha1_Beta0_Rule()
            model.features[4].rule = lib.GammaRule()
            lrp = lib.LayerLRP(model, model.get_submodule(path))
            found.append(lrp.attribute(images(), 4, None, True, to_input))
        return found

    agree(script)


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("delta", [False, True])
def test_a_list_of_layers(to_input: bool, delta: bool) -> None:
    """Captum's own test: relevance of both layers' inputs, and one delta for each."""

    def script(lib: Library) -> Any:
        model = Perceptron().double().eval()
        model.linear.rule, model.linear2.rule = lib.EpsilonRule(), lib.EpsilonRule()
        lrp = lib.LayerLRP(model, [model.linear, model.linear2])
        found = lrp.attribute(X, attribute_to_layer_input=to_input, return_convergence_delta=delta)
        if delta:  # It is 1e-9 of the score.
            found = found[0], [d + model(X).flatten() for d in found[1]]
        return found

    found = agree(script)
    relevances = found[0] if delta else found
    if to_input:
        assert torch.allclose(relevances[0], 18 * X, atol=1e-6)


def test_a_list_of_one_is_a_list() -> None:
    def script(lib: Library) -> Any:
        model = prepared(SmallCnn())
        return lib.LayerLRP(model, [model.features[0]]).attribute(images(), target=2, return_convergence_delta=True)

    agree(script)


def test_functional_model() -> None:
    def script(lib: Library) -> Any:
        model = prepared(Functional())
        model.first.rule, model.third.rule = lib.GammaRule(0.5), lib.Alpha1_Beta0_Rule()
        return lib.LayerLRP(model, [model.first, model.second, model.third, model.last]).attribute(images(), target=1)

    agree(script)


class Sum(nn.Module):
    """A sum whose inputs no other layer reads, or one of them does."""

    def __init__(self, addition: type[nn.Module], shared: bool) -> None:
        super().__init__()
        self.first, self.second, self.add = nn.Linear(4, 6), nn.Linear(4, 6), addition()
        self.third, self.last, self.shared = nn.Linear(6, 6), nn.Linear(6, 3), shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.first(x), self.second(x)
        return self.last(self.add(self.third(first) if self.shared else second, first))


@pytest.mark.parametrize("shared", [False, True])
def test_inputs_of_a_sum(shared: bool) -> None:
    """Here all of them, in the order of the arguments. Captum: in the order in which its hooks run, and without those
    that another layer has read before."""
    x = torch.randn(5, 4, dtype=torch.float64)

    def script(lib: Library) -> Any:
        model = prepared(Sum(lib.Addition_Module, shared))
        lrp = lib.LayerLRP(model, model.add)
        return lrp.attribute(x, target=1, attribute_to_layer_input=True)

    found, expected = run(script, replacement()), run(script, theirs())
    assert isinstance(found, tuple)
    assert isinstance(expected, tuple)
    assert len(found) == 2
    assert len(expected) == (1 if shared else 2)
    for f, e in zip(found, expected, strict=not shared):
        assert relative_error(f, e) <= 1e-9


@pytest.mark.slow
def test_resnet18() -> None:
    def script(lib: Library) -> Any:
        model = additive_resnet18(lib.Addition_Module, 64)[0].double()
        attach(model, lib)
        layers = [model.conv1, model.layer1[0].bn2, model.layer2[0].downsample[0], model.layer3[1].add, model.fc]
        return lib.LayerLRP(model, layers).attribute(images(1, 64), target=5)

    agree(script)


@pytest.mark.slow
def test_googlenet() -> None:
    def script(lib: Library) -> Any:
        model: Any = random_model("googlenet", dtype=torch.float64, classes=10)
        attach(model, lib)
        layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d))]
        return lib.LayerLRP(model, [m for m in layers if m not in set(_auxiliary(model))]).attribute(
            images(1, 64), target=5
        )

    agree(script)


def _auxiliary(model: Any) -> list[nn.Module]:
    return [m for head in (model.aux1, model.aux2) if head is not None for m in head.modules()]


# What Captum cannot do


def test_layers_without_a_rule_and_containers() -> None:
    model, x = prepared(SmallCnn()), images()
    lib = replacement()
    layers = [model.features[2], model.features, model.classifier[2], model.classifier]
    relu, features, dropout, classifier = lib.LayerLRP(model, layers).attribute(x, target=1)
    norm, pool, above, last = lib.LayerLRP(
        model, [model.features[1], model.features[6], model.classifier[3], model.classifier[3]]
    ).attribute(x, target=1)
    assert torch.equal(relu, norm)  # It passed the ReLU.
    assert torch.equal(features, pool)
    assert torch.equal(classifier, last)
    into = lib.LayerLRP(model, [model.features[2], model.features, model.classifier[3], model.classifier[2]])
    relu_in, features_in, above_in, dropout_in = into.attribute(x, target=1, attribute_to_layer_input=True)
    assert torch.equal(relu_in, norm)
    assert torch.equal(features_in, lib.LRP(model).attribute(x, target=1))
    assert torch.equal(above_in, dropout)
    assert torch.equal(dropout_in, dropout)
    assert above.shape == (2, 10)


def test_all_layers_and_many_targets() -> None:
    model, x = prepared(SmallCnn()), images()
    lib = replacement()
    found, deltas = lib.LayerLRP(model, None).attribute(x, targets=[4, 0, 1], return_convergence_delta=True)
    assert len(found) == len(deltas) == 11  # As many layers, in the order of the modules.
    one, delta = lib.LayerLRP(model, model.features[4]).attribute(x, target=0, return_convergence_delta=True)
    assert relative_error(found[4][:, 1], one) <= 1e-12
    assert relative_error(deltas[4][:, 1], delta) <= 1e-12
    assert deltas[4].shape == (2, 3)


def test_a_layer_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.relu(self.a(self.relu(self.a(x)))))

    model, x, lib = prepared(Twice()), torch.randn(2, 4, dtype=torch.float64), replacement()
    first, second = lib.LayerLRP(model, model.a).attribute(x, target=0)
    into_first, into_second = lib.LayerLRP(model, model.a).attribute(x, target=0, attribute_to_layer_input=True)
    assert torch.equal(first, into_second)  # Only a ReLU is between them.
    assert torch.equal(into_first, lib.LRP(model).attribute(x, target=0))
    assert second.shape == (2, 4)


def test_refused_layers() -> None:
    model, lib = prepared(SmallCnn()), replacement()
    with pytest.raises(ValueError, match="layer, a Linear, is not a module of this model"):
        lib.LayerLRP(model, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="is the model itself: use LRP"):
        lib.LayerLRP(model, model)
    with pytest.raises(TypeError, match="layer must be a module of the model, a list of them or None, got str"):
        lib.LayerLRP(model, "features.0")
    model.features.add_module("idle", nn.Identity())
    with pytest.raises(ValueError, match=r"layer 'features.idle' computes nothing in this model"):
        lib.LayerLRP(model, model.features.idle).attribute(images(), target=1)
