"""The CUDA kernels of pools, run on the CPU by the emulator, against the definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.aten import pool
from fastlrp.backends.extension import extension
from tests.cuda.emulated import ORDERS, emulated, order
from tests.fixtures import poisoned, seeded  # noqa: F401
from tests.ops.cases import (
    TOLERANCE,
    channels_last,
    few_layouts,
    in_dtypes,
    layouts,
    mixed,
    reference,
    relayouts,
    same,
    widened,
)
from tests.ops.pools import ADAPTIVE, ALL, AVG, COUNTS, MAX, POOLS, TIES, Pool, arguments, max_pool

# Channels that fill whole vectors in every dtype too.
EVERY = [*POOLS, *(replace(p, C=16) for p in POOLS if p.C == 3 and p.K > 0)]
AVERAGES = [
    (p, *count)
    for number, p in enumerate(p for p in EVERY if p.dilation == 1)
    for count in (COUNTS if p.padding or p.ceil_mode else (COUNTS[0], COUNTS[2])[: 1 + (number % 4 == 0)])
]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAST = (channels_last(2), channels_last(1))
ADAPTIVES = [
    ((1, 1), (7, 5)), ((3, 2), (7, 5)), ((7, 5), (7, 5)), ((4, 4), (3, 2)), ((3,), (7,)), ((1, 2, 3), (2, 5, 4)),
]  # fmt: skip


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def bound_of(op: str, given: tuple[Any, ...], exact: Tensor) -> float:
    """For 16 bits twice the error of PyTorch's own operations; else that of the other backends."""
    dtype = given[0].dtype
    if dtype in TOLERANCE:
        return TOLERANCE[dtype]
    return 2 * error(getattr(pool, op)(*given), exact)


def check(op: str, given: tuple[Any, ...], rest: tuple[Any, ...]) -> None:
    """Equal to the definition in every memory order of the tensors in ``given``."""
    exact = reference(op)(*widened(given), *rest)
    bound = bound_of(op, (*given, *rest), exact)
    for changed in layouts(given) if given[0].dtype == torch.float32 else few_layouts(given):
        got = getattr(emulated(), op)(*changed, *rest)
        assert got.shape == exact.shape
        assert got.dtype == given[0].dtype
        assert exact.numel() == 0 or error(got, exact) <= bound


@pytest.mark.parametrize(("p", "dtype"), in_dtypes(EVERY, DTYPES), ids=str)
def test_max_equals_reference(p, dtype):
    output, index = max_pool(p, mixed(p.B, p.C, *p.S, dtype=dtype))
    r = mixed(p.B, p.K, *output.shape[1:], dtype=dtype)
    for scale in (None, mixed(*output.shape, dtype=dtype)):
        check(MAX, (r, index, scale), (list(p.S),))


@pytest.mark.parametrize(("p", "dtype"), in_dtypes(EVERY, DTYPES), ids=str)
def test_ties_equals_reference(p, dtype):
    x = torch.randint(-2, 2, (p.B, p.C, *p.S)).to(dtype)
    output, _ = max_pool(p, x)
    r = mixed(p.B, p.K, *output.shape[1:], dtype=dtype)
    for scale in (None, mixed(*output.shape, dtype=dtype)):
        check(TIES, (r, x, output, scale), p.lists())


@pytest.mark.parametrize(("case", "dtype"), in_dtypes(AVERAGES, DTYPES), ids=str)
def test_avg_equals_reference(case, dtype):
    p, include, divisor = case
    kernel, stride, padding, _ = p.lists()
    forward = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(p.S)]
    shape = forward(torch.zeros(1, 1, *p.S), kernel, stride, padding, p.ceil_mode).shape[2:]
    r = mixed(p.B, p.K, p.C, *shape, dtype=dtype)
    for scale in (None, mixed(p.B, p.C, *shape, dtype=dtype)):
        check(AVG, (r, scale), (list(p.S), kernel, stride, padding, p.ceil_mode, include, divisor))


@pytest.mark.parametrize(("sizes", "dtype"), in_dtypes(ADAPTIVES, DTYPES), ids=str)
def test_adaptive_avg_equals_reference(sizes, dtype):
    out, S = sizes
    for B, K, C in ((2, 3, 3), (1, 1, 16), (0, 2, 3), (2, 0, 3)):
        r = mixed(B, K, C, *out, dtype=dtype)
        for scale in (None, mixed(B, C, *out, dtype=dtype)):
            check(ADAPTIVE, (r, scale), (list(S),))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ALL)
def test_strided_first_axes_and_alignment(op, dtype):
    for C in (5, 16):
        r, *rest = arguments(op, Pool((6, 8), C=C), dtype)
        last = [LAST[1](a) if isinstance(a, Tensor) else a for a in rest]
        one = r[:, :1].expand(-1, 4, -1, -1, -1)
        targets_first = r.transpose(0, 1).contiguous().transpose(0, 1)
        # Channels innermost, but not every sample or not every target begins at a multiple of 16 bytes.
        n = 12 * C
        memory = [torch.full(size, torch.nan, dtype=dtype) for size in ((2, 8, n + 1), (2, 3 * n + 1), (6 * n + 1,))]
        parts = (memory[0][:, :3, :n], memory[1][:, :-1], memory[2][1:])
        odd = [part.view(2, 3, 3, 4, C).movedim(-1, 2).copy_(r) for part in parts]
        for flow in (r[:, ::2], r[:, 1:], one, targets_first, LAST[0](r)[:, ::2], LAST[0](one), *odd):
            exact = reference(op)(*widened((flow, *rest)))
            for others in (rest, last):
                got = getattr(emulated(), op)(flow, *others)
                assert error(got, exact) <= bound_of(op, (flow, *rest), exact)


@pytest.mark.parametrize("op", ALL)
def test_the_result_has_the_memory_order_of_the_relevance(op):
    call = getattr(emulated(), op)
    given = arguments(op, Pool((9, 7), kernel=3, padding=1, C=20), torch.float32)
    for others in (same, LAST[1]):
        assert call(*relayouts(given, same, others)).is_contiguous()
        assert call(*relayouts(given, LAST[0], others)).movedim(2, -1).is_contiguous()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("p", [Pool((9, 7), kernel=3, padding=1, C=8, K=9), Pool((31,), kernel=3, C=5, K=9, B=1)])
@pytest.mark.parametrize("op", ALL)
def test_blocks_of_targets_and_orders_of_threads_change_no_bit(op, p, last):
    r, *rest = arguments(op, p, torch.float32)
    if last:
        r, *rest = relayouts((r, *rest), *LAST)
    call = getattr(emulated(), op)
    whole = call(r, *rest)
    for size in (1, 2, 5):
        assert torch.equal(torch.cat([call(block, *rest) for block in r.split(size, 1)], 1), whole)
    for name in ORDERS:
        with order(name, seed=1):
            assert torch.equal(call(r, *rest), whole)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("op", ALL)
def test_nan_reaches_nothing_but_what_its_window_holds(op, last):
    r, *rest = arguments(op, Pool((8, 6), C=20), torch.float32)
    call = getattr(emulated(), op)
    expected = call(r, *rest)
    r[1, 1, 3, 2, 1] = torch.nan
    changed = relayouts((r, *rest), *LAST) if last else (r, *rest)
    hit = torch.zeros_like(expected, dtype=torch.bool)
    hit[1, 1, 3, 4:6, 2:4] = True
    got = call(*changed)
    assert got[hit].isnan().any()
    assert torch.equal(got[~hit], expected[~hit])


@pytest.mark.parametrize("last", [False, True])
def test_nan_reaches_only_the_winners_of_its_window(last):
    x = torch.tensor([[3.0, 1.0], [3.0, 2.0]]).expand(1, 4, 2, 2).contiguous()
    given = (torch.full((1, 2, 4, 1, 1), torch.nan), x, x.amax((2, 3), True), None, [2, 2], [2, 2], [0, 0], [1, 1])
    got = emulated().pool_ties_relevance(*(relayouts(given, *LAST) if last else given))
    assert got[..., 0].isnan().all()
    assert not got[..., 1].any()


@pytest.mark.parametrize("op", ALL)
def test_launches_do_not_depend_on_the_targets(op):
    counts = set()
    for K in (1, 2, 33):
        before = emulated().launches()
        getattr(emulated(), op)(*arguments(op, Pool((6, 8), C=4, K=K), torch.float32))
        counts.add(emulated().launches() - before)
    assert counts == {{MAX: 3, TIES: 2, AVG: 1, ADAPTIVE: 1}[op]}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("last", [False, True])
def test_max_adds_in_the_order_of_outputs_whatever_the_index(last, name):
    """Lists of any length, in float32 bit for bit those of the CPU's kernel, which walks over the outputs."""
    cpu = extension().pool_max_relevance
    for inputs, outputs in ((1, 40), (3, 37), (24, 33), (50, 7)):
        index = torch.randint(0, inputs, (2, 5, outputs))
        index[0, 0] = 0
        given = (mixed(2, 3, 5, outputs, dtype=torch.float32), index, None, [inputs])
        if last:
            given = relayouts(given, *LAST)
        with order(name, seed=inputs):
            assert torch.equal(emulated().pool_max_relevance(*given), cpu(*given))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bad", [-1, 36, -(2**63), 2**62])
def test_max_drops_what_is_out_of_range(last, bad):
    r = torch.randn(2, 4, 3, 3, 3)
    index = torch.randint(0, 36, (2, 3, 3, 3))
    kept = r.clone()
    index[1, 2, 2, 2], kept[1, :, 2, 2, 2] = bad, 0
    expected = reference(MAX)(kept, index.clamp(0, 35), None, [6, 6])
    given = relayouts((r, index, None, [6, 6]), *LAST) if last else (r, index, None, [6, 6])
    assert error(emulated().pool_max_relevance(*given), expected.double()) <= 1e-6


@pytest.mark.parametrize("last", [False, True])
def test_max_of_nothing(last):
    change = LAST if last else (same, same)
    for B, K, C, out, S in ((2, 3, 0, 2, 4), (2, 3, 2, 0, 4), (2, 3, 2, 0, 0), (0, 0, 0, 0, 0), (2, 3, 2, 2, 0)):
        given = (torch.randn(B, K, C, out, out), torch.zeros(B, C, out, out).long(), torch.rand(B, C, out, out), [S, S])
        result = emulated().pool_max_relevance(*relayouts(given, *change))
        assert result.shape == (B, K, C, S, S)
        assert not result.any()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("op", [TIES, AVG, ADAPTIVE])
def test_of_nothing(op, last):
    change = LAST if last else (same, same)
    for B, K, C, out, S in ((2, 3, 0, 2, 4), (2, 0, 3, 2, 4), (0, 2, 3, 2, 4), (2, 3, 2, 0, 4), (2, 3, 2, 2, 0)):
        r, y, x = torch.randn(B, K, C, out, out), torch.rand(B, C, out, out), torch.rand(B, C, S, S)
        geometry = ([2, 2], [2, 2], [0, 0])
        rest: dict[str, tuple[Any, ...]] = {
            TIES: (x, y, y, *geometry, [1, 1]),
            AVG: (y, [S, S], *geometry, False, True, None),
            ADAPTIVE: (y, [S, S]),
        }
        result = getattr(emulated(), op)(*relayouts((r, *rest[op]), *change))
        assert result.shape == (B, K, C, S, S)
        assert not result.any()


@pytest.mark.parametrize("last", [False, True])
def test_padding_never_ties(last):
    lowest = torch.full((1, 2, 2, 2), -torch.inf)
    given = (torch.ones(1, 3, 2, 2, 2), lowest, lowest, None, [2, 2], [2, 2], [1, 1], [1, 1])
    if last:
        given = relayouts(given, *LAST)
    assert torch.equal(emulated().pool_ties_relevance(*given), torch.ones(1, 3, 2, 2, 2))


@pytest.mark.parametrize("S", [(340, 340), (680, 680)])
@pytest.mark.parametrize("op", ALL)
def test_threads_take_several_groups_of_targets(op, S):
    """Where a map gives many threads, or enough of them, each goes on to the next targets."""
    r, *rest = arguments(op, Pool(S, kernel=5, stride=4, B=1, C=1, K=9), torch.float32)
    exact = reference(op)(*widened((r, *rest)))
    assert error(getattr(emulated(), op)(r, *rest), exact) <= TOLERANCE[torch.float32]


def test_max_of_more_samples_than_lists_are_made_for():
    p = Pool((512, 1024), kernel=8, stride=8, B=3, C=4, K=1)
    r, *rest = arguments(MAX, p, torch.float32)
    before = emulated().launches()
    got = emulated().pool_max_relevance(*relayouts((r, *rest), *LAST))
    assert emulated().launches() - before == 9
    assert error(got, reference(MAX)(*widened((r, *rest)))) <= TOLERANCE[torch.float32]


def test_no_launch_waits_for_the_device():
    before = emulated().reads_on_host()
    for op in ALL:
        getattr(emulated(), op)(*arguments(op, Pool((6, 8), C=4), torch.float32))
    assert emulated().reads_on_host() == before


BIG = 2**31


@pytest.mark.parametrize(
    ("op", "change", "kind", "message"),
    [
        (MAX, {1: torch.zeros(2, 3, 3, 3).int()}, TypeError, "index must be Long, got Int"),
        (MAX, {1: torch.zeros(2, 3, 3, 4).long()}, ValueError, r"index must have shape \[2, 3, 3, 3\], got \[2, 3, 3,"),
        (MAX, {2: torch.zeros(2, 3, 3)}, ValueError, r"scale must have shape \[2, 3, 3, 3\], got \[2, 3, 3\]"),
        (MAX, {2: torch.zeros(2, 3, 3, 3).double()}, TypeError, "scale must be Float, got Double"),
        (MAX, {3: [6]}, ValueError, r"input_size must have one entry per spatial axis of relevance \(2\), got \[6\]"),
        (MAX, {3: [-6, 6]}, ValueError, r"input_size must not be negative, got \[-6, 6\]"),
        (MAX, {3: [BIG, 6]}, ValueError, r"input_size must be below 2\^31, got \[2147483648, 6\]; use backend='torch'"),
        (MAX, {3: [40000, 40000]}, ValueError, r"input_size must leave fewer than 2\^31 elements for one sample and"),
        (MAX, {0: torch.zeros(2, 4, 3)}, ValueError, r"relevance must have shape \(B, K, C, \*S'\), got \[2, 4, 3\]"),
        (
            MAX,
            {0: torch.zeros(2, 4, 3, 3, 3).int()},
            TypeError,
            "relevance must be float16, bfloat16, float32 or float",
        ),
        (MAX, {0: torch.zeros(2, 4, 3, 3, 3, device="meta")}, RuntimeError, "relevance must be a dense CUDA tensor"),
        (
            MAX,
            {1: torch.zeros(2, 3, 3, 3, device="meta").long()},
            RuntimeError,
            "index must be a dense CUDA tensor, got Strided on meta",
        ),
        (TIES, {1: torch.zeros(2, 3, 6)}, ValueError, r"input must have shape \(B, C, \*S\) with as many axes in S"),
        (TIES, {1: torch.zeros(2, 2, 6, 6)}, ValueError, r"input must have shape \[2, 3, 6, 6\], got \[2, 2, 6, 6\]"),
        (TIES, {1: torch.zeros(2, 3, 6, 6).double()}, TypeError, "input must be Float, got Double"),
        (TIES, {2: torch.zeros(2, 3, 3, 4)}, ValueError, r"output must have shape \[2, 3, 3, 3\], got \[2, 3, 3, 4\]"),
        (TIES, {4: [2]}, ValueError, r"kernel_size must have one entry per spatial axis of relevance \(2\), got \[2\]"),
        (TIES, {4: [2, 0]}, ValueError, r"kernel_size must be positive, got \[2, 0\]"),
        (TIES, {5: [0, 2]}, ValueError, r"stride must be positive, got \[0, 2\]"),
        (TIES, {6: [0, -1]}, ValueError, r"padding must not be negative, got \[0, -1\]"),
        (TIES, {7: [1, BIG]}, ValueError, r"dilation must be below 2\^31, got \[1, 2147483648\]"),
        (
            AVG,
            {1: torch.zeros(2, 3, 3, 3, device="meta")},
            RuntimeError,
            "scale must be a dense CUDA tensor, got Strided on meta",
        ),
        (AVG, {3: [2**62, 2]}, ValueError, r"kernel_size must be below 2\^31, got \[4611686018427387904, 2\]"),
        (AVG, {8: 0}, ValueError, "divisor_override must not be 0; None divides by the size of the window"),
        (ADAPTIVE, {2: [6, -6]}, ValueError, r"input_size must not be negative, got \[6, -6\]"),
        (
            ADAPTIVE,
            {0: torch.zeros(2, 4, 3, 1, 2, 3, 3), 1: None, 2: [6, 6, 6, 6]},
            ValueError,
            r"relevance must have one to three spatial axes, got \[2, 4, 3, 1, 2, 3, 3\]",
        ),
    ],
)
def test_errors(op, change, kind, message):
    given = list(arguments(op, Pool((6, 6), K=4), torch.float32))
    for place, value in change.items():
        given[place] = value
    with pytest.raises(kind, match=f"{op}: {message}"):
        getattr(emulated(), op)(*given)
