"""Epsilon 0 in the limit: gradient times input, where nothing is divided, cached or multiplied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import Stabilizer, composites, rules
from tests.transformers.oracle import act, relevance


class Residual(nn.Module):
    """Convolutions, batch norms that fold and one that stands alone, pools, a mean, sums, numbers, moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.alone = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.last = nn.Linear(8, 40)
        for norm in (self.norm, self.alone):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = F.relu(self.alone(F.avg_pool2d(h, 2) * 0.5 + h[:, :, ::2, ::2]))
        h = F.max_pool2d(h - 0.7 * self.norm(self.second(h)), 2)
        return self.last(torch.cat([h.mean((2, 3)), -h.flatten(2).sum(-1) / 3], 1))


@pytest.mark.parametrize("count", [3, 40])
def test_a_relu_network_is_gradient_times_input(count):
    """From 8 targets on for alive neurons only. Worst measured: 1e-14."""
    torch.manual_seed(0)
    model = Residual().double().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, "attnlrp")
    targets = list(range(count))
    torch.testing.assert_close(explainer(x, targets), relevance(model, x, targets), rtol=1e-9, atol=1e-11)
    assert explainer.verify(x, targets[:3]).ok
    assert explainer.plan.check() is None


def test_a_chain_of_linear_layers_caches_nothing():
    """The plan neither stores nor multiplies coefficients below the first layer from the top, where R arrives."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 7), nn.Flatten(), nn.Linear(7, 3)).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    plan = fastlrp.Explainer(model, "attnlrp", example_inputs=x).plan
    linear = [step for step in plan.program.backward if "linear" in step.name]
    assert [len(step.slots) for step in linear] == [1, 0, 0]


def test_an_output_of_exactly_zero_passes():
    """``y = x_0 - x_1 = 0`` at (2, 2), then ``2 y + x_0``: c of y is 2, so that x has (2 + 1, -2) times (2, 2)."""

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.difference = nn.Linear(2, 1, bias=False).double()
            self.difference.weight.data = torch.tensor([[1.0, -1.0]]).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.difference(x) * 2 + x[:, :1]

    x = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
    assert fastlrp.explain(Zero(), x, [0], "attnlrp").flatten().tolist() == [6.0, -4.0]
    assert fastlrp.explain(Zero(), x, [0], "lrp0").flatten().tolist() == [2.0, 0.0]
    report = fastlrp.Explainer(Zero(), "attnlrp").verify(x, [0])
    assert report.ok
    assert (report.max_error, report.end_to_end, report.kept["unexplained"]) == (0.0, 0.0, 0.0)


def test_verify_of_zeros_in_attention():
    """A projection that begins at zero, as LoRA's do, queries without a bias at a zero row, and a head that is zero."""

    class Zeros(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.down, self.up, self.last = (
                nn.Linear(4, 12, bias=False), nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False), nn.Linear(4, 3)
            )  # fmt: skip
            self.up.weight.data.zero_()
            self.qkv.weight.data[8:10].zero_()

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.last((o + self.up(self.down(x)) + F.layer_norm(x, (4,))).mean(1))

    torch.manual_seed(0)
    model, x = Zeros().double(), torch.randn(2, 5, 4, dtype=torch.float64)
    x[:, 2] = 0
    explainer = fastlrp.Explainer(model, "attnlrp")
    report = explainer.verify(x, [0, 2])
    assert report.max_error < 1e-13
    assert report.end_to_end < 1e-13
    assert abs(report.kept["unexplained"]) < 1e-13


ACTIVATIONS = [
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Tanh(),
    nn.ReLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.ELU(),
    nn.PReLU(4),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation):
    """``c_u = c_a act(u) / u`` and ``act'(0)`` at 0."""
    torch.manual_seed(0)
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(first, activation, last).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        first.weight[1], first.bias[1] = 0, 0  # u_1 is 0.
        first.bias[2] = -(first.weight[2] @ x[0])  # u_2 of the first sample is 0, or a rounding off it.
    expected = relevance(lambda x: last(act(first(x), activation)), x, [0, 1])
    torch.testing.assert_close(fastlrp.explain(model, x, [0, 1], "attnlrp"), expected, rtol=1e-9, atol=1e-11)


class Composed(nn.Module):
    """Activations written out, among them those of GPT-2 and BERT."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.first, self.last = form, nn.Linear(3, 4), nn.Linear(4, 2)

    def act(self, x: Tensor) -> Tensor:
        return {
            "gelu_new": lambda: 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0)))),
            "gelu_python": lambda: x * 0.5 * (1.0 + torch.erf(x / 1.4142135623731)),
            "quick_gelu": lambda: x * torch.sigmoid(1.702 * x),
            "mish": lambda: x * torch.tanh(F.softplus(x)),
            "hard_swish": lambda: x * F.relu6(x + 3) / 6,
        }[self.form]()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


@pytest.mark.parametrize("form", ["gelu_new", "gelu_python", "quick_gelu", "mish", "hard_swish"])
def test_activations_written_out(form):
    """All relevance goes to ``u``, in other composites too."""
    torch.manual_seed(0)
    model = Composed(form).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    expected = relevance(lambda x: model.last(act(model.first(x), model.act)), x, [0, 1])
    explainer = fastlrp.Explainer(model, "attnlrp")
    torch.testing.assert_close(explainer(x, [0, 1]), expected, rtol=1e-9, atol=1e-11)
    report = explainer.verify(x, [0])
    assert report.ok, str(report)
    passes = [row for row in report.rows if row.rule.startswith("Pass")]
    assert [row.sent for row in passes] == pytest.approx([row.arrived for row in passes])
    assert fastlrp.Explainer(model, "gradient").verify(x, [0]).ok


def test_two_products_of_different_values_stay_products():
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return (torch.tanh(a) * b).sum(1, keepdim=True)

    x = torch.randn(1, 6, dtype=torch.float64)
    plan = fastlrp.Explainer(Gated(), "attnlrp", example_inputs=x).plan
    assert "mul" in [node.kind for node in plan.graph.nodes]


def test_stabilizer():
    assert repr(Stabilizer.limit()) == "Stabilizer.limit()"
    assert rules.Epsilon(Stabilizer.limit()) != rules.Epsilon(0.0)
    z = torch.tensor([2.0, 0.0])
    assert Stabilizer.limit().reciprocal(z).tolist() == [0.5, 0.0]
    with pytest.raises(ValueError, match=r"use Stabilizer\.limit"):
        Stabilizer(0.1, in_limit=True)
    assert composites.attnlrp(epsilon=0.0).entries[0][1] == rules.Epsilon(Stabilizer.limit())
    assert composites.attnlrp(epsilon=0.1).entries[0][1] == rules.Epsilon(Stabilizer(0.1))
