"""Pools of every geometry, means and sums, against the oracle; max-pools in each mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites
from tests.models.cases import Written, chain, check_case, constant, conv, linear, prepared, volume
from tests.models.checks import check_model

POOLS = [
    nn.MaxPool1d(3, 2, ceil_mode=True),
    nn.MaxPool1d(2, dilation=3, padding=1),
    nn.AvgPool1d(3, 2, padding=1),
    nn.AvgPool1d(4, 3, padding=2, ceil_mode=True, count_include_pad=False),
    nn.AdaptiveAvgPool1d(5),
    nn.AdaptiveMaxPool1d(5),
    nn.MaxPool2d(2),
    nn.MaxPool2d((3, 2), (2, 1), padding=(1, 0), ceil_mode=True),
    nn.MaxPool2d(3, 1, padding=1, dilation=2),
    nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    nn.AvgPool2d((2, 3), divisor_override=4),
    nn.AdaptiveAvgPool2d((3, 5)),
    nn.AdaptiveAvgPool2d((None, 3)),
    nn.AdaptiveAvgPool2d((9, 9)),
    nn.AdaptiveMaxPool2d((3, 5)),
    nn.MaxPool3d(2, ceil_mode=True),
    nn.AvgPool3d((2, 3, 2), 2, padding=(0, 1, 1)),
    nn.AdaptiveAvgPool3d((2, 4, 3)),
    nn.AdaptiveMaxPool3d((2, 4, 3)),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools(pool: nn.Module) -> None:
    dims = int(type(pool).__name__[-2])
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    check_case(chain(layer(3, 4, 3, padding=1), nn.ReLU(), pool, layer(4, 3, 1), nn.Tanh()), volume(dims))


FUNCTIONAL = {
    "avg_pool2d": lambda y: F.avg_pool2d(y, 2),
    "max_pool2d": lambda y: F.max_pool2d(y, 3, stride=2, padding=1),
    "adaptive_avg_pool2d": lambda y: F.adaptive_avg_pool2d(y, (2, 3)),
    "adaptive_max_pool2d": lambda y: F.adaptive_max_pool2d(y, 3),
    "mean": lambda y: y.mean(dim=(2, 3)),
    "mean_keepdim": lambda y: torch.mean(y, -1, keepdim=True),
    "mean_of_channels": lambda y: y.mean(1),
    "sum": lambda y: y.sum(dim=-1),
    "sum_of_all": lambda y: y.sum(dim=(1, 2, 3)).unsqueeze(1),
    "sum_without_axes_kept": lambda y: torch.stack([y.sum((1, 2, 3)), y[:, 0, 0, 0]], 1),
    "cumsum": lambda y: y.cumsum(-1),
}


@pytest.mark.parametrize("name", list(FUNCTIONAL))
def test_functional_pools_and_means(name: str) -> None:
    pool = FUNCTIONAL[name]
    size = pool(torch.zeros(1, 4, 7, 8)).numel()
    model = Written(lambda m, x: m.last(pool(F.relu(m.conv(x))).flatten(1)), conv=conv(3, 4), last=linear(size))
    check_case(model, volume(2))


def test_the_output_is_a_sum() -> None:
    model = Written(
        lambda m, x: torch.stack([F.relu(m.a(x)).sum((1, 2, 3)), x.sum((1, 2, 3)), m.b(x).mean((1, 2, 3))], 1),
        a=conv(3, 5),
        b=conv(3, 5),
    )
    check_case(model, volume(2))


@pytest.mark.each_value
@pytest.mark.parametrize("mode", ["winner", "ties", "average", "sum"])
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.MaxPool1d(3, 2)], ids=str
)
def test_max_pool_modes(pool: nn.Module, mode: composites.MaxPoolMode) -> None:
    dims = int(type(pool).__name__[-2])
    layer = [nn.Conv1d, nn.Conv2d][dims - 1]
    x = volume(dims)
    model = prepared(
        chain(
            layer(3, 4, 3), nn.ReLU(), pool, layer(4, 3, 1), nn.ReLU(), nn.MaxPool2d(1) if dims == 2 else nn.Identity()
        ),
        x,
    )
    check_model(model, x.double(), composite=composites.epsilon_plus(max_pool=mode), tolerance=1e-12)


def test_ties_are_split_equally() -> None:
    """All entries of a window that is constant, and of one that no ReLU passed."""
    model = Written(lambda m, x: F.max_pool2d(F.relu(x), 2).flatten(1) @ m.w, w=constant(4, 2)).double()
    x = torch.tensor([[3.0, 3, 1, 2], [3, 3, 2, 2], [-1, -2, 5, 4], [-3, -4, 5, 5]], dtype=torch.float64).view(
        1, 1, 4, 4
    )
    shares = fastlrp.explain(model, x, [0], composites.lrp0(max_pool="ties"))[0, 0, 0]
    whole = fastlrp.explain(model, x, [0], composites.lrp0(), layers="all")
    assert torch.equal(shares[:2, :2], shares[0, 0].expand(2, 2))
    torch.testing.assert_close(shares[[0, 1, 1], [3, 2, 3]], shares[0, 3].expand(3))
    assert shares[0, 2] == 0
    assert torch.equal(shares[2:, 2:], torch.tensor([[1.0, 0], [1, 1]], dtype=torch.float64) * shares[2, 2])
    torch.testing.assert_close(shares.sum(), whole["input"].sum())
