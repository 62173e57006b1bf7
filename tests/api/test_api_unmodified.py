"""A capture leaves nothing in the user's model, whatever its forward pass writes."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from fastlrp import CaptureError, Explainer


class Block(nn.Module):
    shared = None
    seen: list = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 5)

    def forward(self, x):
        Block.shared, Block.added = x, x
        self.seen.append(x)
        self.inner.input = x
        return self.inner(x).relu()


class Net(nn.Module):
    """Keeps all sorts of things at each call."""

    def __init__(self, fixed=False, fails=False):
        super().__init__()
        self.block, self.last = Block(), nn.Linear(5, 3)
        self.calls, self.size, self.text, self.pair, self.output, self.none = 0, 7, "", (1, 2), torch.ones(2), None
        self.cache, self.history, self.recent, self.shapes = {"old": 1}, [1, 2], deque([1], 4), {1}
        self.nested, self.config = {"a": [[]]}, SimpleNamespace(name="config", parts=[])
        self.doomed = 3
        self.fixed, self.fails = fixed, fails
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        h = self.block(x)
        self.calls += 1
        self.size, self.text, self.pair = x.shape[0], f"{x.shape}", (x.shape[0], 2)
        self.output, self.none, self.new, self.new_list = h * 2, h, h, [h]
        self.cache["h"], self.cache["old"] = h, x.shape[0]
        self.history.append(h)
        self.history[0] = h
        self.recent.append(h)
        self.shapes.add(str(x.shape))
        self.nested["a"][0].append(h)
        self.nested["b"] = h
        self.config.h, self.config.size = h, [x.shape[0] * 2, h]
        self.config.parts.append(h)
        if hasattr(self, "doomed"):
            del self.doomed
        if self.fixed:
            h = h.view(2, 5)
        if self.fails and bool(h.sum() > 0):
            return h
        return self.last(h)


def contents(value):
    if isinstance(value, dict):
        return {key: contents(item) for key, item in value.items()}
    if isinstance(value, (list, deque, tuple)):
        return type(value), [contents(item) for item in value]
    if isinstance(value, SimpleNamespace):
        return contents(vars(value))
    return (
        sorted(value, key=repr) if isinstance(value, set) else (id(value) if isinstance(value, torch.Tensor) else value)
    )


def state(model):
    owners = [*model.modules(), Block, Net]
    return [{k: contents(v) for k, v in vars(o).items() if k != "__doc__"} for o in owners]


@pytest.mark.parametrize("kind", ["plain", "fixed", "fails"])
def test_a_capture_leaves_nothing(kind):
    torch.manual_seed(0)
    model = Net(**({} if kind == "plain" else {kind: True})).eval()
    x, before = torch.randn(2, 4), state(model)
    explainer = Explainer(model, "epsilon")
    if kind == "fails":
        with pytest.raises(CaptureError):
            explainer(x, 0)
    else:
        explainer(x, "all")
    assert state(model) == before
    kept = deque([1], 4)
    assert model.recent == kept
    assert model.recent.maxlen == 4
    model(x)
    assert type(model.output) is type(model.cache["h"]) is torch.Tensor
    assert not isinstance(model.new, FakeTensor)
    assert (model.size, model.calls) == (2, 1)
    if kind != "fails":
        again = explainer.plan
        explainer(x, 0)
        assert explainer.plan is again
    Block.seen.clear()
    del Block.added
    Block.shared = None


def test_what_forward_kept_before_stays():
    """A cache that real calls filled holds their tensors after a capture too."""
    torch.manual_seed(0)
    model = Net().eval()
    x = torch.randn(2, 4)
    with torch.no_grad():
        model(x)
    before = state(model)
    Explainer(model, "zplus")(x, "all")
    assert state(model) == before
    Block.seen.clear()
    del Block.added
    Block.shared = None
