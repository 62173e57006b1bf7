"""Canonizers of the user's own: applied as Zennit applies them, and refused where a copy of the model cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compat.zennit.both import agree, ours, same, seeded, state

rules = pytest.importorskip("zennit.rules")
from zennit.canonizers import Canonizer, SequentialMergeBatchNorm  # noqa: E402
from zennit.composites import EpsilonPlus  # noqa: E402
from zennit.core import Composite  # noqa: E402

TARGET = torch.eye(4, dtype=torch.float64)[[1, 3]]


def _network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return seeded(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))


def _input() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Forgets(Canonizer):
    """Does not undo what it does."""

    def apply(self, root_module: nn.Module) -> list[Any]:
        root_module[4].bias.data = root_module[4].bias.data + 1
        return [self]

    def register(self) -> None:
        pass

    def remove(self) -> None:
        pass


class Holds(Canonizer):
    """Works on a module of the user's model, whatever it is applied to."""

    def __init__(self, held: nn.Linear) -> None:
        self.held = held

    def apply(self, root_module: nn.Module) -> list[Any]:
        self.before = self.held.bias.data
        self.held.bias.data = self.held.bias.data + 1
        return [self]

    def register(self) -> None:
        pass

    def remove(self) -> None:
        self.held.bias.data = self.before


def test_canonizer_that_does_not_undo_is_refused() -> None:
    with pytest.raises(RuntimeError, match="do not undo all that they do"):
        ours.Gradient(_network(), EpsilonPlus(canonizers=[Forgets()]))(_input())


def test_canonizer_that_holds_a_module_is_refused() -> None:
    model = _network()
    before = state(model)
    with pytest.raises(RuntimeError, match="changed the model although they were applied to a copy of it"):
        ours.Gradient(model, EpsilonPlus(canonizers=[Holds(model[4])]))(_input())
    same(before, state(model))


class Replaces(Canonizer):
    """Works on modules that it was told of: finds none in a copy."""

    def __init__(self, special: nn.Module) -> None:
        self.special, self.undo = special, []

    def apply(self, root_module: nn.Module) -> list[Any]:
        for name, child in root_module.named_children():
            if child is self.special:
                setattr(root_module, name, nn.Tanh())
                self.undo.append((root_module, name, child))
        return [self]

    def register(self) -> None:
        pass

    def remove(self) -> None:
        for root, name, child in self.undo:
            setattr(root, name, child)
        self.undo.clear()


def test_canonizer_that_goes_by_identity_is_refused() -> None:
    model = _network()
    before = state(model)
    with pytest.raises(RuntimeError, match="something else of a copy of the model, at 2: they must find modules by"):
        ours.Gradient(model, EpsilonPlus(canonizers=[Replaces(model[2])]))(_input())
    same(before, state(model))


def test_failing_canonizer_leaves_the_model_as_it_was() -> None:
    class Fails(Canonizer):
        def apply(self, root_module: nn.Module) -> list[Any]:
            raise KeyError("no such layer")

        def register(self) -> None:
            pass

        def remove(self) -> None:
            pass

    model = _network()
    before = state(model)
    with pytest.raises(KeyError, match="no such layer"):
        ours.Gradient(model, EpsilonPlus(canonizers=[SequentialMergeBatchNorm(), Fails()]))(_input())
    same(before, state(model))


def test_map_that_counts_on_what_the_canonizers_make() -> None:
    class Marks(Canonizer):
        def apply(self, root_module: nn.Module) -> list[Any]:
            root_module[4].special = True
            self.module = root_module[4]
            return [self]

        def register(self) -> None:
            pass

        def remove(self) -> None:
            del self.module.special

    def module_map(context: Any, name: str, module: nn.Module) -> Any:
        if isinstance(module, nn.Linear):
            assert module.special  # type: ignore[truthy-bool]
            return rules.Epsilon(0.1)
        return None

    model, x, composite = _network(), _input(), Composite(module_map, [Marks()])
    assert agree(model, composite, x, TARGET)["4"] == ["Epsilon(epsilon=0.1, zero_bias=False)"]
