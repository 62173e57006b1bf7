"""Recurrent layers in models: first states given, sequences folded into the batch, loops over cells, ids, lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, rules
from tests.models.recurrent import LAYERS, LastValid, Reader, by_rule, check, sequences


class Given(nn.Module):
    """First states from the input: a linear layer's, and a parameter for the memory."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer, self.start = LAYERS[name](4, 6, batch_first=True), nn.Linear(4, 6)
        self.memory = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x[:, 0]).tanh().unsqueeze(0)
        c = self.memory.expand(1, x.shape[0], 6).contiguous()
        y, _ = self.layer(x[:, 1:], (h, c) if isinstance(self.layer, nn.LSTM) else h)
        return y[:, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "gates"), [("lstm", "signal"), ("lstm", "uniform"), ("gru", "signal"), ("rnn", "signal")]
)
def test_first_states_given(name: str, gates: Any) -> None:
    check(Given(name), sequences(), rules.Recurrent(gates, 1e-3))


class Windows(nn.Module):
    """Several sequences of each sample, folded into the batch; the first states of some are those of others' ends."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer = LAYERS[name](4, 6, bidirectional=True, batch_first=True)
        self.after = LAYERS[name](4, 6, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, time, channels = x.shape
        folded = x.reshape(batch * count, time, channels)
        _, last = self.layer(folded)
        y, _ = self.after(folded, last)
        return self.head(y[:, -1].reshape(batch, count * 12))  # type: ignore[no-any-return]


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize(("name", "bias_factor"), [("lstm", 0.0), ("gru", 0.0), ("lstm", 1.0)])
def test_sequences_folded_into_the_batch(name: str, bias_factor: float) -> None:
    model, x = Windows(name), sequences(3, 2, 5, 4)
    check(model, x, rules.Recurrent(stabilizer=1e-3, bias_factor=bias_factor))
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(point)[:, 1].sum(), point)
    got = fastlrp.Explainer(model, composites.gradient())(x, [1], initial="one")
    assert torch.allclose(got[:, 0], gradient, atol=1e-12)


class Cells(nn.Module):
    """A loop over cells, as long as the sequence."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)  # type: ignore[no-any-return]


class ByHand(nn.Module):
    """An LSTM written out with linear layers and products of gate and signal."""

    def __init__(self, layer: nn.LSTM, head: nn.Linear) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        h = c = torch.zeros_like(x[:, 0, :1]).expand(-1, 6)
        weight, bias = torch.cat([layer.weight_ih_l0, layer.weight_hh_l0], 1), layer.bias_ih_l0 + layer.bias_hh_l0
        for t in range(x.shape[1]):
            z = nn.functional.linear(torch.cat([x[:, t], h], 1), weight, bias)
            i, f, g, o = z.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", LAYERS)
def test_loops_over_cells_equal_the_layer(name: str) -> None:
    layer = LAYERS[name](4, 6, batch_first=True)
    kinds = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}
    cell = kinds[name](4, 6) if name in kinds else nn.RNNCell(4, 6, nonlinearity="relu" if name == "relu" else "tanh")
    model = Reader(layer, 6).double().eval()
    loop = Cells(cell).double().eval()
    cell.load_state_dict({key.removesuffix("_l0"): t for key, t in layer.state_dict().items()})
    loop.head = model.head
    composite, x = by_rule(rules.Recurrent(stabilizer=1e-3)), sequences()
    expected = fastlrp.Explainer(model, composite)(x, "all")
    assert torch.allclose(fastlrp.Explainer(loop, composite)(x, "all"), expected, atol=1e-13)
    if name == "lstm":
        hand = ByHand(layer, model.head)
        assert torch.allclose(fastlrp.Explainer(hand, composite)(x, "all"), expected, atol=1e-13)


def test_ids_embedding_lstm_and_classifier() -> None:
    model = Reader(nn.LSTM(8, 6, bidirectional=True, batch_first=True), 12, "last", nn.Embedding(20, 8)).double().eval()
    ids = torch.randint(20, (3, 7))
    explainer = fastlrp.Explainer(model, "epsilon")
    assert explainer.verify(ids, "all").ok
    got = explainer(ids, "all")
    assert got.shape == (3, 3, 7)
    for k in range(3):
        assert torch.allclose(explainer(ids, [k])[:, 0], got[:, k], atol=1e-14)
    for b in range(3):
        assert torch.allclose(explainer(ids[b : b + 1], "all")[0], got[b], atol=1e-14)


@pytest.mark.each_value
@pytest.mark.parametrize("size", [(2, 1, 4), (0, 5, 4), (1, 5, 4)])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_short_and_empty(name: str, size: tuple[int, ...]) -> None:
    model = Reader(LAYERS[name](4, 6, bidirectional=True, batch_first=True), 12).double().eval()
    explainer = fastlrp.Explainer(model, "epsilon")
    assert explainer(sequences(*size), "all").shape == (size[0], 3, *size[1:])


def test_lengths_by_gather() -> None:
    """Padding behind the last valid step gets nothing; what is before it is as if it ended there."""
    model, x = LastValid(nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)).double().eval(), sequences()
    explainer = fastlrp.Explainer(model, "epsilon")
    got = explainer((x, torch.tensor([5, 2, 3])), "all")
    got = got[0] if isinstance(got, tuple) else got
    assert not got[1, :, 2:].any()
    alone = explainer((x[1:2, :2], torch.tensor([2])), "all")
    alone = alone[0] if isinstance(alone, tuple) else alone
    assert torch.allclose(alone[0], got[1, :, :2], atol=1e-14)


def test_presets_and_new_weights() -> None:
    model, x = Reader(nn.LSTM(4, 6, batch_first=True), 6).double().eval(), sequences()
    for preset in ("epsilon_plus", "attnlrp", "cp_lrp", "lrp0"):
        assert fastlrp.Explainer(model, preset).verify(x, "all").ok, preset
    explainer = fastlrp.Explainer(model, "epsilon")
    before = explainer(x, "all")
    assert "Recurrent" in str(explainer.plan)
    model.layer.flatten_parameters()
    with torch.no_grad():
        model.layer.weight_hh_l0.mul_(2)
    after = explainer(x, "all")
    assert not torch.allclose(before, after)
    assert torch.equal(after, fastlrp.Explainer(model, "epsilon")(x, "all"))


def test_layer_relevance_is_that_of_the_output() -> None:
    model, x = Reader(nn.LSTM(4, 6, batch_first=True), 6, "both"), sequences()
    model.head = nn.Linear(18, 3)
    found = fastlrp.Explainer(model.double().eval(), "epsilon")(x, "all", layers=["layer"])
    assert found["layer"].shape == (3, 3, 5, 6)


def test_dropout_in_training_mode_is_refused() -> None:
    model = Reader(nn.LSTM(4, 6, 2, batch_first=True, dropout=0.5), 6).train()
    with pytest.raises(fastlrp.CaptureError, match="eval"):
        fastlrp.Explainer(model, "epsilon")(torch.randn(2, 5, 4), [0])
