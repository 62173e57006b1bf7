"""Canonizers of the user's own: applied as Zennit applies them, and undone whatever they leave behind."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compat.zennit.both import agree, attribute, check, ours, same, seeded, state, theirs

rules = pytest.importorskip("zennit.rules")
from zennit.canonizers import (  # noqa: E402
    AttributeCanonizer,
    Canonizer,
    CompositeCanonizer,
    NamedMergeBatchNorm,
    SequentialMergeBatchNorm,
)
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


def unchanged(composite: Any, canonizer: Any, model: Any = None, x: Any = None) -> None:
    """Zennit's numbers, and the model as it was."""
    model, x = (_network(), _input()) if model is None else (model, x)
    before = state(model)
    found = ours.Gradient(model, composite(canonizers=[canonizer(model)]))(x, TARGET)
    same(before, state(model))
    check(found, attribute(theirs, model, composite(canonizers=[canonizer(model)]), x, TARGET))


def test_canonizer_that_does_not_undo_is_refused() -> None:
    with pytest.raises(RuntimeError, match="do not undo all that they do"):
        ours.Gradient(_network(), EpsilonPlus(canonizers=[Forgets()]))(_input())


def test_canonizer_that_holds_a_module() -> None:
    unchanged(EpsilonPlus, lambda model: Holds(model[4]))


class Replaces(Canonizer):
    """Works on modules that it was told of."""

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


def test_canonizer_that_goes_by_identity() -> None:
    unchanged(EpsilonPlus, lambda model: Replaces(model[2]))


def _closure(linear: Any) -> Any:
    return lambda name, module: {"forward": lambda x: 2 * F.linear(x, linear.weight)} if module is linear else None


def _of_the_module(linear: Any) -> Any:
    def attributes(name: str, module: Any) -> Any:
        return {"forward": lambda x, scale=2: scale * F.linear(x, module.weight)} if id(module) == id(linear) else None

    return attributes


def _bound(linear: Any) -> Any:
    def twice(self: Any, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.weight)

    return lambda name, module: {"forward": twice.__get__(module)} if module is linear else None


def _partial(linear: Any) -> Any:
    def times(factor: float, layer: Any, x: Tensor) -> Tensor:
        return factor * F.linear(x, layer.weight)

    return lambda name, module: {"forward": functools.partial(times, 2, linear)} if module is linear else None


def _global(linear: Any) -> Any:
    globals()["_LINEAR"] = linear
    return lambda name, module: {"forward": lambda x: 2 * F.linear(x, _LINEAR.weight)} if module is _LINEAR else None


_LINEAR: Any = None


@pytest.mark.parametrize("made", [_closure, _of_the_module, _bound, _partial, _global])
def test_attributes_for_a_module_found_by_identity(made: Any) -> None:
    """Once with merged batch norms, which the function must see in the copy of the model that it refers to."""
    unchanged(EpsilonPlus, lambda model: AttributeCanonizer(made(model[4])))
    both = lambda model: CompositeCanonizer([SequentialMergeBatchNorm(), AttributeCanonizer(made(model[0]))])  # noqa: E731
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4))
    unchanged(EpsilonPlus, both, seeded(*model), torch.randn(2, 8, dtype=torch.float64))


def test_the_module_found_by_a_global_is_another_one() -> None:
    """The same code, another value of the name: no explainer of the first may be taken for the second."""
    model = seeded(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))
    x = torch.randn(2, 5, dtype=torch.float64)
    for layer in (model[0], model[2], model[4]):
        unchanged(EpsilonPlus, lambda model, layer=layer: AttributeCanonizer(_global(layer)), model, x)


def test_named_batch_norms_and_attributes_that_were_there() -> None:
    class Scaled(nn.Linear):
        scale = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * super().forward(x)

    model = seeded(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), Scaled(6, 4))
    model[3].scale = 3.0
    x = torch.randn(2, 5, dtype=torch.float64)
    named = NamedMergeBatchNorm([(["0"], "1")])
    halved = AttributeCanonizer(lambda name, module: {"scale": 0.5} if isinstance(module, Scaled) else None)
    before, output = state(model), model(x)
    found = ours.Gradient(model, EpsilonPlus(canonizers=[named, halved]))(x, TARGET)
    same(before, state(model))
    assert torch.equal(model(x), output)
    check(found, attribute(theirs, model, EpsilonPlus(canonizers=[named, halved]), x, TARGET))


def test_function_among_the_attributes_refers_to_the_copy() -> None:
    """A copy of a module keeps its functions, and with them the layers that they call."""

    class Indirect(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
            self.body = lambda x: self.norm(self.first(x)).relu()
            self.steps = {"body": [self.body]}

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.steps["body"][0](x))

    model = seeded(Indirect())
    x = torch.randn(2, 5, dtype=torch.float64)
    unchanged(EpsilonPlus, lambda _: SequentialMergeBatchNorm(), model, x)


def test_method_that_refers_to_a_module_itself() -> None:
    """Past ``self``: by a name of the script around its class."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))

        def body(self, x: Tensor) -> Tensor:
            return parts[0](x)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.body(x)

    model = seeded(Outer())
    parts = [model[0].inner]
    x = torch.randn(2, 5, dtype=torch.float64)
    unchanged(EpsilonPlus, lambda _: SequentialMergeBatchNorm(), model, x)


def test_changed_attribute_of_a_module_is_noticed() -> None:
    model = seeded(nn.Linear(5, 6), nn.LeakyReLU(0.1), nn.Linear(6, 4))
    x = torch.randn(2, 5, dtype=torch.float64)
    attributor = ours.Gradient(model, EpsilonPlus())
    attributor(x, TARGET)
    model[1].negative_slope = 0.7
    check(attributor(x, TARGET), attribute(theirs, model, EpsilonPlus(), x, TARGET))


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


def _without_biases() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return seeded(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=0.1), nn.ReLU(), nn.Flatten(),
                      nn.Linear(96, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 4))  # fmt: skip


@pytest.mark.parametrize("canonized", [True, False])
def test_model_that_zennit_has_touched(canonized: bool) -> None:
    """Zennit 1.0.0 leaves attributes that hide parameters, biases that nothing computes with, other parameters."""
    make = lambda: EpsilonPlus(canonizers=[SequentialMergeBatchNorm()] if canonized else [])  # noqa: E731
    model, x = _without_biases(), _input()
    expected = attribute(theirs, _without_biases(), make(), x, TARGET)
    attribute(theirs, model, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]), x, TARGET)
    attributor = ours.Gradient(model, make())
    before = state(model)
    check(attributor(x, TARGET), expected)
    same(before, state(model))
    check(attributor(x, TARGET), expected)
    with torch.no_grad():
        model[0].weight.mul_(-1)
    check(attributor(x, TARGET), attribute(theirs, model, make(), x, TARGET))


@pytest.mark.parametrize("registered", [True, False])
def test_model_with_weights_that_canonizers_have_merged(registered: bool) -> None:
    """The merged weight of Zennit 1.0.0 is no parameter and has a graph."""
    composite = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])
    x = _input()
    expected = attribute(theirs, _without_biases(), composite, x, TARGET)
    model = _without_biases()
    if registered:
        composite.register(model)
    else:
        applied = SequentialMergeBatchNorm().apply(model)
    before = state(model)
    check(attribute(ours, model, None if registered else EpsilonPlus(), x, TARGET), expected)
    same(before, state(model))
    if registered:
        composite.remove()
    else:
        for canonizer in applied:
            canonizer.remove()
    plain = EpsilonPlus()
    check(attribute(ours, model, plain, x, TARGET), attribute(theirs, _without_biases(), plain, x, TARGET))


def test_frozen_batch_norm_of_torchvision() -> None:
    """Zennit 1.0.0 counts it as a batch norm, 0.5.1 does not."""
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d(6, eps=0.2)
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_(0, 0.2)
    model = seeded(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    for canonizers in ([], [SequentialMergeBatchNorm()]):
        agree(model, EpsilonPlus(canonizers=canonizers), _input(), TARGET)
