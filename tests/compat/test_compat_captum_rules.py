"""Every rule on every kind of layer against Captum, and what the second forward pass does to functional code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compat.captum_scripts import Functional, Library, agree, images, mixed, prepared, replacement

RULES: dict[str, Callable[[Library], Any]] = {
    "epsilon": lambda lib: lib.EpsilonRule(0.01),
    "epsilon default": lambda lib: lib.EpsilonRule(),
    "gamma": lambda lib: lib.GammaRule(0.5),
    "gamma no bias": lambda lib: lib.GammaRule(0.5, set_bias_to_zero=True),
    "alpha1 beta0": lambda lib: lib.Alpha1_Beta0_Rule(),
    "alpha1 beta0 no bias": lambda lib: lib.Alpha1_Beta0_Rule(set_bias_to_zero=True),
}


def every_rule(test: Any) -> Any:
    return pytest.mark.parametrize("rule", RULES.values(), ids=RULES)(test)


class Between(nn.Module):
    """A layer between two linear layers on the last axis, or two convolutions; its input has both signs."""

    def __init__(self, layer: nn.Module, channels: int = 0, out: int = 0) -> None:
        super().__init__()
        images = channels > 0
        self.below: nn.Module = nn.Conv2d(3, channels, 3) if images else nn.Linear(4, 6)
        self.layer = layer
        self.above: nn.Module = nn.Conv2d(out or channels, 4, 2) if images else nn.Linear(out or 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.layer(self.below(x)))


def _check(lib: Library, layer: nn.Module, rule: Any, x: Tensor, **shape: int) -> Any:
    model = prepared(Between(layer, **shape))
    model.layer.rule = rule(lib)
    target = (1, *(0,) * (model(x).dim() - 2))
    return lib.LRP(model).attribute(x, target=target, return_convergence_delta=True)


def _import_for(make: Callable[[], nn.Module]) -> Callable[[], Library]:
    """fastlrp's rules for one half of the layers, Captum's for the other."""
    return (replacement, mixed)[len(type(make()).__name__) % 2]


@pytest.mark.each_value(3)
@every_rule
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(6, 6, 3, padding=1),
        lambda: nn.Conv2d(6, 6, 3, padding="same", padding_mode="circular", bias=False),
        lambda: nn.Conv2d(6, 6, 3, stride=2, dilation=2, groups=3, padding=2),
        lambda: nn.ConvTranspose2d(6, 6, 2, stride=2),
        lambda: nn.BatchNorm2d(6),
        lambda: nn.MaxPool2d(2),
        lambda: nn.MaxPool2d(3, 1, 1, dilation=1, ceil_mode=True),
        lambda: nn.AvgPool2d(2, count_include_pad=False, padding=1),
        lambda: nn.AdaptiveAvgPool2d(3),
        lambda: nn.AdaptiveMaxPool2d(3),
        lambda: nn.GroupNorm(2, 6),
        lambda: nn.PReLU(6, 0.3),
        lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
        lambda: nn.ReLU(),
        lambda: nn.ZeroPad2d(1),
    ],
    ids=lambda make: type(make()).__name__,
)
def test_on_images(rule: Any, make: Callable[[], nn.Module]) -> None:
    agree(lambda lib: _check(lib, make(), rule, images(), channels=6), only=_import_for(make))


@pytest.mark.each_value(2)
@every_rule
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(6, 6),
        lambda: nn.Linear(6, 6, bias=False),
        lambda: nn.LayerNorm(6),
        lambda: nn.Sigmoid(),
        lambda: nn.Softmax(-1),
        lambda: nn.Softsign(),
    ],
    ids=lambda make: type(make()).__name__,
)
def test_on_tokens(rule: Any, make: Callable[[], nn.Module]) -> None:
    agree(lambda lib: _check(lib, make(), rule, torch.randn(2, 5, 4, dtype=torch.float64)), only=_import_for(make))


@every_rule
@pytest.mark.parametrize(
    ("make", "out"),
    [
        (lambda: nn.Conv1d(5, 5, 3, padding="same"), 6),
        (lambda: nn.BatchNorm1d(5), 6),
        (lambda: nn.MaxPool1d(2), 3),
        (lambda: nn.AvgPool1d(2), 3),
        (lambda: nn.Flatten(), 30),
    ],
    ids=["Conv1d", "BatchNorm1d", "MaxPool1d", "AvgPool1d", "Flatten"],
)
def test_on_sequences(rule: Any, make: Callable[[], nn.Module], out: int) -> None:
    script = lambda lib: _check(lib, make(), rule, torch.randn(2, 5, 4, dtype=torch.float64), out=out)  # noqa: E731
    agree(script, only=_import_for(make))


def test_in_three_dimensions() -> None:
    def script(lib: Library) -> Any:
        model = prepared(
            nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.AvgPool3d(2))
        )
        for i, rule in ((0, lib.GammaRule()), (1, lib.EpsilonRule(0.1)), (4, lib.EpsilonRule())):
            model[i].rule = rule
        return lib.LRP(model).attribute(torch.randn(2, 2, 6, 6, 6, dtype=torch.float64), target=(2, 0, 0, 0))

    agree(script)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm1d(5),
        lambda: nn.Linear(6, 6),
        lambda: nn.Sigmoid(),
        lambda: nn.LayerNorm(6),
        lambda: nn.Softsign(),
        lambda: nn.MaxPool1d(3, 1, 1),
    ],
    ids=lambda make: type(make()).__name__,
)
def test_identity(make: Callable[[], nn.Module]) -> None:
    agree(lambda lib: _check(lib, make(), lambda lib: lib.IdentityRule(), torch.randn(2, 5, 4, dtype=torch.float64)))


class Gate(nn.Module):
    """A module of a user's, of several operations, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, 6) * torch.sigmoid(self.weight * x + self.bias)


class Matrix(nn.Module):
    """A linear layer by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x.matmul(self.weight.t())


class Mean(nn.Module):
    """Two inputs, one of which is read by another layer, too."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y) / 2


@every_rule
@pytest.mark.parametrize("make", [Gate, Matrix])
def test_on_modules_of_a_users(rule: Any, make: Callable[[], nn.Module]) -> None:
    agree(lambda lib: _check(lib, make(), rule, torch.randn(2, 5, 4, dtype=torch.float64)))


class Merge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mean, self.last = nn.Linear(4, 6), nn.Linear(6, 6), Mean(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.last(self.mean(self.b(h), h))


@every_rule
def test_on_a_module_with_two_inputs(rule: Any) -> None:
    def script(lib: Library) -> Any:
        model = prepared(Merge())
        model.mean.rule, model.b.rule = rule(lib), rule(lib)
        return lib.LRP(model).attribute(torch.randn(3, 4, dtype=torch.float64), target=0)

    agree(script)


@every_rule
def test_functional_code_behind_a_changed_layer(rule: Any) -> None:
    """ReLU, max-pool, product and softmax are taken where the changed weights put them."""

    def script(lib: Library) -> Any:
        model, found = prepared(Functional()), []
        for names in (("first",), ("first", "second", "third"), ("third", "last", "out")):
            for name in names:
                model.get_submodule(name).rule = rule(lib)
            found.append(lib.LRP(model).attribute(images(), target=1))
        return found

    agree(script)


class Late(nn.Module):
    """A tensor that functional code reads before and after a layer does: Captum resets it in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        before = h.sigmoid() * torch.tanh(h) + h * F.gelu(h)
        middle = self.b(h)
        after = F.gelu(h) * F.elu(self.tanh(middle)).square()
        return self.c(before + after)


@every_rule
def test_functional_code_before_and_after_a_layer(rule: Any) -> None:
    def script(lib: Library) -> Any:
        model = prepared(Late())
        for layer in (model.a, model.b, model.c):
            layer.rule = rule(lib)
        return lib.LRP(model).attribute(torch.randn(3, 4, dtype=torch.float64), target=2)

    agree(script)


def test_the_mnist_example_of_many_tutorials() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
            self.conv2_drop = nn.Dropout2d()
            self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(F.max_pool2d(self.conv1(x), 2))
            x = F.relu(F.max_pool2d(self.conv2(x), 2)).view(-1, 320)
            x = F.dropout(F.relu(self.fc1(x)), training=self.training)
            return F.log_softmax(self.fc2(x), dim=1)

    def script(lib: Library) -> Any:
        model, x = prepared(Net()), torch.randn(2, 1, 28, 28, dtype=torch.float64)
        model.conv1.rule, model.conv2.rule = lib.Alpha1_Beta0_Rule(), lib.GammaRule(0.25)
        model.fc1.rule = lib.EpsilonRule(1e-3)
        model.conv2_drop.rule = lib.IdentityRule()
        return lib.LRP(model).attribute(x, target=torch.tensor([3, 8]))

    agree(script)
