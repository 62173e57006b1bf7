"""Scripts in the style of Captum's documentation, written once and run under either import; and models for them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp.compat.captum as ours

TOLERANCE = 1e-9
"""Relative, in float64. Measured: up to 3e-11 where gamma cancels, else 1e-14."""


@dataclass(frozen=True)
class Library:
    """What a script imports."""

    LRP: Any
    LayerLRP: Any
    EpsilonRule: Any
    GammaRule: Any
    Alpha1_Beta0_Rule: Any
    IdentityRule: Any
    Addition_Module: Any


def theirs() -> Library:
    """Captum, or a skip."""
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    rules = pytest.importorskip("captum.attr._utils.lrp_rules")
    modules = pytest.importorskip("captum.attr._utils.custom_modules")
    return Library(
        attr.LRP, attr.LayerLRP, rules.EpsilonRule, rules.GammaRule, rules.Alpha1_Beta0_Rule, rules.IdentityRule,
        modules.Addition_Module,
    )  # fmt: skip


def replacement() -> Library:
    """fastlrp's, with its own rules."""
    return Library(
        ours.LRP, ours.LayerLRP, ours.EpsilonRule, ours.GammaRule, ours.Alpha1_Beta0_Rule, ours.IdentityRule,
        ours.Addition_Module,
    )  # fmt: skip


def mixed() -> Library:
    """fastlrp's ``LRP`` with Captum's rule objects: one import line of a script changed."""
    return Library(ours.LRP, ours.LayerLRP, *list(vars(theirs()).values())[2:])


Script = Callable[[Library], Any]


def agree(script: Script, tolerance: float = TOLERANCE, only: Callable[[], Library] | None = None) -> Any:
    """Run a script under the three imports (or Captum's and another), compare what it returns, and return Captum's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor", UserWarning)  # Captum says that it set requires_grad.
        expected = run(script, theirs())
    for library in (replacement(), mixed()) if only is None else (only(),):
        same(run(script, library), expected, tolerance)
    return expected


def run(script: Script, library: Library) -> Any:
    """With the same random numbers each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return script(library)


def same(found: Any, expected: Any, tolerance: float = TOLERANCE, where: str = "result") -> None:
    """The same structure, types, shapes and numbers."""
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor), where
        assert found.shape == expected.shape, where
        assert found.dtype == expected.dtype, where
        error = relative_error(found, expected)
        assert error <= tolerance, f"{where}: {error:.1e}"
        return
    assert type(found) is type(expected), where
    if isinstance(expected, (tuple, list)):
        assert len(found) == len(expected), where
        for i, (f, e) in enumerate(zip(found, expected, strict=True)):
            same(f, e, tolerance, f"{where}[{i}]")
    else:
        assert found == expected, where


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape, f"{tuple(found.shape)} and {tuple(expected.shape)}"
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else float(found.norm())


def state(model: nn.Module) -> Any:
    """Everything that an attribution might leave changed."""
    hooks = [
        len(table)
        for m in model.modules()
        for table in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    ]
    parameters = [(k, id(v), v.requires_grad, v.grad is None) for k, v in model.named_parameters()]
    attributes = [(k, sorted(vars(m))) for k, m in model.named_modules()]
    values = {k: v.clone() for k, v in copy.deepcopy(model.state_dict()).items()}
    return hooks, parameters, attributes, model.training, values


def unchanged(before: Any, after: Any) -> bool:
    return before[:-1] == after[:-1] and all(torch.equal(v, after[-1][k]) for k, v in before[-1].items())


# Models


def prepared(model: nn.Module) -> Any:
    """In float64, batch norms and biases as after training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(getattr(module, "bias", None), Tensor):
            nn.init.normal_(module.bias, 0, 0.2)
    return model.double().eval()


class Perceptron(nn.Module):
    """Two linear layers without bias, all weights one in the first."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)
        self.relu = nn.ReLU(inplace=inplace)
        self.linear2 = nn.Linear(3, 1, bias=False)
        self.dropout = nn.Dropout(0.1)
        nn.init.constant_(self.linear.weight, 2.0)
        nn.init.constant_(self.linear2.weight, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.relu(self.linear(x))))


class SmallCnn(nn.Module):
    """Convolutions, batch norm, both pools, tanh, dropout."""

    def __init__(self, pool: type[nn.Module] = nn.MaxPool2d, norm: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=bias),
            nn.BatchNorm2d(6) if norm else nn.Conv2d(6, 6, 1, bias=bias),
            nn.ReLU(),
            pool(2),
            nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=bias),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(32, 16, bias), nn.Tanh(), nn.Dropout(), nn.Linear(16, 10, bias)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class TwoInputs(nn.Module):
    """Two inputs to attribute to, a third argument that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
        self.relu, self.last = nn.ReLU(), nn.Linear(4, 5)

    def forward(self, x: Tensor, y: Tensor | None = None, scale: Any = 1.0) -> Tensor:
        hidden = self.first(x) if y is None else self.first(x) + self.second(y)
        return self.last(self.relu(hidden * scale))


class Skip(nn.Module):
    """A residual connection through a module."""

    def __init__(self, addition: type[nn.Module]) -> None:
        super().__init__()
        self.linear, self.add, self.relu = nn.Linear(4, 4), addition(), nn.ReLU()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.add(self.linear(x), x)))


class Functional(nn.Module):
    """Normalisation, activations, pools, sums, products, concatenation and softmax that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.third = nn.Conv2d(6, 6, 2, padding="same")
        self.free = nn.Parameter(torch.randn(6, 12, 1, 1) / 4)
        self.last, self.out = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first((x - 0.3) / 1.7))
        a = self.second(h)
        b = F.max_pool2d(self.third(h + a), 3, 1, 1)
        h = torch.cat([a + h * 0.5, b.sigmoid() * h], 1)
        h = F.avg_pool2d(F.conv2d(h, self.free).relu(), 2).mean((2, 3))
        return F.softmax(self.out(torch.tanh(self.last(h))), 1)


def images(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)
