"""The CUDA kernels that hold relevance for alive neurons, emulated: bit for bit what the CPU's own functions give.

float16 and bfloat16, which the CPU does not have, are sums in float32 that are rounded once.
"""

from __future__ import annotations

import itertools
import zlib

import pytest
import torch
from torch.nn import functional as F

from fastlrp.backends.extension import extension
from tests.cuda.emulated import ORDERS, emulated, order
from tests.fixtures import one_thread, poisoned, seeded  # noqa: F401
from tests.ops.cases import channels_last, in_dtypes, reversed_memory, same, with_gaps

CPU = extension()
WIDE = {torch.float32: torch.float32, torch.float64: torch.float64, torch.float16: torch.float32,
        torch.bfloat16: torch.float32}  # fmt: skip
DTYPES = tuple(WIDE)
SIZES = [(2, 5, 7, 6), (1, 1), (3, 17), (37, 3), (0, 3, 4), (2, 0, 3), (2, 3, 0), (2, 131, 3, 2), (1, 64, 1, 1),
         (2, 3, 11), (1, 4, 3, 5, 2), (3, 70, 1, 5), (2, 1, 7, 11), (1, 33, 67)]  # fmt: skip
LAYOUTS = [same, channels_last(1), with_gaps, reversed_memory]
COUNTS = (1, 8, 15, 17, 33, 70)


EVERY_ORDER = pytest.mark.parametrize("gpu", ORDERS, indirect=True)
"""Of the threads: for tests of what threads hand each other."""


@pytest.fixture(autouse=True)
def gpu(request):
    """The kernels, whose threads run in the order that is asked for, else in one of them by the name of the test."""
    name = getattr(request, "param", ORDERS[zlib.crc32(request.node.name.encode()) % len(ORDERS)])
    with order(name, seed=7):
        yield emulated()


def alive(*size, density, dtype):
    return torch.randn(size).to(dtype) * (torch.rand(size) < density)


def wide(value):
    """Tensors in a dtype that the CPU has; anything that holds them likewise."""
    if isinstance(value, torch.Tensor):
        return value.to(WIDE.get(value.dtype, value.dtype))
    return type(value)(map(wide, value)) if isinstance(value, (list, tuple)) else value


def pattern_of(*masks):
    return CPU.sparse_pattern([(wide(mask), None) for mask in masks])


def rows_of(register, pattern):
    """NaN in the lanes behind the last target."""
    values = CPU.sparse_from_dense(wide(register), pattern).to(register.dtype)
    values[:, register.shape[1] :] = torch.nan
    return values, None, *pattern


def same_bits(found, expected):
    """Equal, the signs of zeros too."""
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
        if found.is_floating_point():
            assert torch.equal(found.signbit(), expected.signbit())
        return
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        same_bits(one, other)


def reads(gpu, call):
    """What a call gives, and how often it has waited for the device once it knows the patterns that it is given."""
    call()
    before = gpu.reads_on_host()
    return call(), gpu.reads_on_host() - before


# Patterns


@pytest.mark.parametrize(("size", "dtype"), in_dtypes(SIZES, DTYPES), ids=str)
def test_pattern(gpu, size, dtype):
    for change, density in itertools.product(LAYOUTS, (0.4,) if dtype is torch.float64 else (0.0, 0.4, 1.0)):
        mask = alive(*size, density=density, dtype=dtype)
        found, waits = reads(gpu, lambda c=change, m=mask: gpu.sparse_pattern([(c(m), None)]))
        same_bits(found, pattern_of(mask))
        assert waits == (1 if mask.numel() else 0)


@EVERY_ORDER
def test_pattern_of_several_masks(gpu):
    """More than one launch takes, each in a memory order of its own, some with an index."""
    for size in ((2, 5, 7, 6), (1, 70, 3, 4), (2, 33, 9)):
        below = alive(*size[:2], 4, 3, density=0.05, dtype=torch.float64)
        index = torch.randint(12, size)
        masks = [(change(alive(*size, density=0.03, dtype=torch.float64)), None) for change in LAYOUTS]
        masks += [(one(below), other(index)) for one, other in itertools.product(LAYOUTS, repeat=2)]
        for count in (1, 5, 8, 9, len(masks)):
            same_bits(gpu.sparse_pattern(masks[-count:]), CPU.sparse_pattern(masks[-count:]))
        # With an index the mask may have another memory order, and more positions, than the pattern.
        same_bits(gpu.sparse_pattern(masks[::7]), CPU.sparse_pattern(masks[::7]))


def test_what_counts_as_zero(gpu):
    for dtype in DTYPES:
        tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        mask = torch.tensor([[0.0, -0.0, tiny, -tiny, torch.inf, torch.nan, -0.0]], dtype=dtype).repeat(1, 9)
        found = gpu.sparse_pattern([(mask, None)])[1]
        assert found.tolist() == [c for c in range(63) if c % 7 in (2, 3, 4, 5)], dtype


def test_pattern_of_expanded_and_negated_masks(gpu):
    mask = alive(2, 3, 4, 5, density=0.5, dtype=torch.float32)
    for part in (mask[:, :, :, :1], mask[:, :, :1], mask[:, :, :1, :1], mask[:, :1], mask[:1]):
        whole = part.expand(mask.shape)
        same_bits(gpu.sparse_pattern([(whole, None)]), pattern_of(whole))
    same_bits(gpu.sparse_pattern([(torch._neg_view(mask), None)]), pattern_of(mask))


@EVERY_ORDER
def test_pattern_of_many_positions(gpu):
    for size in ((2, 1, 61, 71), (1, 40, 3000)):
        mask = alive(*size, density=0.3, dtype=torch.float32)
        same_bits(gpu.sparse_pattern([(mask, None)]), pattern_of(mask))


# Rows from and to dense registers


@pytest.mark.parametrize(("size", "dtype"), in_dtypes(SIZES, DTYPES), ids=str)
def test_there_and_back(gpu, size, dtype):
    for count, density in [*((count, 0.4) for count in COUNTS), (33, 0.0), (33, 1.0)]:
        mask = alive(*size, density=density, dtype=dtype)
        pattern = pattern_of(mask)
        register = torch.randn(size[0], count, *size[1:]).to(dtype).masked_fill(mask.unsqueeze(1) == 0, torch.nan)
        expected = CPU.sparse_from_dense(wide(register), pattern).to(dtype)
        for change in (same, channels_last(2), with_gaps, reversed_memory) if count == 33 else (same,):
            found, waits = reads(gpu, lambda c=change, r=register, p=pattern: gpu.sparse_from_dense(c(r), p))
            same_bits(found, expected)
            assert waits == 0
        rows = rows_of(register, pattern)
        found, waits = reads(gpu, lambda r=rows, n=count: gpu.sparse_to_dense(r, size[0], n, list(size[1:])))
        same_bits(found, CPU.sparse_to_dense(wide(rows), size[0], count, list(size[1:])).to(dtype))
        assert waits == 0
        assert found.numel() == 0 or found.movedim(2, -1).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_narrowed_and_moved_rows(gpu, dtype):
    """Some of the targets, aligned or not, and rows elsewhere in a wider table."""
    pattern = pattern_of(alive(2, 35, 3, 4, density=0.5, dtype=torch.float32))
    register = torch.randn(2, 60, 35, 3, 4).to(dtype)
    values = rows_of(register, pattern)[0]
    place = torch.randperm(len(values) + 9)[: len(values)]
    for start, count, spare in ((0, 19, 4), (16, 33, 4), (3, 19, 4), (8, 17, 4), (1, 59, 3), (59, 1, 5)):
        table = torch.full((len(values) + 9, 60 + spare), torch.nan, dtype=dtype)
        table[place, :60] = values[:, :60]
        table[:, :start] = table[:, start + count :] = torch.nan
        for source, rows in ((values, None), (table, place)):
            parts = (source[:, start : start + count], rows, *pattern)
            expected = CPU.sparse_to_dense(wide(parts), 2, count, [35, 3, 4]).to(dtype)
            same_bits(gpu.sparse_to_dense(parts, 2, count, [35, 3, 4]), expected)
            found = gpu.sparse_sum([(*parts, None)], pattern, 2, count)
            same_bits(found, gpu.sparse_from_dense(expected, pattern))
            starts, picked = torch.arange(len(values) + 1), torch.arange(len(values))
            same_bits(gpu.sparse_gather_sum(parts, starts, picked, count), found)


@EVERY_ORDER
def test_few_targets_of_expanded_registers(gpu):
    pattern = pattern_of(alive(2, 5, 4, 3, density=0.5, dtype=torch.float32))
    for shape in ((2, 1, 5, 4, 3), (1, 9, 5, 4, 3), (2, 9, 1, 4, 3), (2, 9, 5, 1, 1), (2, 9, 5, 4, 1)):
        register = torch.randn(shape).expand(2, 9, 5, 4, 3)
        same_bits(gpu.sparse_from_dense(register, pattern), CPU.sparse_from_dense(register, pattern))
    register = torch._neg_view(torch.randn(2, 9, 5, 4, 3))
    same_bits(gpu.sparse_from_dense(register, pattern), CPU.sparse_from_dense(register, pattern))


def test_no_targets(gpu):
    pattern = pattern_of(alive(2, 5, 4, 3, density=0.5, dtype=torch.float32))
    rows = gpu.sparse_from_dense(torch.zeros(2, 0, 5, 4, 3), pattern)
    assert rows.shape == (len(pattern[1]), 0)
    assert gpu.sparse_to_dense((rows, None, *pattern), 2, 0, [5, 4, 3]).shape == (2, 0, 5, 4, 3)
    assert gpu.sparse_sum([(rows, None, *pattern, None)], pattern, 2, 0).shape == rows.shape
    starts = torch.arange(len(rows) + 1)
    assert gpu.sparse_gather_sum((rows, None, *pattern), starts, starts[:-1], 0).shape == rows.shape


# Sums


@pytest.mark.parametrize(("size", "dtype"), in_dtypes(SIZES, DTYPES), ids=str)
def test_sum(gpu, size, dtype):
    """Sources with patterns of their own or the result's, with and without factors; none of one may have a neuron."""
    for count, number in ((1, 1), (7, 2), (33, 4)):
        wanted = pattern_of(alive(*size, density=0.6, dtype=dtype))
        for change in LAYOUTS:
            sources = []
            for i in range(number):
                theirs = wanted if i == 2 else pattern_of(alive(*size, density=(0.5, 0.0, 1.0, 0.1)[i], dtype=dtype))
                register = torch.randn(size[0], count, *size[1:]).to(dtype)
                factor = None if i in (1, 2) else change(alive(*size, density=0.9, dtype=dtype))
                sources.append((*rows_of(register, theirs), factor))
            found, waits = reads(gpu, lambda s=sources, w=wanted, n=count: gpu.sparse_sum(s, w, size[0], n))
            expected = CPU.sparse_sum(wide(sources), wanted, size[0], count)
            same_bits(found[:, :count], expected[:, :count].to(dtype))
            assert not found[:, count:].any()
            assert waits == 0


@EVERY_ORDER
def test_sum_of_more_sources_than_one_launch_takes(gpu):
    for dtype in (torch.float32, torch.float64):
        sources = []
        for _ in range(35):
            theirs = pattern_of(alive(2, 5, 3, 4, density=0.5, dtype=dtype))
            sources.append(
                (*rows_of(torch.randn(2, 19, 5, 3, 4, dtype=dtype), theirs), torch.randn(2, 5, 3, 4).to(dtype))
            )
        wanted = pattern_of(torch.ones(2, 5, 3, 4))
        before = gpu.launches()
        found = gpu.sparse_sum(sources, wanted, 2, 19)
        assert gpu.launches() == before + 2
        same_bits(found[:, :19], CPU.sparse_sum(sources, wanted, 2, 19)[:, :19])


def test_sum_with_expanded_and_negated_factors(gpu):
    pattern = pattern_of(torch.ones(2, 3, 4, 5))
    rows = rows_of(torch.randn(2, 7, 3, 4, 5), pattern)
    for shape in ((2, 3, 1, 1), (2, 3, 4, 1), (2, 3, 1, 5), (1, 1, 4, 5)):
        factor = torch.randn(shape).expand(2, 3, 4, 5)
        for given in (factor, torch._neg_view(factor.contiguous())):
            same_bits(*(k.sparse_sum([(*rows, given)], pattern, 2, 7)[:, :7] for k in (gpu, CPU)))


# Pools

# Size of the input; kernel, stride, padding, dilation; ceil_mode.
POOLS = {
    "tiles": ((2, 5, 7, 6), 2, 2, 0, 1, False),
    "overlapping": ((2, 40, 7, 6), 3, 1, 1, 1, False),
    "gaps": ((2, 3, 8, 9), 2, 3, 0, 1, False),
    "ceil": ((2, 33, 8, 9), (3, 2), 2, 1, 1, True),
    "ceil_beyond": ((2, 3, 7, 7), (2, 3), (3, 2), 1, (2, 1), True),
    "dilated": ((2, 3, 8, 9), 3, 1, 1, 2, False),
    "dilated_and_strided": ((2, 3, 13, 11), 3, (2, 4), 1, (3, 2), False),
    "everything": ((2, 70, 7, 6), (7, 6), 1, 0, 1, False),
    "identity": ((2, 5, 4, 3), 1, 1, 0, 1, False),
    "line": ((3, 4, 11), 3, 2, 0, 1, False),
    "dilated_line": ((3, 4, 11), 4, 1, 2, 3, False),
    "volume": ((2, 3, 4, 3, 5), 2, 1, 0, 1, False),
    "wide_volume": ((2, 3, 4, 3, 5), (1, 3, 2), (2, 1, 2), (0, 1, 1), 1, True),
    "no_samples": ((0, 3, 4, 4), 2, 2, 0, 1, False),
    "no_channels": ((2, 0, 4, 4), 2, 2, 0, 1, False),
    "more_than_one_scan": ((1, 2, 41, 53), 3, 2, 1, 1, False),
}
POOL_OF = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}


def pooled(name):
    """Size of a pool's input, winners, and the window as the kernels take it."""
    size, *window, ceil_mode = POOLS[name]
    x = torch.randn(size).clamp(min=0)  # Ties at zero.
    if x.numel() == 0:
        index = torch.zeros(*size[:2], *[n // 2 for n in size[2:]], dtype=torch.long)
    else:
        _, index = POOL_OF[len(size)](x, *window, ceil_mode=ceil_mode, return_indices=True)
    return size, index, [list(size[2:]), *([n] * (len(size) - 2) if isinstance(n, int) else list(n) for n in window)]


@pytest.mark.parametrize("name", POOLS)
def test_winners(gpu, name):
    for change, density in itertools.product(LAYOUTS, (0.0, 0.3, 1.0)):
        size, index, window = pooled(name)
        above = pattern_of(alive(*index.shape, density=density, dtype=torch.float32))
        expected = CPU.sparse_winners(index, above, *window)
        found, waits = reads(gpu, lambda c=change, i=index, a=above, w=window: gpu.sparse_winners(c(i), a, *w))
        same_bits(found, expected)
        assert waits == (2 if torch.Size(size).numel() else 0)


@EVERY_ORDER
def test_winners_outside_their_window_are_left_out(gpu):
    index = torch.randint(-3, 99, (2, 5, 6, 6))
    above = pattern_of(torch.ones(index.shape))
    arguments = (index, above, [7, 9], [3, 3], [1, 1], [1, 0], [1, 1])
    same_bits(gpu.sparse_winners(*arguments), CPU.sparse_winners(*arguments))


@pytest.mark.parametrize(("name", "dtype"), in_dtypes(POOLS, DTYPES), ids=str)
def test_gather_sum(gpu, name, dtype):
    for count, density in ((1, 1.0), (33, 0.6), (70, 0.3), (16, 0.0)):
        size, index, window = pooled(name)
        above = pattern_of(alive(*index.shape, density=density, dtype=dtype))
        rows = rows_of(torch.randn(size[0], count, *index.shape[1:]).to(dtype), above)
        _, channels, starts, taken = CPU.sparse_winners(index, above, *window)
        found, waits = reads(gpu, lambda r=rows, s=starts, t=taken, n=count: gpu.sparse_gather_sum(r, s, t, n))
        expected = CPU.sparse_gather_sum(wide(rows), starts, taken, count).to(dtype)
        same_bits(found[:, :count], expected[:, :count])
        assert not found[:, count:].any()
        assert len(found) == len(channels)
        assert waits == 0


@pytest.mark.parametrize("name", [name for name, pool in POOLS.items() if pool[4] == 1])
def test_windows(gpu, name):
    size, index, (inputs, *window, _) = pooled(name)
    for above, below in ((1.0, 1.0), (0.4, 1.0), (1.0, 0.4), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0)):
        over = pattern_of(alive(*index.shape, density=above, dtype=torch.float32))
        wanted = pattern_of(alive(*size, density=below, dtype=torch.float32))
        arguments = (wanted, over, size[0], inputs, list(index.shape[2:]), *window)
        found, waits = reads(gpu, lambda a=arguments: gpu.sparse_windows(*a))
        same_bits(found, CPU.sparse_windows(*arguments))
        overlapping = any(kernel > stride for kernel, stride in zip(*window[:2], strict=True))
        assert waits == 1 + overlapping
        if not overlapping and len(found[1]) == len(wanted[1]):
            assert found[0].data_ptr() == wanted[0].data_ptr()  # Nothing is written down again.


@EVERY_ORDER
def test_random_pools(gpu):
    """Geometry at random: what the CPU finds, or the same refusal."""
    for seed in range(40):
        torch.manual_seed(seed)
        axes = 1 + seed % 3
        number = lambda low, high, n=axes: torch.randint(low, high, (n,)).tolist()  # noqa: E731
        inputs, outputs, kernel, stride = number(1, 9), number(1, 7), number(1, 5), number(1, 5)
        padding, dilation, channels = number(0, 3), number(1, 4), int(torch.randint(1, 50, ()))
        over = pattern_of(alive(2, channels, *outputs, density=0.6, dtype=torch.float32))
        index = torch.randint(torch.Size(inputs).numel(), (2, channels, *outputs))
        arguments = (index, over, inputs, kernel, stride, padding, dilation)
        same_bits(gpu.sparse_winners(*arguments), CPU.sparse_winners(*arguments))
        wanted = pattern_of(alive(2, channels, *inputs, density=0.7, dtype=torch.float32))
        arguments = (wanted, over, 2, inputs, outputs, kernel, stride, padding)
        same_bits(gpu.sparse_windows(*arguments), CPU.sparse_windows(*arguments))
