"""What operations of pools refuse: at the edge of the kernels, and in the public functions."""

import pytest
import torch

from fastlrp import functional
from tests.ops.cases import (
    bound,
    channels_last,
    relayouts,
)
from tests.ops.pools import ADAPTIVE, AVG, MAX, TIES, Pool, arguments


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bad", [-1, 36, -(2**63), 2**62])
def test_max_index_out_of_range_raises(bad, last):
    index = torch.zeros(2, 3, 3, 3, dtype=torch.int64)
    index[1, 2, 2, 2] = bad
    arguments = (torch.ones(2, 4, 3, 3, 3), index, None, [6, 6])
    if last:
        arguments = relayouts(arguments, channels_last(2), channels_last(1))
    with pytest.raises(IndexError, match=rf"index must be in \[0, 36\), the flattened input_size, got {bad}"):
        bound(MAX, "cpu", torch.float32)(*arguments)
    with pytest.raises((IndexError, RuntimeError)):
        functional.pool_max_relevance(*arguments, backend="torch")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({1: torch.zeros(2, 3, 3, 3).int()}, TypeError, "index must be Long, got Int"),
        ({1: torch.zeros(2, 3, 3, 4).long()}, ValueError, r"index must have shape \[2, 3, 3, 3\], got \[2, 3, 3, 4\]"),
        ({2: torch.zeros(2, 3, 3)}, ValueError, r"scale must have shape \[2, 3, 3, 3\], got \[2, 3, 3\]"),
        ({2: torch.zeros(2, 3, 3, 3).double()}, TypeError, "scale must be Float, got Double"),
        ({3: [6]}, ValueError, r"input_size must have one entry per spatial axis of relevance \(2\), got \[6\]"),
        ({3: [-6, 6]}, ValueError, r"input_size must not be negative, got \[-6, 6\]"),
        ({0: torch.zeros(2, 4, 3)}, ValueError, r"relevance must have shape \(B, K, C, \*S'\), got \[2, 4, 3\]"),
        ({0: torch.zeros(2, 4, 3, 3, 3).half()}, TypeError, "relevance must be float32 or float64, got Half"),
        ({0: torch.zeros(2, 4, 3, 3, 3, device="meta")}, RuntimeError, "relevance must be a dense CPU tensor"),
    ],
)
def test_kernel_edge_errors(change, error, message):
    arguments = [torch.zeros(2, 4, 3, 3, 3), torch.zeros(2, 3, 3, 3).long(), None, [6, 6]]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(error, match=message):
        bound(MAX, "cpu", torch.float32)(*arguments)


@pytest.mark.parametrize(
    ("op", "change", "error", "message"),
    [
        (TIES, {0: torch.zeros(2, 4, 3, 3, 3).half()}, TypeError, "relevance must be float32 or float64, got Half"),
        (TIES, {1: torch.zeros(2, 3, 6)}, ValueError, r"input must have shape \(B, C, \*S\) with as many axes in S"),
        (TIES, {1: torch.zeros(2, 2, 6, 6)}, ValueError, r"input must have shape \[2, 3, 6, 6\], got \[2, 2, 6, 6\]"),
        (TIES, {1: torch.zeros(2, 3, 6, 6).double()}, TypeError, "input must be Float, got Double"),
        (TIES, {2: torch.zeros(2, 3, 3, 4)}, ValueError, r"output must have shape \[2, 3, 3, 3\], got \[2, 3, 3, 4\]"),
        (TIES, {3: torch.zeros(2, 3, 6, 6)}, ValueError, r"scale must have shape \[2, 3, 3, 3\], got \[2, 3, 6, 6\]"),
        (TIES, {4: [2]}, ValueError, r"kernel_size must have one entry per spatial axis of relevance \(2\), got \[2\]"),
        (TIES, {4: [2, 0]}, ValueError, r"kernel_size must be positive, got \[2, 0\]"),
        (TIES, {5: [0, 2]}, ValueError, r"stride must be positive, got \[0, 2\]"),
        (TIES, {6: [0, -1]}, ValueError, r"padding must not be negative, got \[0, -1\]"),
        (TIES, {7: [1, 0]}, ValueError, r"dilation must be positive, got \[1, 0\]"),
        (TIES, {7: [1, 2**31]}, ValueError, r"dilation must be below 2\^31, got \[1, 2147483648\]"),
        (AVG, {1: torch.zeros(2, 3, 3, 3, device="meta")}, RuntimeError, "scale must be a dense CPU tensor"),
        (AVG, {2: [6, 6, 6]}, ValueError, r"input_size must have one entry per spatial axis of relevance \(2\), got"),
        (AVG, {3: [2**62, 2]}, ValueError, r"kernel_size must be below 2\^31, got \[4611686018427387904, 2\]"),
        (AVG, {4: [2, -2]}, ValueError, r"stride must be positive, got \[2, -2\]"),
        (AVG, {8: 0}, ValueError, "divisor_override must not be 0; None divides by the size of the window"),
        (
            ADAPTIVE,
            {2: [6]},
            ValueError,
            r"input_size must have one entry per spatial axis of relevance \(2\), got \[6\]",
        ),
        (ADAPTIVE, {2: [6, -6]}, ValueError, r"input_size must not be negative, got \[6, -6\]"),
        (
            ADAPTIVE,
            {0: torch.zeros(2, 4, 3)},
            ValueError,
            r"relevance must have shape \(B, K, C, \*S'\), got \[2, 4, 3\]",
        ),
        (
            ADAPTIVE,
            {0: torch.zeros(2, 4, 3, 1, 2, 3, 3), 1: None, 2: [6, 6, 6, 6]},
            ValueError,
            r"relevance must have one to three spatial axes, got \[2, 4, 3, 1, 2, 3, 3\]",
        ),
    ],
)
def test_kernel_edge_errors_of_windows(op, change, error, message):
    given = list(arguments(op, Pool((6, 6), K=4), torch.float32))
    for place, value in change.items():
        given[place] = value
    with pytest.raises(error, match=f"{op}: {message}"):
        bound(op, "cpu", torch.float32)(*given)


max_, ties = functional.pool_max_relevance, functional.pool_ties_relevance
avg, adaptive = functional.pool_avg_relevance, functional.pool_adaptive_avg_relevance
R, INDEX, X = torch.zeros(2, 4, 3, 3, 3), torch.zeros(2, 3, 3, 3).long(), torch.zeros(2, 3, 6, 6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: max_(R, None, None, 6), TypeError, "index must be a tensor, got None; max_pool2d"),
        (lambda: max_(R, INDEX.float(), None, 6), TypeError, "index must have dtype torch.int64, got torch.float32"),
        (
            lambda: max_(R, INDEX[:1], None, 6),
            ValueError,
            r"index must have shape \(B, C, \*S'\) = \(2, 3, 3, 3\), got",
        ),
        (lambda: max_(R, INDEX), ValueError, r"input_size must have 2 entries, each at least 0, got \(\)"),
        (lambda: max_(R, INDEX, X, 6), ValueError, r"scale must have shape \(B, C, \*S'\) = \(2, 3, 3, 3\), got"),
        (lambda: max_(R[0, 0], INDEX, None, 6), ValueError, r"relevance must have shape \(B, K, C, \*S'\) with one to"),
        (lambda: ties(R, X[:, :2], X), ValueError, r"input must have shape \(B, C, \*S\) = \(2, 3, 6, 6\), got \(2, 2"),
        (lambda: ties(R, X, X), ValueError, r"output must have shape \(B, C, \*S'\) = \(2, 3, 3, 3\), got"),
        (lambda: ties(R, X, R[:, 0], None, 3), ValueError, r"spatial size \[2, 2\], which is what this layer makes"),
        (lambda: ties(R, X, R[:, 0], None, 2, 2, 2), ValueError, "padding must be at most half of what the kernel"),
        (lambda: avg(R, None, 9), ValueError, r"spatial size \[4, 4\], which is what this layer makes of input_size="),
        (lambda: avg(R, None, 6, divisor_override=0), ValueError, "divisor_override must not be 0"),
        (lambda: adaptive(R, None, 0), ValueError, "input_size must have 2 entries, each at least 1, got 0"),
        (lambda: adaptive(R.int(), None, 6), TypeError, "relevance must have a floating-point dtype, got torch.int32"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
