"""Channels that are far larger than others: outputs that they hold down are made by plain sums."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp.plan.products import channel_sizes, packed, winograd
from tests.plan.test_winograd import shown
from tests.reference.cases import relative_error

pytestmark = pytest.mark.skipif(
    packed._operations() is None or winograd._kernel() is None, reason="no processor or PyTorch that gains by it"
)
X = (2, 3, 20, 20)


def network(factor: float, seed: int = 2) -> nn.Sequential:
    """Channel 7 before the last convolution is this many times as large as it would be."""
    torch.manual_seed(seed)
    first, second, third = (nn.Conv2d(*c, 3, padding=1) for c in ((3, 32), (32, 64), (64, 64)))
    second.weight.data[7] *= factor
    second.bias.data[7] *= factor
    head = nn.Flatten(), nn.Linear(25600, 12)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), *head).eval()


COMPOSITES = {
    "epsilon_plus": "epsilon_plus", "gamma": "gamma", "epsilon_alpha2_beta1": "epsilon_alpha2_beta1",
    "zplus": fastlrp.composites.uniform(fastlrp.rules.ZPlus()),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize(("lowered", "factor"), [(slice(None), 1e3), (slice(3, 9), 1e4)], ids=["all", "six"])
def test_outputs_that_a_large_channel_holds_down_are_plain(name, lowered, factor):
    """Where it is zero they are alive, and far below zero next to it, by weights that are like all others."""
    model, x = network(factor), torch.randn(X, generator=torch.Generator().manual_seed(0))
    weight = model[4].weight.data
    rest = torch.ones(64, dtype=torch.bool)
    rest[lowered] = False
    weight[rest, 7] /= factor
    weight[lowered, 7] = -weight[lowered, 7].abs()
    right = fastlrp.Explainer(copy.deepcopy(model).double(), COMPOSITES[name])(x.double(), 0)
    explainer = fastlrp.Explainer(model, COMPOSITES[name], paths="dense")
    # Measured: 4e-7 to 4e-6, and filtered 5e-5 to 6e-4.
    assert relative_error(explainer(x, 0).double(), right) <= 1e-5
    assert "4" not in shown(explainer)
    assert name == "epsilon_alpha2_beta1" or "2" in shown(explainer)


@pytest.mark.parametrize("how", ["as it is", "compensated", "raised"])
def test_large_channels_alone_keep_the_filtering(how):
    model = network(1e3)
    if how == "compensated":
        model[4].weight.data[:, 7] /= 1e3
    if how == "raised":
        model[4].weight.data[:, 7].abs_()
    explainer = fastlrp.Explainer(model, "epsilon_plus", example_inputs=torch.randn(X))
    assert "4" in shown(explainer)


class Before(nn.Module):
    """What may stand before a convolution of 64 channels, of which the eighth becomes large."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        norms = {"group norm": nn.GroupNorm(8, 64), "instance norm": nn.InstanceNorm2d(64, affine=True)}
        self.norm = norms.get(kind, nn.BatchNorm2d(64))
        self.norm.weight.data.copy_(0.5 + torch.rand(64))
        self.norm.weight.data[7] = 300
        self.scale, self.gate = nn.Parameter(torch.ones(1, 64, 1, 1)), nn.Linear(64, 64)
        self.scale.data[0, 7] = 300
        self.gate.weight.data[:, 7] = 0
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.last(self.before(x))).mean((2, 3)))

    def before(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.kind == "after a ReLU":
            return torch.relu(self.norm(torch.relu(y)))
        if self.kind == "last":
            return self.norm(torch.relu(y))
        if self.kind == "scaled":
            return torch.relu(y) * self.scale
        z = torch.relu(self.norm(y))
        if self.kind == "pooled":
            return nn.functional.avg_pool2d(nn.functional.max_pool2d(z, 2, 1), 2, 1)
        if self.kind == "added":
            return torch.relu(self.norm(y) + y)
        if self.kind == "joined":
            return torch.cat([z, y], 1).unflatten(1, (2, 64)).sum(1)
        if self.kind == "gated":
            return z * torch.sigmoid(self.gate(z.mean((2, 3))))[:, :, None, None]
        if self.kind == "wider":
            return nn.functional.interpolate(nn.functional.pad(z, (1, 1)), scale_factor=2)
        if self.kind == "leaky":
            return nn.functional.leaky_relu(self.norm(y), 0.2)
        return z


KINDS = (
    "batch norm", "after a ReLU", "last", "group norm", "instance norm", "scaled", "pooled", "added", "gated", "wider",
    "leaky",
)  # fmt: skip


@pytest.fixture
def heard(monkeypatch) -> dict[str, Tensor | None]:
    """What was said of each convolution's input."""
    said: dict[str, Tensor | None] = {}
    of_input = channel_sizes.ChannelSizes.of_input

    def listened(self, node):
        said[node.path] = of_input(self, node)
        return said[node.path]

    monkeypatch.setattr(channel_sizes.ChannelSizes, "of_input", listened)
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_activations(kind, heard):
    model, x = Before(kind), torch.randn(4, 3, 24, 24)
    model.train()(x)
    model.eval()
    fastlrp.Explainer(model, "epsilon_plus", example_inputs=x)
    sizes = model.before(x).detach().abs().amax((0, 2, 3))
    factors = heard["last"] / heard["last"].median() / (sizes / sizes.median())
    assert torch.maximum(factors, 1 / factors).max() <= 3, factors  # Measured: 1.3 to 2.0.
    assert heard["last"].argmax() == 7


def test_of_what_is_unknown_nothing_is_said(heard):
    fastlrp.Explainer(Before("joined").eval(), "epsilon_plus", example_inputs=torch.randn(1, 3, 24, 24))
    assert heard == {"last": None}
