"""Graphs of 2,000 operations: nothing recurses from one operation to the next."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp.run.plans
from fastlrp import Explainer
from fastlrp.capture import structure as outputs
from fastlrp.capture.export import Captured
from fastlrp.capture.graph import Constant, Graph, Node, Value
from fastlrp.kinds.move import _for_one_sample
from fastlrp.plan.passes.fusion import fuse_sweeps
from fastlrp.plan.steps import BackwardStep, ForwardStep, SweepPart
from fastlrp.run.blocks import peak_bytes
from fastlrp.run.descent import Descent, Emission
from tests.fixtures import one_thread  # noqa: F401

LAYERS = 2000
aten = torch.ops.aten


class Deep(nn.Module):
    """Linear layers and ReLUs in turn, then many ReLUs in a row; written out as a graph without torch.export."""

    def __init__(self) -> None:
        super().__init__()
        rotation = torch.tensor([[0.96, 0.28], [-0.28, 0.96]], dtype=torch.float64)
        self.weights = nn.ParameterList([rotation.abs() / 1.24 for _ in range(LAYERS // 10)])

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = (x @ weight.T).relu()
        return x

    def graph(self) -> Graph:
        x = Value(0, "x", (None, 2), torch.float64)
        graph = Graph([], [x], [], x, {}, 1)

        def add(kind: str, operation: str, call: Any, *args: Any, **attributes: Any) -> None:
            y = graph.new_value(operation, (None, 2), torch.float64)
            x = graph.output
            y.producer = Node(kind, operation, call, (x, *args), {}, (x,), y, "", None, attributes)
            graph.nodes.append(y.producer)
            graph.output = y

        for i, weight in enumerate(self.weights):
            constant = Constant(f"weights.{i}", weight)
            add("linear", "linear", aten.linear.default, constant, weight=constant, bias=None)
            add("activation", "relu", aten.relu.default)
        while len(graph.nodes) < LAYERS:
            add("activation", "relu", aten.relu.default)
        graph.outputs = [graph.output]
        return graph


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    model = Deep()
    captured = Captured(model.graph(), outputs.flatten(torch.zeros(1), []), None)
    monkeypatch.setattr(fastlrp.run.plans, "capture", lambda *_: captured)
    assert sys.getrecursionlimit() < LAYERS
    return model


@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma", "gradient"])
def test_a_deep_model_is_explained(deep: nn.Module, composite: str) -> None:
    x = torch.rand(2, 2, dtype=torch.float64)
    explainer = Explainer(deep, composite)
    found = explainer(x, [0, 1], initial="one" if composite == "gradient" else "output")
    point = x.clone().requires_grad_()
    for k in range(2):
        (gradient,) = torch.autograd.grad(deep(point)[:, k].sum(), point)
        # Without biases and with positive numbers all of these rules are gradient times input.
        expected = gradient if composite == "gradient" else gradient * x
        torch.testing.assert_close(found[:, k], expected, rtol=5e-3, atol=1e-9)  # Epsilon, 200 times.
    assert "relu" in str(explainer.plan)


@pytest.mark.slow
def test_a_deep_model_is_verified(deep: nn.Module) -> None:
    report = Explainer(deep, "epsilon").verify(torch.rand(1, 2, dtype=torch.float64), [1])
    assert report.ok
    assert len(report.rows) == LAYERS


def test_a_way_down_in_ever_smaller_blocks() -> None:
    """Every step is a little larger than the one before, so that blocks of targets are cut again and again."""
    count = 100
    steps = [
        (BackwardStep(f"step {i}", None, lambda r: r, (i,), (), (i + 1,), (1 + i,), 1), (i,)) for i in range(count)
    ]
    assert peak_bytes(steps, {0: 1}, 1, count, 1, count) > 0
    got: list[int] = []
    emission = Emission(Value(0, "x", (None, 1), torch.float32), count, ())
    down = Descent([], lambda value, first, register, factors: got.extend(register.flatten().tolist()), 1, 1, count)
    registers = [torch.arange(count).view(1, count, 1), *[None] * count]
    down.descend([*steps, (emission, (count,))], 0, registers, 0, count)
    assert got == list(range(count))


def test_a_chain_of_sizes() -> None:
    x = Value(0, "x", (None, 3), torch.float64)
    size = Value(1, "size", (), None)
    size.depends = False
    size.producer = Node("scalar", "sym_size", lambda *_: 0, (x, 1), {}, (x,), size)
    for i in range(LAYERS):
        new = Value(i + 2, "sum", (), None)
        new.depends = False  # On the entries of the input: on its size alone.
        new.producer = Node("scalar", "add", lambda a, b: a + b, (size, 1), {}, (size,), new)
        size = new
    assert _for_one_sample((x, [size]), x) == (x, [LAYERS + 3])


def test_a_chain_of_caches_before_a_sweep() -> None:
    """Slots: 0 the layer's output, 1 its ReLU, 2 and 3 the pool, then the chain, then u and v."""
    chain = [
        ForwardStep("chain", None, lambda z: z, (0 if i == 0 else 3 + i,), (4 + i,), is_cache=True)
        for i in range(LAYERS)
    ]
    last = 3 + LAYERS
    steps = [
        ForwardStep("relu", None, torch.relu, (0,), (1,), is_cache=False, part=SweepPart("relu")),
        ForwardStep("pool", None, lambda a: (a, a), (1,), (2, 3), is_cache=False, part=SweepPart("pool", ([2],))),
        *chain,
        ForwardStep(
            "coefficients", None, lambda *_: (0, 0), (0, last, 1), (last + 1, last + 2), is_cache=True,
            part=SweepPart("coefficients", ("zplus", 1, 1e-6), (None, last, None, 1)),
        ),
    ]  # fmt: skip
    fused = fuse_sweeps(steps, frozenset({2, 3, last + 1, last + 2}), lambda *_: None)
    assert [step.outs for step in fused] == [*(step.outs for step in chain), (2, 3, last + 1, last + 2)]
