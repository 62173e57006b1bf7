"""Contributions of parts of the input to every neuron: they add up to the activation, and equal the way down."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, groups, rules
from tests.transformers.oracle import transformer


def network(bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, bias=bias), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4, bias=bias),
    ).double().eval()  # fmt: skip


def test_by_hand():
    """h = relu(x1 + 2 x2, x1 - 3 x2), y = h1 - h2 at x = (3, 0.5): h = (4, 1.5), y = 2.5."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [1.0, -3.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([[3.0, 0.5]], dtype=torch.float64)
    with fastlrp.Explainer(model, composites.lrp0()).forward(x) as record:
        found = record.contributions(groups.features([0, 1]))
        torch.testing.assert_close(found["0"][0].tolist(), [[3.0, 3.0], [1.0, -1.5]])
        torch.testing.assert_close(found["1"][0].tolist(), [[3.0, 3.0], [1.0, -1.5]])
        torch.testing.assert_close(found["2"][0].tolist(), [[0.0], [2.5]])
        readout = record.contributions(groups.features([0, 1]), ["1"], readout=torch.tensor([[2.0, 1.0]]))
        assert list(readout) == ["1"]
        torch.testing.assert_close(readout["1"][0].tolist(), [[9.0], [0.5]])
        torch.testing.assert_close(readout.kept["1"].tolist(), [[0.0]])


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus"])
def test_parts_add_up_without_biases(composite):
    """Epsilon 1e-6 keeps less than a millionth of activations of this size; z+ passes on all of what is positive."""
    model, x = network(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with fastlrp.Explainer(model, composite).forward(x) as record:
        found = record.contributions(groups.patches(4))
        layer = model[:2](x)
        assert found["1"].shape == (2, 4, *layer.shape[1:])
        torch.testing.assert_close(found["1"].sum(1), layer, rtol=1e-4, atol=1e-4)
        for name in ("4", "7", "output"):
            expected = model[: 8 if name == "output" else int(name) + 1](x)
            torch.testing.assert_close(found[name].sum(1) + found.kept[name], expected)
            assert float(found.kept[name].abs().max()) < 1e-4 or composite == "epsilon_plus"


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "alpha_beta", "gradient"])
def test_equal_the_way_down_from_that_layer(composite):
    """A layer's contributions are relevance of the network that ends there, started with each activation."""
    model, x = network(bias=True), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, composite)
    with explainer.forward(x) as record:
        found = record.contributions(groups.patches(4), ["4"])["4"]
    head = nn.Sequential(*model[:5], nn.Flatten()).eval()
    down = fastlrp.Explainer(head, composite)(x, "all", groups=groups.patches(4), direction="down")
    torch.testing.assert_close(found.flatten(2), down.transpose(1, 2), rtol=1e-9, atol=1e-12)


def test_residual_stream_of_a_transformer():
    model, x = transformer(False, False, True), torch.randn(2, 6, 16, dtype=torch.float64)
    with fastlrp.Explainer(model, composites.attnlrp(epsilon=0.0)).forward(x) as record:
        found = record.contributions("tokens", ["blocks.0", "blocks.1"])
        expected = model.blocks[0](x)
        torch.testing.assert_close(found["blocks.0"].sum(1) + found.kept["blocks.0"], expected)
        later = torch.ones(6, 6, dtype=torch.bool).triu(1)  # Causal: a token brings nothing to earlier positions.
        assert float(found["blocks.1"][:, later.t()].abs().max()) == 0.0
        probe = torch.randn(3, 16, dtype=torch.float64)
        read = record.contributions("tokens", "blocks.1", readout=probe)["blocks.1"]
        torch.testing.assert_close(read, found["blocks.1"] @ probe.t())


def test_max_memory_changes_nothing():
    model, x = network(), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    one, many = (
        fastlrp.Explainer(model, "epsilon", max_memory=budget).forward(x).contributions(groups.patches(2), ["4"])["4"]
        for budget in ("400KB", None)
    )
    torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-15)


class Unread(nn.Module):
    """``h = W x`` with W = ((1, 2), (1, -3), (2, -1)), of which ``last`` reads some neurons, or all of them."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.last, self.head = (
            nn.Linear(2, 3, bias=False),
            last,
            nn.Linear(last(torch.ones(1, 3)).shape[1], 2),
        )
        self.layer.weight.data.copy_(torch.tensor([[1.0, 2.0], [1.0, -3.0], [2.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.layer(x)))


@pytest.mark.parametrize(
    "last",
    [
        lambda h: h, lambda h: h.relu(), lambda h: h[:, :1], lambda h: h * torch.tensor([1.0, 0.0, 1.0]),
        lambda h: h[:, :2] + h[:, 1:], lambda h: h.relu() + h, lambda h: h.sigmoid() * h, lambda h: h.amax(1, True),
        lambda h: torch.cat((h.clamp(max=0), h.relu() + h.relu()), 1),
    ],
)  # fmt: skip
def test_what_nobody_reads_has_its_own(last):
    """h = (6, -1.5, 4.5) at x = (3, 1.5), whether or not a ReLU, a slice, a mask or a maximum passes its neurons on."""
    x = torch.tensor([[3.0, 1.5]], dtype=torch.float64)
    with fastlrp.Explainer(Unread(last).double().eval(), "attnlrp").forward(x) as record:
        for each in (record, record.under("lrp0")):
            found = each.contributions(groups.features([0, 1]), ["layer"], ledger=True)
            torch.testing.assert_close(found["layer"][0].tolist(), [[3.0, 3.0, 6.0], [3.0, -4.5, -1.5]])
            assert not found.kept["layer"].any()
            assert not found.bias["layer"].any()


class Shifted(nn.Module):
    """``a = x``, ``b = a + 2``, ``y = b + b`` among operations that change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.other, self.twice = nn.Dropout(), nn.Dropout(), nn.Dropout()
        self.shift = nn.Parameter(torch.tensor([2.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        b = self.twice(self.other(self.same(x)) + self.shift)
        return b + b


@pytest.mark.parametrize("composite", [composites.lrp0(), "attnlrp"])
def test_each_layer_has_the_biases_below_it(composite):
    """At x = (3, -1) the shift keeps 2 of b = (5, 1) and 4 of y = (10, 2), and nothing of what is below it."""
    x = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    times, kept = {"same": 1, "other": 1, "twice": 1, "output": 2}, {"twice": 2.0, "output": 4.0}
    with fastlrp.Explainer(Shifted().double().eval(), composite).forward(x) as record:
        for layers in ("all", *times, ["output", "same"]):
            found = record.contributions(groups.features([0, 1]), layers, ledger=True)
            asked = layers if isinstance(layers, list) else [layers]
            assert set(found) == set(times if layers == "all" else asked)
            for name, parts in found.items():
                torch.testing.assert_close(parts[0].tolist(), [[3.0 * times[name], 0.0], [0.0, -1.0 * times[name]]])
                torch.testing.assert_close(found.bias[name][0].tolist(), [kept.get(name, 0.0)] * 2)
                torch.testing.assert_close(found.stabilizer[name][0].tolist(), [0.0, 0.0])


def test_errors():
    model, x = network(), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    record = fastlrp.Explainer(model, "epsilon").forward(x)
    with pytest.raises(KeyError, match="unknown layer 'nope'"):
        record.contributions(groups.patches(2), ["nope"])
    with pytest.raises(ValueError, match="readout of shape"):
        record.contributions(groups.patches(2), ["4"], readout=torch.zeros(2, 99))
    with pytest.raises(fastlrp.UnsupportedOperationError, match=r"1 \(relu, GuidedBackprop\)"):
        fastlrp.Explainer(model, "guided_backprop").forward(x).contributions(groups.patches(2), ["4"])


def test_the_ledger_by_hand():
    """h = relu(x1 + 2 x2 + 1) with epsilon 1, y = 2 h + 3 with epsilon 1, at x = (3, 0.5): z = 5, y = 13.

    Of h = 5 inputs have 4 parts in 6, the bias 1, the stabilizer 1. Of y = 13 the first layer has 10 parts in 14.
    """
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        for layer, weight, bias in ((model[0], [[1.0, 2.0]], 1.0), (model[2], [[2.0]], 3.0)):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.fill_(bias)
    x = torch.tensor([[3.0, 0.5]], dtype=torch.float64)
    with fastlrp.Explainer(model, composites.uniform(rules.Epsilon(1.0))).forward(x) as record:
        found = record.contributions(groups.features([0, 1]), ["1", "2"], ledger=True)
        read = record.contributions(groups.features([0, 1]), ["2"], torch.tensor([[2.0], [1.0]]), ledger=True)
    torch.testing.assert_close(found["1"][0, :, 0].tolist(), [3 * 5 / 6, 1 * 5 / 6])
    torch.testing.assert_close([float(found.bias["1"]), float(found.stabilizer["1"])], [5 / 6, 5 / 6])
    below = 13 * 10 / 14
    torch.testing.assert_close(found["2"][0, :, 0].tolist(), [below * 3 / 6, below / 6])
    expected = [below / 6 + 13 * 3 / 14, below / 6 + 13 / 14]
    torch.testing.assert_close([float(found.bias["2"]), float(found.stabilizer["2"])], expected)
    torch.testing.assert_close(float(found.kept["2"]), sum(expected))
    torch.testing.assert_close(read.bias["2"][0].tolist(), [2 * expected[0], expected[0]])


@pytest.mark.parametrize("composite", ["epsilon", "gamma", "epsilon_plus"])
def test_biases_and_stabilizers_are_all_that_is_kept(composite):
    model, x = network(bias=True), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with fastlrp.Explainer(model, composite).forward(x) as record:
        found = record.contributions(groups.patches(4), ["1", "4", "7"], ledger=True)
        assert not record.contributions(groups.patches(4), ["4"]).bias
        for name in found:
            torch.testing.assert_close(
                found.bias[name] + found.stabilizer[name], found.kept[name], rtol=1e-9, atol=1e-9
            )
            assert found.bias[name].any()


@pytest.mark.parametrize("eager", [False, True])
def test_the_ledger_of_a_transformer(eager):
    torch.manual_seed(0)
    model, x = transformer(True, eager, True), torch.randn(2, 6, 16, dtype=torch.float64)
    with fastlrp.Explainer(model, "attnlrp").forward(x) as record:
        weights = torch.ones(1, *x.shape[1:], dtype=torch.float64)
        found = record.contributions(weights, ledger=True)
        for name in found:
            rest = found.kept[name] - found.bias[name] - found.stabilizer[name]
            assert float(rest.abs().max()) < 1e-7 * float(found.kept[name].abs().max() + 1), name


class Summands(nn.Module):
    """Sums in which relevance passes as it is to each summand: one is what the sum before made, one passes a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.relu, self.head = nn.ReLU(), nn.Linear(4, 3)

    def parts(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        a = self.first(x)
        b = self.second(a)
        y = a + b
        c = self.third(y)
        r = self.relu(c)
        return {"first": a, "second": b, "third": c, "relu": r, "head": self.head(y + r + a)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(x)["head"]


@pytest.mark.parametrize("composite", [composites.lrp0(), "epsilon", "attnlrp"])
def test_summands_have_their_own(composite):
    """Without the ledger's shares contributions are the summand's activation and not the sum's."""
    torch.manual_seed(0)
    model, x = Summands().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    model.third.bias.data += 1
    with fastlrp.Explainer(model, composite).forward(x) as record:
        found = record.contributions(
            groups.features(range(4)), ["first", "second", "third", "relu", "head"], ledger=True
        )
        streamed = dict.fromkeys(found, 0)
        for _, part in record.stream_contributions(groups.features(range(4)), list(found)):
            streamed = {name: streamed[name] + part[name].sum(1) for name in found}
    for name, activation in model.parts(x).items():
        alive = found[name].any(1)
        whole = found[name].sum(1) + found.bias[name] + found.stabilizer[name]
        torch.testing.assert_close(torch.where(alive, whole, activation), activation, rtol=1e-9, atol=1e-9)
        assert alive.any(), name
        torch.testing.assert_close(streamed[name], found[name].sum(1))
    truncated = nn.Sequential(model.first, model.second).eval()
    with fastlrp.Explainer(truncated, composite).forward(x) as record:
        alone = record.contributions(groups.features(range(4)), ["1"])["1"]
    torch.testing.assert_close(found["second"], alone)


class Doubled(nn.Module):
    """``y = h + h``, whose two summands have the register of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x)
        return h + h


def test_a_value_added_to_itself():
    model, x = Doubled().double().eval(), torch.randn(2, 3, dtype=torch.float64)
    parts = groups.features([0, [1, 2]])
    explainer = fastlrp.Explainer(model, "attnlrp")
    with explainer.forward(x) as record:
        found = record.contributions(parts)
    expected = torch.stack((x[:, :1] @ model.layer.weight[:, :1].t(), x[:, 1:] @ model.layer.weight[:, 1:].t()), 1)
    torch.testing.assert_close(found["layer"], expected)
    torch.testing.assert_close(found["output"], 2 * expected)


class _OneNumber(nn.Module):
    """``3 h`` of the largest of three features, one number for each sample in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(2, 3, bias=False)
        self.largest, self.out = _Largest(), nn.Linear(1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.largest(self.wide(x)).unsqueeze(1))


class _Largest(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.max(1)[0]


def test_a_layer_of_one_number_for_each_sample():
    """h = (x1 + 2 x2, x1 - x2, 0) at x = (3, 0.5) and (1, -2): the largest is 4 = 3 + 1, then 3 = 1 + 2."""
    model = _OneNumber().double().eval()
    with torch.no_grad():
        model.wide.weight.copy_(torch.tensor([[1.0, 2.0], [1.0, -1.0], [0.0, 0.0]]))
    x = torch.tensor([[3.0, 0.5], [1.0, -2.0]], dtype=torch.float64)
    with fastlrp.Explainer(model, composites.lrp0()).forward(x) as record:
        assert "largest" in record.layer_names
        asked = groups.features([0, 1])
        shares = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        torch.testing.assert_close(record.contributions(asked, ["largest"])["largest"], shares)
        probe = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        found = record.contributions(asked, ["largest"], readout=probe, ledger=True)
        expected = shares[..., None] * probe
        torch.testing.assert_close(found["largest"], expected)
        torch.testing.assert_close(found.kept["largest"], torch.zeros(2, 3, dtype=torch.float64))
        ((_, block),) = record.stream_contributions(asked, ["largest"], readout=probe)
        torch.testing.assert_close(block["largest"], expected)
        for shape in ((3, 1), ()):
            with pytest.raises(ValueError, match=r"does not fit layer 'largest' \(B,\): give \(M,\)$"):
                record.contributions(asked, ["largest"], readout=torch.zeros(shape))
