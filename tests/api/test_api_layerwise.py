"""``fastlrp.lrp``: all layers in one call, functional ones included."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastlrp
from fastlrp import Explainer
from tests.api.models import make, relative_error, samples

TIGHT = 1e-13


class Mixed(nn.Module):
    """Modules, functional calls with and without names of modules, a container, a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.relu(x + self.block(x))
        x = F.relu(x + 2 * x)
        return self.fc(F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).flatten(1))


NAMES = [
    "output", "fc", "adaptive_avg_pool2d", "max_pool2d", "relu_2", "add_1", "mul", "relu", "add", "block.1", "block.0",
    "relu_1", "a", "input",
]  # fmt: skip


def test_names_and_order():
    torch.manual_seed(0)
    model, x = Mixed().double().eval(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    found = fastlrp.lrp(model, x)
    assert list(found) == NAMES
    assert found["input"].shape == x.shape
    assert found["block.1"].shape == (2, 4, 8, 8)
    highest = model(x).amax(1)
    torch.testing.assert_close(found["output"].sum(1), highest)
    assert (found["output"] != 0).sum() == 2
    for name, relevance in found.items():
        assert relevance.shape[0] == 2, name
    # The relevance of a module's output is what an explainer gives; functional ones can be asked for by name too.
    explainer = Explainer(model)
    named = explainer(x, "top1", layers=["block.1", "relu_1", "add"])
    for name in ("block.1", "relu_1", "add", "input"):
        assert relative_error(found[name], named[name][:, 0]) <= TIGHT


def test_targets_and_composites():
    model, x = make("convnet"), samples("convnet")
    one, several = fastlrp.lrp(model, x, 3, "epsilon"), fastlrp.lrp(model, x, [1, 3], "epsilon")
    assert list(one) == list(several)
    for name, relevance in several.items():
        assert relevance.shape[1] == 2
        assert relative_error(relevance[:, 1], one[name]) <= TIGHT
    assert relative_error(one["input"], Explainer(model, "epsilon")(x, 3)[:, 0]) <= TIGHT
    options = fastlrp.lrp(model, x, 0, "lrp0", profile="toolbox", backend="torch")
    assert relative_error(options["input"], Explainer(model, "lrp0", profile="toolbox")(x, 0)[:, 0]) <= TIGHT


def test_an_unknown_name_lists_the_functional_ones_too():
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.rand(2, 3, 8, 8)
    with pytest.raises(KeyError, match=r"unknown layer 'relu_7'; did you mean .*relu_1"):
        Explainer(model)(x, 0, layers="relu_7")
    with pytest.raises(TypeError, match="layers must be a module path"):
        Explainer(model)(x, 0, layers=[3])
