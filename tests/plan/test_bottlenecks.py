"""Convolutions that stay float32 in networks with linear bottlenecks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Composite, Explainer, composites, precision
from fastlrp.plan import bottlenecks
from fastlrp.plan.products import reduced
from tests.reference.cases import relative_error


@pytest.fixture(autouse=True)
def all_layers_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduced, "LEAST_WORK", 1)
    monkeypatch.setattr(reduced, "NEAREST", 0)
    monkeypatch.setattr(precision, "instruction_set", lambda: "AMX")


class Inverted(nn.Module):
    """An inverted residual: a wide middle between sums without an activation."""

    def __init__(self, channels: int, to: int) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(channels, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.norm, self.narrow = nn.BatchNorm2d(to), nn.Conv2d(24, to, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm(self.narrow(self.deep(self.wide(x).relu()).relu()))
        return x + found if x.shape == found.shape else found


def bottlenecks_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Inverted(8, 12), Inverted(12, 12), nn.Conv2d(12, 16, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def plain_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def narrow_layers(model: nn.Module, composite: Composite) -> set[str]:
    """The paths of the layers whose products are made of bfloat16."""
    explainer = Explainer(model, composite, precision="bf16", example_inputs=torch.randn(1, 3, 12, 12))
    rows = [line.split() for line in str(explainer.plan).splitlines() if "conv2d" in line]
    return {row[0] for row in rows if any(word.endswith("bf16") for word in row)} - {"0"}  # The first layer.


TRUNK, BRANCH = {"2.wide", "2.deep", "2.narrow", "4"}, {"3.wide", "3.deep", "3.narrow"}


@pytest.mark.parametrize(
    ("composite", "expected"),
    [
        (composites.epsilon_plus, TRUNK | BRANCH),
        (lambda: composites.alpha_beta(1.0, 0.0), TRUNK | BRANCH),
        (composites.gamma, BRANCH),
        (composites.epsilon, BRANCH),
        (composites.gradient, BRANCH),
        (composites.epsilon_alpha2_beta1, set()),
    ],
)
def test_which_stay_float32_depends_on_the_rule(composite, expected):
    assert narrow_layers(bottlenecks_of(), composite()) == expected


def test_the_plan_says_so():
    asked = {"precision": "bf16", "example_inputs": torch.randn(1, 3, 12, 12)}
    said = "8 convolutions stay float32, where errors would add up: linear bottlenecks"
    assert said in str(Explainer(bottlenecks_of(), composites.alpha_beta(), **asked).plan)
    assert "stay float32" not in str(Explainer(bottlenecks_of(), composites.epsilon_plus(), **asked).plan)


@pytest.mark.parametrize("composite", [composites.gamma, composites.epsilon_alpha2_beta1])
def test_networks_with_activations_are_left_as_they_are(composite):
    assert narrow_layers(plain_network(), composite()) == {"2", "5"}


def test_alpha_beta_is_that_of_float32_and_gamma_near_it():
    model, x = bottlenecks_of(), torch.randn(2, 3, 12, 12)
    whole = composites.alpha_beta()
    full, narrow = (Explainer(model, whole, precision=name, paths="dense")(x, range(5)) for name in ("float32", "bf16"))
    assert torch.equal(full, narrow)
    expected = Explainer(copy.deepcopy(model).double(), composites.gamma())(x.double(), range(5))
    found = Explainer(model, composites.gamma(), precision="bf16")(x, range(5))
    assert relative_error(found, expected) <= 1e-2


@pytest.mark.parametrize("first", ["epsilon_plus", "epsilon_alpha2_beta1"])
def test_one_record_keeps_the_sums_of_both_precisions_apart(first):
    model, x = bottlenecks_of(), torch.randn(2, 3, 12, 12)
    both = {name: composites.resolve(name) for name in ("epsilon_plus", "epsilon_alpha2_beta1")}
    alone = {name: Explainer(model, each, precision="bf16", paths="dense")(x, range(5)) for name, each in both.items()}
    record = Explainer(model, both.pop(first), precision="bf16", paths="dense").forward(x, lrp_aware="sweep")
    assert torch.equal(record.relevance(range(5)), alone[first])
    ((second, composite),) = both.items()
    assert torch.equal(record.under(composite).relevance(range(5)), alone[second])


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.b(x)
        made = self.c(torch.cat([x[:, 2:], x[:, 2:]], 1))[:, :2]
        return self.d(torch.cat([x[:, :2], made], 1)).mean((2, 3))


def test_a_residual_connection_leads_past_layers_and_one_that_is_joined_on_does_not():
    model, x = Joined().eval(), torch.randn(1, 4, 3, 3)
    graph = Explainer(model, composites.epsilon(), example_inputs=x).plan.graph
    trunk = {node.path for node in bottlenecks.on_all_ways(graph) if node.kind == "conv"}
    assert trunk == {"a", "c", "d"}
