from __future__ import annotations

from collections.abc import Iterator

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
from tests.ops.pools import ADAPTIVE, ALL, AVERAGES, AVG, MAX, POOLS, TIES, Pool, arguments, max_pool


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
