"""Recurrent layers under their rule: other people's numbers, the textbook, autograd with gates held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, rules
from tests import goldens
from tests.models.recurrent import LAYERS, Reader, by_rule, check, sequences


@pytest.mark.each_value
@pytest.mark.parametrize("bias_factor", [0.0, 1.0])
@pytest.mark.parametrize("sample", [0, 1])
def test_equals_the_reference_code_of_arras(sample: int, bias_factor: float) -> None:
    data = {key: goldens.double(value) for key, value in goldens.load("arras_lstm_bidi.npz").items()}
    lstm = nn.LSTM(60, 60, bidirectional=True, batch_first=True).double().eval()
    lstm.load_state_dict({key.removeprefix("state/lstm."): t for key, t in data.items() if key.startswith("state/")})

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = lstm

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.lstm(x)
            return torch.cat([y[:, -1, :60], y[:, 0, 60:]], 1)

    x, weight = data[f"x_{sample}"].unsqueeze(0), torch.cat([data["why_left"], data["why_right"]], 1)
    h = Ends()(x)[0]  # The classifier by hand: its bias_factor counts the units of both directions.
    score = weight @ h
    assert torch.allclose(score, data[f"scores_{sample}"], atol=1e-12)
    slack = 0.001 * torch.where(score >= 0, 1.0, -1.0)
    R = (weight * h + bias_factor * slack.unsqueeze(1) / 120) * (score / (score + slack)).unsqueeze(1)
    rule: rules.Rule = rules.Recurrent(stabilizer=0.001, bias_factor=bias_factor)
    got = fastlrp.Explainer(Ends(), by_rule(rule))(x, R.unsqueeze(0))
    expected = data[f"relevance/eps0.001_bias{bias_factor}_{sample}"]
    assert (got.reshape(expected.shape) - expected).abs().max() <= 1e-9


def test_one_step_of_an_lstm_by_hand() -> None:
    """tanh(g) = g' and all gates 1/2: c = g'/2 is all of R; x_1 gets 2/3, x_2 1/3 of it at z = 2 * 1 + 0.5 * 2 + 0."""
    layer = nn.LSTM(2, 1, batch_first=True, bias=False).double().eval()
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.tensor([[0.0, 0], [0, 0], [2, 0.5], [0, 0]]))

    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0][:, 0]  # type: ignore[no-any-return]

    x = torch.tensor([[[1.0, 2.0]]]).double()
    h = Score()(x).item()
    got = fastlrp.Explainer(Score(), composites.lrp0())(x, "all").flatten()
    assert torch.allclose(got, h * torch.tensor([2 / 3, 1 / 3]).double(), atol=1e-14)


WAYS = [(name, *way) for name in LAYERS for way in (("signal", False), ("uniform", True), ("signal", True))]


@pytest.mark.parametrize(
    ("name", "gates", "batch_first"),
    [
        way if way[1:] == ("signal", False) or (way[0] in ("lstm", "gru") and way[1] == "uniform")
        else pytest.param(*way, marks=pytest.mark.full)
        for way in WAYS
    ],
)  # fmt: skip
def test_equals_the_textbook(name: str, gates: Any, batch_first: bool) -> None:
    layer = LAYERS[name](4, 6, 2, bidirectional=True, batch_first=batch_first, dropout=0.5)
    check(Reader(layer, 12), sequences(), rules.Recurrent(gates, 1e-3))


@pytest.mark.parametrize(
    ("name", "read"), [*((name, "both") for name in LAYERS), ("lstm", "mean"), ("gru", "hidden"), ("lstm", "hidden")]
)
def test_states_read_as_outputs(name: str, read: str) -> None:
    layer = LAYERS[name](4, 6, 2, batch_first=True)
    check(
        Reader(layer, {"mean": 6, "hidden": 12, "both": 18}[read], read), sequences(), rules.Recurrent(stabilizer=1e-3)
    )


@pytest.mark.parametrize(
    ("batch_first", "read", "gates"), [(True, "last", "uniform"), (True, "both", "signal"), (False, "both", "uniform")]
)
def test_projections(batch_first: bool, read: str, gates: Any) -> None:
    layer = nn.LSTM(4, 6, bidirectional=True, batch_first=batch_first, proj_size=2, bias=False)
    check(Reader(layer, 4 if read == "last" else 12, read), sequences(), rules.Recurrent(gates, 1e-3))


@pytest.mark.parametrize(("name", "bias_factor"), [*((name, 1.0) for name in (*LAYERS, "projected")), ("lstm", 0.5)])
def test_bias_factor(name: str, bias_factor: float) -> None:
    make = LAYERS.get(name, lambda *a, **k: nn.LSTM(*a, proj_size=3, **k))
    layer = make(4, 6, 1, bidirectional=True, batch_first=True)
    size = 3 if name == "projected" else 6
    model = Reader(layer, 4 * size if name not in ("lstm", "projected") else 2 * size + size + 6, "both")
    model.head = nn.Linear(model.head.in_features if name in ("lstm", "projected") else 4 * size, 3)
    check(model, sequences(), rules.Recurrent(stabilizer=1e-3, bias_factor=bias_factor))


def test_bias_factor_one_conserves_relevance() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(4, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0][:, 0]  # type: ignore[no-any-return]

    model, x = First().double().eval(), sequences(2, 1, 4)
    found = fastlrp.Explainer(model, by_rule(rules.Recurrent(stabilizer=0.01, bias_factor=1.0))).verify(x, "all")
    # The spread shares of the first states, which are zero, are all that is kept.
    assert found.kept["stabilizer"] == pytest.approx(0, abs=1e-15)
    assert found.score == pytest.approx(found.relevance + found.kept["bias"])


def detached(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    """The layer as a loop whose gates and activations' ratios are constants: input times gradient is LRP then."""
    W, U = layer.weight_ih_l0, layer.weight_hh_l0
    b, d = layer.bias_ih_l0, layer.bias_hh_l0
    h = x.new_zeros(len(x), U.shape[1])
    c = torch.zeros_like(h)

    def kept(act: Any, z: Tensor) -> Tensor:
        return z * (act(z) / z).detach()

    for t in range(x.shape[1]):
        of_x, of_h = x[:, t] @ W.T + b, h @ U.T + d
        if name == "lstm":
            i, f, g, o = (of_x + of_h).chunk(4, 1)
            c = f.sigmoid().detach() * c + i.sigmoid().detach() * kept(torch.tanh, g)
            h = o.sigmoid().detach() * kept(torch.tanh, c)
        elif name == "gru":
            (xr, xz, xn), (hr, hz, hn) = of_x.chunk(3, 1), of_h.chunk(3, 1)
            z = (xz + hz).sigmoid().detach()
            h = (1 - z) * kept(torch.tanh, xn + (xr + hr).sigmoid().detach() * hn) + z * h
        else:
            h = kept(torch.tanh if name == "rnn" else torch.relu, of_x + of_h)
    return h


@pytest.mark.each_value
@pytest.mark.parametrize("epsilon", [0.0, "limit"])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_autograd_with_gates_detached(name: str, epsilon: Any) -> None:
    model = Reader(LAYERS[name](4, 6, batch_first=True), 6).double().eval()
    x = sequences().requires_grad_()
    scores = model.head(detached(name, model.layer, x))
    st = fastlrp.Stabilizer.limit() if epsilon == "limit" else epsilon
    got = fastlrp.Explainer(model, by_rule(rules.Recurrent(stabilizer=st), st))(x.detach(), "all")
    for k in range(3):
        (gradient,) = torch.autograd.grad(scores[:, k].sum(), x, retain_graph=True)
        assert torch.allclose(got[:, k], x.detach() * gradient, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_equals_autograd(name: str) -> None:
    model = Reader(LAYERS[name](4, 6, bidirectional=True, batch_first=True), 12).double().eval()
    x = sequences().requires_grad_()
    got = fastlrp.Explainer(model, composites.gradient())(x.detach(), [1], initial="one")
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert torch.allclose(got[:, 0], gradient, atol=1e-12)


def test_rule_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'signal' or 'uniform'"):
        rules.Recurrent("half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1"):
        rules.Recurrent(bias_factor=2.0)
    with pytest.raises(ValueError, match="gates='signal'"):
        rules.Recurrent("uniform", bias_factor=1.0)
    model = Reader(nn.LSTM(4, 6, batch_first=True), 6).eval()
    rule = rules.Recurrent(stabilizer=fastlrp.Stabilizer(0.1, relative="sample"))
    with pytest.raises(TypeError, match="relative"):
        fastlrp.Explainer(model, by_rule(rule))(torch.randn(2, 5, 4), [0])


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_what_uniform_gates_let_grow_is_told(name: str) -> None:
    """In float64 the largest of 200 steps is beyond 1e38, by the definition: the textbook has the same for 50."""
    torch.manual_seed(1)
    model, x = Reader(getattr(nn, name)(8, 64, batch_first=True), 64, "last").eval(), torch.randn(2, 200, 8)
    rule = by_rule(rules.Recurrent("uniform"))
    with pytest.raises(fastlrp.NotFiniteError, match=r"divided by sums of gates that come near zero: use stabilizer"):
        fastlrp.explain(model, x, [0], rule)
    tamed = fastlrp.explain(model, x, [0], by_rule(rules.Recurrent("uniform", 0.01), 0.01))
    assert float(tamed.abs().max()) < 1
    model, x = model.double(), x.double()
    assert float(fastlrp.explain(model, x, [0], rule).abs().max()) > 1e38
    assert fastlrp.Explainer(model, rule).verify(x[:, :50], [0]).ok
