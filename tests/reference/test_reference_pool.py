"""Geometry of the pools against autograd, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.reference import weightless
from fastlrp.reference.pool import (
    pool_adaptive_avg_relevance,
    pool_avg_relevance,
    pool_max_relevance,
    pool_ties_relevance,
)
from tests.reference.cases import stabilizer

# size, kernel, stride, padding, dilation, ceil_mode
GEOMETRIES = {
    "1d": ([9], [3], [3], [0], [1], False),
    "1d_overlap_padded": ([10], [3], [2], [1], [1], False),
    "1d_dilated_ceil": ([11], [2], [3], [1], [3], True),
    "2d": ([6, 4], [2, 2], [2, 2], [0, 0], [1, 1], False),
    "2d_overlap_padded": ([7, 8], [3, 3], [2, 1], [1, 0], [1, 1], False),
    "2d_ceil": ([7, 8], [3, 3], [2, 3], [0, 1], [1, 1], True),
    "2d_dilated": ([8, 9], [3, 2], [1, 2], [1, 1], [2, 3], False),
    "2d_gaps": ([9, 9], [2, 2], [3, 4], [0, 0], [1, 1], False),
    "3d": ([4, 4, 6], [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False),
    "3d_padded_ceil": ([5, 4, 6], [3, 2, 3], [2, 1, 2], [1, 0, 1], [1, 1, 1], True),
}
every_geometry = pytest.mark.parametrize("name", list(GEOMETRIES))
undilated = pytest.mark.parametrize("name", [name for name, g in GEOMETRIES.items() if set(g[4]) == {1}])


def inputs(size: list[int]) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, *size, dtype=torch.float64)


def transpose(forward: Callable[[Tensor], Tensor], x: Tensor, relevance: Tensor) -> Tensor:
    point = x.clone().requires_grad_(True)
    y = forward(point)
    targets = range(relevance.shape[1])
    return torch.stack([torch.autograd.grad(y, point, relevance[:, k], retain_graph=True)[0] for k in targets], dim=1)


def max_pool(x: Tensor, *geometry: object) -> tuple[Tensor, Tensor]:
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[x.dim() - 2]
    return pool(x, *geometry, return_indices=True)


def draw(y: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of two targets and a scale for the output ``y``."""
    return torch.randn(2, 2, *y.shape[1:], dtype=torch.float64), torch.rand(y.shape, dtype=torch.float64)


@every_geometry
def test_max(name: str) -> None:
    size, *geometry = GEOMETRIES[name]
    x = inputs(size)
    y, index = max_pool(x, *geometry)
    R, scale = draw(y)
    expected = transpose(lambda value: max_pool(value, *geometry)[0], x, R * scale.unsqueeze(1))
    torch.testing.assert_close(pool_max_relevance(R, index, scale, size), expected)
    relevance, _ = weightless.max_pool(x, R, "winner", *geometry, stabilizer(0.0))
    torch.testing.assert_close(relevance, pool_max_relevance(R, index, None, size))


@every_geometry
def test_ties_without_ties_is_max(name: str) -> None:
    size, kernel, stride, padding, dilation, ceil_mode = GEOMETRIES[name]
    x = inputs(size)
    y, index = max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    R, scale = draw(y)
    got = pool_ties_relevance(R, x, y, scale, kernel, stride, padding, dilation)
    torch.testing.assert_close(got, pool_max_relevance(R, index, scale, size))


@undilated
def test_all_entries_tie_in_a_constant_input(name: str) -> None:
    # Zeros tie with each other, never with the padding: the share of a window is that of an average without padding.
    size, kernel, stride, padding, dilation, ceil_mode = GEOMETRIES[name]
    x = torch.zeros_like(inputs(size))
    y, _ = max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    R, scale = draw(y)
    got = pool_ties_relevance(R, x, y, scale, kernel, stride, padding, dilation)
    expected = pool_avg_relevance(R, scale, size, kernel, stride, padding, ceil_mode, False, None)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.sum(dim=(2, *range(3, got.dim()))), (R * scale.unsqueeze(1)).flatten(2).sum(dim=2))


@undilated
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("divisor_override", [None, 5])
def test_avg(name: str, count_include_pad: bool, divisor_override: int | None) -> None:
    size, kernel, stride, padding, _, ceil_mode = GEOMETRIES[name]
    x = inputs(size)

    def forward(value: Tensor) -> Tensor:
        if len(size) > 1:
            pool = F.avg_pool2d if len(size) == 2 else F.avg_pool3d
            return pool(value, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
        if divisor_override is None:
            return F.avg_pool1d(value, kernel, stride, padding, ceil_mode, count_include_pad)
        # A sum by hand: the average over windows that are all full, times their size.
        right = padding[0] + (stride[0] if ceil_mode else 0)
        padded = F.pad(value, (padding[0], right))
        outputs = F.avg_pool1d(value, kernel, stride, padding, ceil_mode).shape[2]
        return F.avg_pool1d(padded, kernel, stride)[..., :outputs] * kernel[0] / divisor_override

    R, scale = draw(forward(x))
    got = pool_avg_relevance(R, scale, size, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    torch.testing.assert_close(got, transpose(forward, x, R * scale.unsqueeze(1)))


@pytest.mark.parametrize(
    ("size", "output"), [([7], [3]), ([7, 5], [1, 1]), ([7, 5], [3, 5]), ([2, 3], [4, 3]), ([4, 5, 3], [2, 2, 3])]
)
def test_adaptive_avg(size: list[int], output: list[int]) -> None:
    x = inputs(size)
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
    R, scale = draw(pool(x, output))
    got = pool_adaptive_avg_relevance(R, scale, size)
    torch.testing.assert_close(got, transpose(lambda value: pool(value, output), x, R * scale.unsqueeze(1)))


@undilated
@pytest.mark.parametrize("mode", ["average", "sum"])
def test_max_pool_as_average_or_sum_is_an_average_pool_with_a_divisor(name: str, mode: weightless.MaxPoolMode) -> None:
    size, kernel, stride, padding, dilation, ceil_mode = GEOMETRIES[name]
    x = inputs(size)
    y, _ = max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    R, _ = draw(y)
    st = stabilizer(0.1)
    divisor = prod(kernel) if mode == "average" else 1
    pool = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    kernel_of_ones = torch.ones(1, 1, *kernel, dtype=torch.float64)
    geometry = zip(y.shape[2:], stride, kernel, size, padding, strict=True)
    right = [max((o - 1) * s + k - n - p, 0) for o, s, k, n, p in geometry]
    pads = [amount for pair in reversed(list(zip(padding, right, strict=True))) for amount in pair]
    inside = (..., *(slice(0, o) for o in y.shape[2:]))

    def forward(value: Tensor) -> Tensor:
        sums = pool(F.pad(value.flatten(0, 1).unsqueeze(1), pads), kernel_of_ones, None, stride)[inside]
        return sums.reshape(y.shape) / divisor

    expected, _ = weightless.norm(forward, x, R, st)
    got, _ = weightless.max_pool(x, R, mode, kernel, stride, padding, dilation, ceil_mode, st)
    torch.testing.assert_close(got, expected)
    scale = 1 / st(forward(x))
    operation = pool_avg_relevance(R, scale, size, kernel, stride, padding, ceil_mode, True, divisor)
    torch.testing.assert_close(x.unsqueeze(1) * operation, expected)


def test_float32_keeps_its_dtype() -> None:
    x = inputs([6, 6]).float()
    y, index = F.max_pool2d(x, 2, return_indices=True)
    R = torch.randn(2, 2, *y.shape[1:])
    assert pool_max_relevance(R, index, None, [6, 6]).dtype == torch.float32
    assert pool_ties_relevance(R, x, y, None, [2, 2], [2, 2], [0, 0], [1, 1]).dtype == torch.float32
    assert pool_avg_relevance(R, None, [6, 6], [2, 2], [2, 2], [0, 0], False, True, None).dtype == torch.float32
    assert pool_adaptive_avg_relevance(R, None, [6, 6]).dtype == torch.float32


@pytest.mark.parametrize(("batch", "targets"), [(0, 2), (2, 0)])
def test_empty_batch_and_no_targets(batch: int, targets: int) -> None:
    x = torch.zeros(batch, 3, 4, 4)
    R = torch.zeros(batch, targets, 3, 2, 2)
    index = torch.zeros(batch, 3, 2, 2, dtype=torch.int64)
    shape = (batch, targets, 3, 4, 4)
    assert pool_max_relevance(R, index, None, [4, 4]).shape == shape
    assert pool_ties_relevance(R, x, x[:, :, :2, :2], None, [2, 2], [2, 2], [0, 0], [1, 1]).shape == shape
    assert pool_avg_relevance(R, None, [4, 4], [2, 2], [2, 2], [0, 0], False, True, None).shape == shape
    assert pool_adaptive_avg_relevance(R, None, [4, 4]).shape == shape
