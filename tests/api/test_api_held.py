"""What modules hold beside modules, parameters and plain attributes is read by forward passes, and noticed too."""

from __future__ import annotations

import enum
import types

import numpy as np
import pytest
import torch
from torch import nn

from fastlrp import Explainer
from fastlrp.capture import held as holds
from fastlrp.capture.held import Holding, held, is_plain
from tests.api.models import relative_error

# Measured: 0.
TIGHT = 1e-12


class Sign(enum.Enum):
    PLUS = 1
    MINUS = 2


class Scaled:
    """A callable that is no module."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x):
        return x.relu() * self.factor


class Holder(nn.Module):
    factor = np.float32(1)

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.sign, self.times, self.steps, self.names = Sign.PLUS, np.float32(2), range(2), {"a"}
        self.array, self.act = np.array([1.0, 2.0, 3.0]), Scaled(1.0)
        self.config = types.SimpleNamespace(scale=1.0, inner=types.SimpleNamespace(flags=[1]), offset=torch.zeros(3))
        self.hidden, self.by_name = [nn.Linear(3, 3)], {"gate": nn.Tanh()}
        self.one = torch.tensor(1.0, dtype=torch.float64)
        self.double()
        self.hidden[0].double()

    def forward(self, x):
        h = self.act(self.inner(x))
        for _ in self.steps:
            h = h * 1.5
        h = self.last(h) * float(self.times) * float(self.factor)
        h = self.by_name["gate"](self.hidden[0](h)) + torch.from_numpy(self.array) * h
        h = h * self.config.scale * len(self.config.inner.flags) + self.config.offset
        return (-h if self.sign is Sign.MINUS else h * len(self.names)) * self.one


def holder() -> Holder:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Holder().eval()


def put(name, value):
    return lambda model: setattr(model, name, value)


def replaced_by_its_equal(model):
    model.one = torch.tensor(1.0, dtype=torch.float64)
    model.one.fill_(3.0)


@torch.no_grad()
def weight(model):
    model.hidden[0].weight.mul_(2)


CHANGES = {
    "enum": put("sign", Sign.MINUS), "number of NumPy": put("times", np.float32(3)), "range": put("steps", range(3)),
    "set": put("names", {"a", "b"}), "within a set": lambda model: model.names.add("c"),
    "array": put("array", np.array([2.0, 2.0, 5.0])), "within an array": lambda model: model.array.__imul__(2),
    "callable": put("act", Scaled(3.0)), "within a callable": lambda model: setattr(model.act, "factor", 4.0),
    "setting": lambda model: setattr(model.config, "scale", 9.0),
    "list in settings in settings": lambda model: model.config.inner.flags.append(1),
    "tensor in settings": lambda model: model.config.offset.add_(1), "settings": put("config", types.SimpleNamespace(
        scale=2.0, inner=types.SimpleNamespace(flags=[1]), offset=torch.ones(3))),
    "weight of a module in a list": weight,
    "module in a list": lambda model: model.hidden.__setitem__(0, nn.Linear(3, 3).double()),
    "module in a dict": lambda model: model.by_name.update(gate=nn.Sigmoid()),
    "attribute of a module in a list": lambda model: setattr(model.hidden[0], "forward", torch.relu),
    "over a class's own": put("factor", np.float32(2)), "tensor of one entry": replaced_by_its_equal,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_what_modules_hold(change):
    model, x = holder(), torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    explainer = Explainer(model, "gamma")
    before = explainer(x, "all", initial="one"), explainer.forward(x).scores
    change(model)
    assert relative_error(model(x).detach(), before[1]) > 1e-3, "the change has no effect: nothing is tested"
    assert relative_error(explainer.forward(x).scores, model(x).detach()) <= TIGHT
    assert relative_error(explainer(x, "all"), Explainer(model, "gamma")(x, "all")) <= TIGHT


def test_what_is_held_and_unchanged(counts):
    model, x = holder(), torch.randn(2, 4, dtype=torch.float64)
    explainer = Explainer(model)
    explainer(x, 0)
    for _ in range(3):
        model(x)
        model.notes, model.owner = [types.SimpleNamespace(by="me")], object()  # Nobody can have read them.
        explainer(x, 0)
    assert (counts.captured, counts.prepared) == (1, 1)


class Tallies(nn.Module):
    """A forward pass that keeps count in arrays of NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.act, self.scale = nn.Linear(4, 3).double(), Scaled(2.0), np.array([2.0])
        self.calls, self.act.seen = np.zeros(1), [np.zeros(2)]

    def forward(self, x):
        self.calls += 1
        self.act.seen[0] += x.shape[1]
        return self.act(self.last(x)) * float(self.scale[0])


def test_arrays_that_a_forward_pass_writes(counts):
    """They say nothing about what is computed; others beside them do."""
    model, x = Tallies().eval(), torch.randn(2, 4, dtype=torch.float64)
    explainer = Explainer(model)
    for _ in range(3):
        model(x)
        explainer(x, 0)
    assert (counts.captured, counts.prepared) == (1, 1)
    model.scale *= 3
    assert relative_error(explainer.forward(x).scores, model(x).detach()) <= TIGHT
    explainer(x, 0)
    assert counts.captured == 2


def test_containers_without_end_and_of_very_many_objects():
    model, x = holder(), torch.randn(2, 4, dtype=torch.float64)
    endless: list[object] = [1]
    endless.append(endless)
    model.other, model.data = types.SimpleNamespace(endless=endless), [object() for _ in range(5000)]
    assert not is_plain(endless)
    assert held(endless) == held(endless)
    explainer = Explainer(model)
    first = explainer(x, 0)
    model.data.append(object())
    model.names.add("d")
    assert relative_error(explainer(x, 0), 2 * first) <= 1e-2  # The output doubles; measured: 0.
    assert torch.equal(explainer(x, 0), Explainer(model)(x, 0))


def test_captum_interface_sees_inside_of_what_modules_hold():
    from fastlrp.compat.captum import LRP

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.config, self.array = nn.Linear(4, 3), types.SimpleNamespace(power=1), np.ones(3)

        def forward(self, x):
            return self.layer(x * self.config.power) + torch.from_numpy(self.array).to(x.dtype)

    model, x = Small().eval(), torch.rand(2, 4)
    LRP(model).attribute(x, 0)
    for change in (lambda: setattr(model.config, "power", 2), lambda: model.array.__imul__(3)):
        change()
        fresh = Small().eval()
        fresh.load_state_dict(model.state_dict())
        fresh.config, fresh.array = model.config, model.array
        assert torch.equal(LRP(model).attribute(x, 0), LRP(fresh).attribute(x, 0))


def replace_one(items):
    items[1] = torch.zeros(2)


def swap(items):
    items[0], items[1] = items[1], items[0]


@pytest.mark.parametrize("change", [replace_one, swap, lambda items: items.append(0), lambda items: items.pop()])
def test_a_flat_container_is_compared_without_a_copy(change, monkeypatch):
    """A copy of a list of 3000 tensors took 2.6 ms of each call."""
    items = [torch.zeros(2) for _ in range(4)]
    holding, nested = Holding(items), Holding({"a": [items[0]], "b": items[1]})
    nested.items["a"][0] = items[2]
    assert nested.changed()
    with monkeypatch.context() as patch:
        patch.setattr(holds, "held", lambda value: pytest.fail("a copy was made"))
        assert not holding.changed()
    change(items)
    assert holding.changed()


def test_what_is_equal_but_another_object_has_not_changed():
    items = {"a": 10**20, "b": object(), 3: 1.5}
    holding = Holding(items)
    items["a"] = int("1" + "0" * 20)
    assert not holding.changed()
    items[3] = 2.5
    assert holding.changed()
