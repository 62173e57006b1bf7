"""Recurrent layers are traced by the shapes of their results: those that the steps give, at the cost of none."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

import fastlrp
from fastlrp.capture.trace.quick_shapes import shapes_by_definition

LAYERS = [
    (nn.LSTM, {}), (nn.LSTM, {"proj_size": 2, "bias": False}), (nn.GRU, {}), (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
]  # fmt: skip


def leaves(results: object) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(results) if isinstance(t, Tensor)]


@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_shapes_are_those_that_the_steps_give(kind: type[nn.Module], options: dict[str, object]) -> None:
    for batch_first, bidirectional in product((False, True), repeat=2):
        layer = kind(3, 4, num_layers=2, batch_first=batch_first, bidirectional=bidirectional, **options).eval()
        with FakeTensorMode(allow_non_fake_inputs=True), enable_python_dispatcher(), torch.no_grad():
            x = torch.empty(2, 3, 3)
            with shapes_by_definition():
                found = leaves(layer(x))
            expected = leaves(layer(x))
        assert [(t.shape, t.stride(), t.dtype) for t in found] == [(t.shape, t.stride(), t.dtype) for t in expected]


def test_a_long_sequence_is_captured_without_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._decomp import decompositions

    def step(*args: object) -> None:
        raise AssertionError("a step was traced")

    monkeypatch.setattr(decompositions, "lstm_cell", step)
    monkeypatch.setattr(decompositions, "gru_cell", step)
    for kind in (nn.LSTM, nn.GRU):
        explainer = fastlrp.Explainer(kind(3, 4, batch_first=True).eval(), "attnlrp", output=lambda out: out[0][:, -1])
        assert explainer(torch.randn(1, 200, 3), [0]).shape == (1, 1, 200, 3)


def test_real_tensors_are_computed_as_ever() -> None:
    layer = nn.LSTM(3, 4).eval()
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        expected = layer(x)[0]
        with shapes_by_definition(), enable_python_dispatcher():
            found = layer(x)[0]
    torch.testing.assert_close(found, expected)
