"""Sum of relevance against the score: nothing is lost where there is no bias, and every loss is in the ledger."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import Stabilizer, composites
from tests.fixtures import seeded_apart
from tests.models.cases import Written, conv, prepared, vector, volume

EPSILON = 1e-10  # In float64: small enough to lose nothing, large enough that no denominator is zero.
COMPOSITES: dict[str, Callable[[], composites.Composite]] = {
    "lrp0": composites.lrp0,
    "epsilon": lambda: composites.epsilon(EPSILON),
    "zplus": lambda: composites.zplus(EPSILON),
    "gamma": lambda: composites.gamma(0.25, EPSILON),
    "epsilon_plus": lambda: composites.epsilon_plus(EPSILON, EPSILON),
    "epsilon_plus_flat": lambda: composites.epsilon_plus_flat(EPSILON, EPSILON),
    "epsilon_gamma_box": lambda: composites.epsilon_gamma_box(-5.0, 5.0, EPSILON, stabilizer=EPSILON),
    "average_pools": lambda: composites.epsilon_plus(EPSILON, EPSILON, max_pool="average"),
    "ties": lambda: composites.epsilon_plus(EPSILON, EPSILON, max_pool="ties"),
}


def _residual(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    y = F.max_pool2d(y + F.relu(m.b(y)), 2)
    y = torch.cat([y, F.relu(m.c(y))], 1)
    return m.last(F.avg_pool2d(y, 2, ceil_mode=True).mean((2, 3)))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convolutions": (
        lambda: nn.Sequential(
            conv(3, 12, bias=False), nn.ReLU(), nn.MaxPool2d(2), conv(12, 12, bias=False, groups=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(144, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False),
        ),
        lambda: volume(2),
    ),
    "residual": (
        lambda: Written(
            _residual, a=conv(3, 12, bias=False), b=conv(12, 12, bias=False), c=conv(12, 6, bias=False),
            last=nn.Linear(18, 4, bias=False),
        ),
        lambda: volume(2),
    ),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(10, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False), nn.Tanh(),
                              nn.Linear(16, 4, bias=False)),
        vector,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 12, 3, 2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 3)), nn.Flatten(),
            nn.Linear(144, 4, bias=False),
        ),
        lambda: volume(2),
    ),
}  # fmt: skip


@cache
@seeded_apart
def made(net: str, biased: bool = False) -> tuple[nn.Module, Tensor]:
    """A network in float64 and its input, the same for all tests."""
    make, sample = NETS[net]
    x = sample()
    model = prepared(make(), x)
    for module in model.modules() if biased else ():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            module.bias = nn.Parameter(torch.randn(channels, dtype=torch.float64) / 4)
    return model, x.double()


@pytest.mark.each_value
@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("net", list(NETS))
@pytest.mark.parametrize("composite", list(COMPOSITES))
def test_relevance_sums_to_the_score(net: str, composite: str) -> None:
    model, x = made(net)
    rule = COMPOSITES[composite]()
    with fastlrp.Explainer(model, rule).forward(x) as record:
        sums = record.relevance("all").flatten(2).sum(2)
        # Measured: 3.3e-8 relative, where epsilon is all that is lost.
        torch.testing.assert_close(sums, record.scores, rtol=1e-7, atol=1e-9)


@pytest.mark.each_value
@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("net", list(NETS))
@pytest.mark.parametrize(
    "composite", ["epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "alpha_beta", "wsquare"]
)
@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_every_loss_is_in_the_ledger(net: str, composite: str, epsilon: float) -> None:
    """With biases and a large epsilon: score = relevance + bias + epsilon + dead, in total and layer by layer."""
    model, x = made(net, biased=True)
    report = fastlrp.Explainer(model, composites.preset(composite, stabilizer=epsilon)).verify(x, "all")
    assert report.ok, str(report)
    scale = abs(report.score) + sum(abs(row.arrived) for row in report.rows)
    assert abs(report.kept["unexplained"]) <= 1e-12 * scale
    assert report.score == pytest.approx(report.relevance + sum(report.kept.values()), abs=1e-11 * scale)
    for row in report.rows:
        assert row.unexplained is not None
        assert abs(row.unexplained) <= 1e-12 * scale
        if row.operation in ("conv2d", "linear", "conv_transpose2d") and "Flat" not in row.rule:
            assert row.bias != 0


@pytest.mark.parametrize(
    "stabilizer",
    [
        Stabilizer(1e-9, relative="sample"),
        Stabilizer(1e-9, relative="tensor", signed=False),
        Stabilizer(1e-9, clip=True),
    ],
    ids=["relative", "unsigned", "clip"],
)
def test_other_stabilizers_conserve_too(stabilizer: Stabilizer) -> None:
    make, sample = NETS["residual"]
    x = sample()
    model, x = prepared(make(), x), x.double()
    with fastlrp.Explainer(model, composites.epsilon_plus(stabilizer, stabilizer)).forward(x) as record:
        torch.testing.assert_close(record.relevance("all").flatten(2).sum(2), record.scores, rtol=1e-6, atol=1e-8)


def test_relevance_of_every_layer_sums_to_the_score() -> None:
    """In a chain, whatever the layer."""
    make, sample = NETS["convolutions"]
    x = sample()
    model, x = prepared(make(), x), x.double()
    with fastlrp.Explainer(model, "lrp0").forward(x) as record:
        for path, relevance in record.relevance("all", layers="all").items():
            total = relevance.flatten(2).sum(2) if relevance.dim() > 2 else relevance
            torch.testing.assert_close(total, record.scores, msg=lambda text, path=path: f"{path}: {text}")
