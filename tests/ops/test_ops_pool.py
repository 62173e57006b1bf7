from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fastlrp import functional
from fastlrp.backends.extension import extension
from tests.ops.cases import (
    DTYPES,
    assert_close,
    backends,
    bound,
    channels_last,
    layouts,
    mixed,
    reference,
    relayouts,
    same,
)

MAX, TIES = "pool_max_relevance", "pool_ties_relevance"
AVG, ADAPTIVE = "pool_avg_relevance", "pool_adaptive_avg_relevance"
ALL = (MAX, TIES, AVG, ADAPTIVE)


@dataclass(frozen=True)
class Pool:
    S: tuple[int, ...]
    kernel: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] = 2
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    ceil_mode: bool = False
    B: int = 2
    K: int = 3
    C: int = 3

    def lists(self) -> tuple[list[int], ...]:
        numbers = (self.kernel, self.stride, self.padding, self.dilation)
        return tuple([a] * len(self.S) if isinstance(a, int) else list(a) for a in numbers)


POOLS = [
    Pool((6, 4)),
    Pool((7, 5)),
    Pool((7, 5), ceil_mode=True),
    Pool((7, 9), kernel=3, stride=2, padding=1),
    Pool((8, 7), kernel=3, stride=1, padding=1, ceil_mode=True),
    Pool((9, 11), kernel=3, stride=2, padding=1, dilation=2),
    Pool((5, 5), kernel=2, stride=3),
    Pool((1, 1), kernel=1, stride=1, B=1, K=1, C=1),
    Pool((4, 4), K=1, B=1),
    Pool((4, 4), B=0),
    Pool((4, 4), K=0),
    Pool((13,), kernel=3, stride=2),
    Pool((5, 4, 6), kernel=2, stride=2),
    Pool((6, 6), C=67),
    Pool((3, 3), kernel=3, stride=1, C=130, K=2),
    Pool((5, 6), C=70, K=9),
    Pool((3, 2), kernel=5, stride=1, padding=2),
    Pool((2, 3), kernel=4, stride=3, padding=2, ceil_mode=True, C=17),
    Pool((7, 11), kernel=(3, 1), stride=(1, 2), padding=(1, 0), C=16),
    Pool((11, 13), kernel=3, stride=2, padding=1, dilation=3, C=33),
    Pool((11, 13), kernel=3, stride=(4, 6), padding=1, dilation=(2, 4)),
    Pool((17,), kernel=5, stride=1, padding=2, ceil_mode=True, C=1),
    Pool((23,), kernel=2, stride=5, C=31),
    Pool((5, 3, 7), kernel=(2, 3, 1), stride=(1, 2, 3), padding=(1, 1, 0), ceil_mode=True),
    Pool((1, 7, 5), kernel=(1, 3, 3), stride=1, padding=(0, 1, 1), C=19),
]
COUNTS = ((True, None), (False, None), (True, 3))  # count_include_pad, divisor_override
AVERAGES = [(p, *count) for p in POOLS if p.dilation == 1 for count in COUNTS]


def max_pool(p: Pool, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(p.S)]
    kernel, stride, padding, dilation = p.lists()
    flat = x if x.shape[0] else x.new_zeros(1, *x.shape[1:])  # max_pool takes no empty batch everywhere
    output, index = pool(flat, kernel, stride, padding, dilation, p.ceil_mode, True)
    return output[: x.shape[0]], index[: x.shape[0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(MAX))
@pytest.mark.parametrize("p", POOLS, ids=str)
def test_max_equals_reference(p, backend, dtype):
    output, index = max_pool(p, mixed(p.B, p.C, *p.S, dtype=dtype))
    r = mixed(p.B, p.K, *output.shape[1:], dtype=dtype)
    call, definition = bound(MAX, backend, dtype), reference(MAX)
    for scale in (None, mixed(*output.shape, dtype=dtype)):
        expected = definition(r, index, scale, list(p.S))
        for changed in layouts((r, index, scale, list(p.S))):
            assert_close(call(*changed), expected)


def arguments(op: str, p: Pool, dtype: torch.dtype) -> tuple[Any, ...]:
    """Of any of the operations, where a map of the pool's size arrives."""
    kernel, stride, padding, dilation = p.lists()
    x = torch.randint(-2, 2, (p.B, p.C, *p.S)).to(dtype)
    output, index = max_pool(p, x)
    r, scale = mixed(p.B, p.K, *output.shape[1:], dtype=dtype), mixed(*output.shape, dtype=dtype)
    rest: dict[str, tuple[Any, ...]] = {
        MAX: (index, scale, list(p.S)),
        TIES: (x, output, scale, kernel, stride, padding, dilation),
        AVG: (scale, list(p.S), kernel, stride, padding, p.ceil_mode, True, None),
        ADAPTIVE: (scale, list(p.S)),
    }
    return r, *rest[op]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "backend"), [(op, backend) for op in ALL for backend in backends(op)])
def test_strided_first_axes(op, backend, dtype):
    r, *rest = arguments(op, Pool((6, 8), C=5), dtype)
    one = r[:, :1].expand(-1, 4, -1, -1, -1)
    targets_first = r.transpose(0, 1).contiguous().transpose(0, 1)
    for flow in (r[:, ::2], r[:, 1:], one, targets_first, channels_last(2)(r)[:, ::2], channels_last(2)(one)):
        assert_close(bound(op, backend, dtype)(flow, *rest), reference(op)(flow, *rest))


@pytest.mark.parametrize("op", ALL)
def test_the_result_has_the_memory_order_of_the_relevance(op):
    call, given = bound(op, "cpu", torch.float32), arguments(op, Pool((9, 7), kernel=3, padding=1, C=21), torch.float32)
    last = (channels_last(2), channels_last(1))
    for others in (same, last[1]):
        assert call(*relayouts(given, same, others)).is_contiguous()
        assert call(*relayouts(given, last[0], others)).movedim(2, -1).is_contiguous()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("p", [Pool((9, 7), kernel=3, padding=1, C=67, K=9), Pool((31,), kernel=3, C=5, K=9, B=1)])
@pytest.mark.parametrize("op", ALL)
def test_blocks_of_targets_change_no_bit(op, p, last):
    r, *rest = arguments(op, p, torch.float32)
    if last:
        r, *rest = relayouts((r, *rest), channels_last(2), channels_last(1))
    call = bound(op, "cpu", torch.float32)
    whole = call(r, *rest)
    for size in (1, 2, 4):
        assert torch.equal(torch.cat([call(block, *rest) for block in r.split(size, 1)], 1), whole)


@pytest.fixture(params=extension().available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    compiled = extension()
    before = compiled.isa()
    compiled.set_isa(request.param)
    yield request.param
    compiled.set_isa(before)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ALL)
def test_every_instruction_set(op, dtype):
    for p in (Pool((13, 11), kernel=3, padding=1, C=37), Pool((5, 4, 6), C=7), Pool((29,), kernel=3, stride=1, C=3)):
        given = arguments(op, p, dtype)
        for changed in layouts(given):
            assert_close(bound(op, "cpu", dtype)(*changed), reference(op)(*given))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("op", ALL)
def test_nan_reaches_nothing_but_what_its_window_holds(op, last):
    r, *rest = arguments(op, Pool((8, 6), C=21), torch.float32)
    call = bound(op, "cpu", torch.float32)
    expected = call(r, *rest)
    r[1, 1, 3, 2, 1] = torch.nan
    changed = relayouts((r, *rest), channels_last(2), channels_last(1)) if last else (r, *rest)
    hit = torch.zeros_like(expected, dtype=torch.bool)
    hit[1, 1, 3, 4:6, 2:4] = True
    got = call(*changed)
    assert got[hit].isnan().any()
    assert torch.equal(got[~hit], expected[~hit])


@pytest.mark.parametrize("backend", backends(MAX))
def test_max_adds_where_all_windows_have_one_winner(backend):
    index = torch.full((1, 1, 3, 3), 4)
    result = bound(MAX, backend, torch.float64)(torch.ones(1, 2, 1, 3, 3).double(), index, None, [3, 3])
    assert result[:, :, 0].flatten(2).tolist() == [[[0.0] * 4 + [9.0] + [0.0] * 4] * 2]


@pytest.mark.parametrize("last", [False, True])
def test_max_of_nothing_and_of_much(last):
    change = (channels_last(2), channels_last(1)) if last else (same, same)
    call = bound(MAX, "cpu", torch.float32)
    for B, K, C, out, S in ((2, 3, 0, 2, 4), (2, 3, 2, 0, 4), (2, 3, 2, 0, 0), (0, 0, 0, 0, 0), (1, 17, 16, 96, 192)):
        index = torch.randint(0, max(S * S, 1), (B, C, out, out))
        arguments = relayouts((torch.randn(B, K, C, out, out), index, torch.rand(B, C, out, out), [S, S]), *change)
        assert_close(call(*arguments), reference(MAX)(*arguments))
    with pytest.raises(IndexError, match=r"index must be in \[0, 0\)"):
        call(torch.ones(1, 1, 2, 1, 1), torch.zeros(1, 2, 1, 1, dtype=torch.int64), None, [0, 3])


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(TIES))
@pytest.mark.parametrize("p", POOLS, ids=str)
def test_ties_equals_reference(p, backend, dtype):
    x = torch.randint(-2, 2, (p.B, p.C, *p.S)).to(dtype)
    output, _ = max_pool(p, x)
    r = mixed(p.B, p.K, *output.shape[1:], dtype=dtype)
    for scale in (None, mixed(*output.shape, dtype=dtype)):
        expected = reference(TIES)(r, x, output, scale, *p.lists())
        for changed in layouts((r, x, output, scale)):
            assert_close(bound(TIES, backend, dtype)(*changed, *p.lists()), expected)


@pytest.mark.parametrize("last", [False, True])
def test_padding_never_ties(last):
    x = torch.full((1, 2, 2, 2), -torch.inf)
    output = torch.full((1, 2, 2, 2), -torch.inf)
    given = (torch.ones(1, 3, 2, 2, 2), x, output, None, [2, 2], [2, 2], [1, 1], [1, 1])
    if last:
        given = relayouts(given, channels_last(2), channels_last(1))
    assert torch.equal(bound(TIES, "cpu", torch.float32)(*given), torch.ones(1, 3, 2, 2, 2))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("op", [TIES, AVG, ADAPTIVE])
def test_of_nothing(op, last):
    change = (channels_last(2), channels_last(1)) if last else (same, same)
    for B, K, C, out, S in ((2, 3, 0, 2, 4), (2, 0, 3, 2, 4), (0, 2, 3, 2, 4), (2, 3, 2, 0, 4), (2, 3, 2, 2, 0)):
        r, y, x = torch.randn(B, K, C, out, out), torch.rand(B, C, out, out), torch.rand(B, C, S, S)
        geometry = ([2, 2], [2, 2], [0, 0])
        rest = {
            TIES: (x, y, y, *geometry, [1, 1]),
            AVG: (y, [S, S], *geometry, False, True, None),
            ADAPTIVE: (y, [S, S]),
        }
        result = bound(op, "cpu", torch.float32)(*relayouts((r, *rest[op]), *change))
        assert result.shape == (B, K, C, S, S)
        assert not result.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(AVG))
@pytest.mark.parametrize(("p", "include", "divisor"), AVERAGES, ids=str)
def test_avg_equals_reference(p, include, divisor, backend, dtype):
    kernel, stride, padding, _ = p.lists()
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(p.S)]
    shape = pool(torch.zeros(1, 1, *p.S), kernel, stride, padding, p.ceil_mode).shape[2:]
    r = mixed(p.B, p.K, p.C, *shape, dtype=dtype)
    rest = (list(p.S), kernel, stride, padding, p.ceil_mode, include, divisor)
    for scale in (None, mixed(p.B, p.C, *shape, dtype=dtype)):
        expected = reference(AVG)(r, scale, *rest)
        for changed in layouts((r, scale)):
            assert_close(bound(AVG, backend, dtype)(*changed, *rest), expected)
    assert_close(functional.pool_avg_relevance(r, None, *rest), reference(AVG)(r, None, *rest))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(ADAPTIVE))
@pytest.mark.parametrize(
    ("out", "S"),
    [((1, 1), (7, 5)), ((3, 2), (7, 5)), ((7, 5), (7, 5)), ((4, 4), (3, 2)), ((3,), (7,)), ((1, 2, 3), (2, 5, 4))],
)
def test_adaptive_avg_equals_reference(out, S, backend, dtype):
    for B, K in ((2, 3), (1, 1), (0, 2), (2, 0)):
        r = mixed(B, K, 3, *out, dtype=dtype)
        for scale in (None, mixed(B, 3, *out, dtype=dtype)):
            expected = reference(ADAPTIVE)(r, scale, list(S))
            for changed in layouts((r, scale)):
                assert_close(bound(ADAPTIVE, backend, dtype)(*changed, list(S)), expected)
        result = functional.pool_adaptive_avg_relevance(r, None, S)
        assert result.is_contiguous()
        assert B == 0 or K == 0 or result.data_ptr() != r.data_ptr()


def test_public_functions():
    x = torch.randn(2, 3, 7, 5)
    output, index = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    r, scale = torch.randn(2, 4, *output.shape[1:]), torch.randn_like(output)
    for backend in ("auto", "reference", "torch", "cpu"):
        assert_close(
            functional.pool_max_relevance(r, index, scale, [7, 5], backend=backend),
            reference(MAX)(r, index, scale, [7, 5]),
        )
        assert_close(
            functional.pool_ties_relevance(r, x, output, scale, 3, 2, 1, backend=backend),
            reference(TIES)(r, x, output, scale, [3, 3], [2, 2], [1, 1], [1, 1]),
        )


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
