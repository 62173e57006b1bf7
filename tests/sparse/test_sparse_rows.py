"""Patterns of alive neurons, and rows between patterns and dense tensors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastlrp.plan.compact import Compact, Pattern
from tests.ops.cases import channels_last, reversed_memory, same, with_gaps
from tests.sparse.cases import DTYPES, KERNELS, alive, assert_close, pattern_of, rows_of

SIZES = [(2, 5, 7, 6), (1, 1), (3, 17), (0, 3, 4), (2, 0, 3), (2, 3, 0), (2, 130, 3, 2), (1, 64, 1, 1), (2, 3, 11),
         (1, 4, 3, 5, 2), (3, 70, 1, 5)]  # fmt: skip
COUNTS = (1, 7, 8, 15, 16, 17, 32, 33, 64, 70, 100)
LAYOUTS = [same, channels_last(1), with_gaps, reversed_memory]
NAMES = ["contiguous", "last", "gaps", "reversed"]


def entries(mask):
    """Positions and channels of what is not zero, position by position: ``(B * prod(S), C)``."""
    flat = mask.movedim(1, -1).reshape(-1, mask.shape[1]) if mask.numel() else torch.zeros(0, 1)
    return (flat != 0).nonzero().unbind(1)


def compact_of(register, pattern):
    """With NaN in the lanes behind the last target."""
    return Compact(rows_of(register, pattern.tensors)[0], pattern, register.shape[1])


# Patterns


@pytest.mark.parametrize("change", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pattern(size, dtype, change, isa):
    for density in (0.0, 0.05, 0.5, 1.0):
        mask = alive(*size, density=density, dtype=dtype)
        found = Pattern.of(change(mask))
        positions, channels = entries(mask)
        counts = torch.bincount(positions, minlength=size[0] * torch.Size(size[2:]).numel())
        assert torch.equal(found.offsets, F.pad(counts.cumsum(0), (1, 0)))
        assert torch.equal(found.channels.long(), channels)
        assert (found.batch, found.sizes, found.entries) == (size[0], size[1:], len(channels))
        assert found.density == pytest.approx(len(channels) / max(1, mask.numel()))
        assert found.nbytes == 8 * len(found.offsets) + 4 * len(channels)


@pytest.mark.parametrize("change", LAYOUTS, ids=NAMES)
def test_pattern_of_several_masks(change, isa):
    """The union; a mask with an index has, at each position, the value at the position that the index names."""
    for size in ((2, 5, 7, 6), (1, 70, 3, 4), (3, 17), (2, 33, 9)):
        masks = [alive(*size, density=d, dtype=torch.float64) for d in (0.1, 0.0, 0.2)]
        found, expected = Pattern.of(*map(change, masks)), Pattern.of(sum(mask != 0 for mask in masks).double())
        assert torch.equal(found.offsets, expected.offsets)
        assert torch.equal(found.channels, expected.channels)
        if len(size) == 2:
            continue
        below = alive(*size[:2], 4, 3, density=0.3, dtype=torch.float64)
        index = torch.randint(12, size)
        picked = below.flatten(2).gather(2, index.flatten(2)).view(size)
        found = Pattern.of((change(below), change(index)), change(masks[0]))
        expected = Pattern.of(picked.abs() + masks[0].abs())
        assert found.sizes == size[1:]
        assert torch.equal(found.offsets, expected.offsets)
        assert torch.equal(found.channels, expected.channels)


def test_what_counts_as_zero(isa):
    mask = torch.tensor([[0.0, -0.0, 1e-45, -1e-45, torch.inf, torch.nan, -0.0]]).repeat(1, 9)
    for dtype in DTYPES:
        for change in (same, with_gaps):
            assert pattern_of(change(mask.to(dtype)))[1].remainder(7).unique(return_counts=True)[0].tolist() == [
                2,
                3,
                4,
                5,
            ]
            assert len(pattern_of(change(mask.to(dtype)))[1]) == 36


def test_pattern_of_expanded_and_negated_masks():
    mask = alive(2, 3, 4, 5, density=0.5, dtype=torch.float32)
    for part in (mask[:, :, :, :1], mask[:, :, :1], mask[:, :1], mask[:1]):
        whole = part.expand(mask.shape)
        for found, expected in zip(pattern_of(whole), pattern_of(whole.contiguous()), strict=True):
            assert torch.equal(found, expected), part.shape
    for found, expected in zip(pattern_of(torch._neg_view(mask)), pattern_of(mask), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_full_pattern(size):
    expected, found = Pattern.of(torch.ones(size)), Pattern.full(size[0], size[1:], torch.device("cpu"))
    assert torch.equal(found.offsets, expected.offsets)
    assert torch.equal(found.channels, expected.channels)
    assert found.channels.dtype == torch.int32


# Rows from and to dense registers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_there_and_back(size, dtype):
    for count in COUNTS:
        for density in (0.0, 0.4, 1.0):
            mask = alive(*size, density=density, dtype=dtype)
            register = torch.randn(size[0], count, *size[1:], dtype=dtype)
            expected = torch.where(mask.unsqueeze(1) != 0, register, 0.0)
            register = register.masked_fill(mask.unsqueeze(1) == 0, torch.nan)
            pattern = Pattern.of(mask)
            for change in (same, channels_last(2), with_gaps, reversed_memory):
                compact = Compact.of(change(register), pattern)
                lanes = -(-count // 16) * 16
                assert compact.values.shape == (pattern.entries, lanes)
                assert not compact.values[:, count:].any()
                assert compact.shape == register.shape
                assert torch.equal(compact.dense(), expected)
            assert torch.equal(compact_of(register, pattern).dense(), expected)


def test_expanded_registers():
    """As an average or a sum hands relevance down: the same number along an axis."""
    mask = alive(2, 3, 4, 5, density=0.5, dtype=torch.float32)
    register = torch.randn(2, 7, 3, 4, 5)
    for part in (register[..., :1], register[..., :1, :], register[:, :, :1], register[:, :1], register[:1]):
        expected = torch.where(mask.unsqueeze(1) != 0, part.expand(register.shape), 0.0)
        assert torch.equal(Compact.of(part.expand(register.shape), Pattern.of(mask)).dense(), expected), part.shape


@pytest.mark.parametrize("start", [0, 3, 16, 21])
def test_some_targets(start):
    pattern = Pattern.of(alive(2, 5, 3, 4, density=0.5, dtype=torch.float32))
    register = torch.randn(2, 40, 5, 3, 4)
    whole = compact_of(register, pattern)
    part = whole.narrow(1, start, 19)
    assert part.shape == (2, 19, 5, 3, 4)
    assert part.values.data_ptr() == whole.values.data_ptr() + 4 * start
    assert torch.equal(part.dense(), whole.dense()[:, start : start + 19])
    assert torch.equal(part.narrow(1, 2, 5).dense(), whole.dense()[:, start + 2 : start + 7])
    with pytest.raises(ValueError, match=r"cut along its targets only \(dim 1\), not along 2"):
        whole.narrow(2, 0, 1)


def test_rows_in_another_order():
    pattern = Pattern.of(alive(2, 5, 3, 4, density=0.5, dtype=torch.float32))
    whole = compact_of(torch.randn(2, 20, 5, 3, 4), pattern)
    place = torch.randperm(pattern.entries + 9)[: pattern.entries]
    table = torch.full((pattern.entries + 9, 32), torch.nan)
    table[place] = whole.values
    moved = Compact(table, pattern, 20, place)
    assert torch.equal(moved.dense(), whole.dense())
    assert torch.equal(moved.narrow(1, 7, 6).dense(), whole.dense()[:, 7:13])


# Sums


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sum(size, dtype):
    """Sources with patterns of their own; what none of them has is zero, what is not asked for is left out."""
    for count, number in ((1, 1), (7, 2), (16, 3), (33, 2), (70, 4)):
        masks = [alive(*size, density=d, dtype=dtype) for d in (0.5, 0.0, 1.0, 0.1)[:number]]
        registers = [torch.randn(size[0], count, *size[1:], dtype=dtype) for _ in masks]
        wanted = Pattern.of(alive(*size, density=0.6, dtype=dtype))
        for change in LAYOUTS:
            factors = [None if i == 1 else torch.randn(size, dtype=dtype) for i in range(number)]
            sources, expected = [], torch.zeros(size[0], count, *size[1:], dtype=torch.float64)
            for mask, register, factor in zip(masks, registers, factors, strict=True):
                compact = compact_of(register, Pattern.of(mask))
                sources.append((*compact.parts, None if factor is None else change(factor)))
                part = register.double() * (mask != 0).unsqueeze(1)
                expected += part if factor is None else part * factor.unsqueeze(1)
            found = KERNELS.sparse_sum(sources, wanted.tensors, size[0], count)
            expected *= Compact.of(torch.ones(size[0], 1, *size[1:]), wanted).dense()
            assert_close(Compact(found, wanted, count).dense(), expected, (size, count))


def test_sum_reads_narrowed_and_moved_rows():
    pattern = Pattern.of(alive(2, 5, 3, 4, density=0.5, dtype=torch.float64))
    register = torch.randn(2, 40, 5, 3, 4, dtype=torch.float64)
    whole = compact_of(register, pattern)
    place = torch.randperm(pattern.entries)
    moved = Compact(torch.empty_like(whole.values).index_copy_(0, place, whole.values), pattern, 40, place)
    sources = [(*c.narrow(1, 9, 20).parts, None) for c in (whole, moved)]
    found = Compact(KERNELS.sparse_sum(sources, pattern.tensors, 2, 20), pattern, 20)
    assert torch.equal(found.dense(), 2 * whole.dense()[:, 9:29])


def test_sum_with_expanded_factors():
    pattern = Pattern.of(torch.ones(2, 3, 4, 5))
    register = torch.randn(2, 7, 3, 4, 5, dtype=torch.float64)
    for shape in ((2, 3, 1, 1), (2, 3, 4, 1), (2, 3, 1, 5), (1, 1, 4, 5)):
        factor = torch.randn(shape, dtype=torch.float64).expand(2, 3, 4, 5)
        found = KERNELS.sparse_sum([(*Compact.of(register, pattern).parts, factor)], pattern.tensors, 2, 7)
        assert torch.equal(Compact(found, pattern, 7).dense(), register * factor.unsqueeze(1)), shape


# Max-pools

POOLS = {
    "tiles": ((2, 5, 7, 6), 2, 2, 0, 1, False),
    "overlapping": ((2, 5, 7, 6), 3, 1, 1, 1, False),
    "gaps": ((2, 3, 8, 9), 2, 3, 0, 1, False),
    "ceil": ((2, 3, 8, 9), (3, 2), 2, 1, 1, True),
    "ceil_beyond": ((2, 3, 7, 7), (2, 3), (3, 2), 1, (2, 1), True),
    "dilated": ((2, 3, 8, 9), 3, 1, 1, 2, False),
    "everything": ((2, 70, 7, 6), (7, 6), 1, 0, 1, False),
    "identity": ((2, 5, 4, 3), 1, 1, 0, 1, False),
    "line": ((3, 4, 11), 3, 2, 0, 1, False),
    "dilated_line": ((3, 4, 11), 4, 1, 2, 3, False),
    "volume": ((2, 3, 4, 3, 5), 2, 1, 0, 1, False),
    "wide_volume": ((2, 3, 4, 3, 5), (1, 3, 2), (2, 1, 2), (0, 1, 1), 1, True),
    "no_samples": ((0, 3, 4, 4), 2, 2, 0, 1, False),
}
POOL_OF = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}


def pooled(name, density):
    """Size of a pool's input, winners, alive outputs, and the window as the kernels take it."""
    size, *window, ceil_mode = POOLS[name]
    x = torch.randn(size).clamp(min=0)  # Ties at zero.
    y, index = POOL_OF[len(size)](x, *window, ceil_mode=ceil_mode, return_indices=True)
    each = [[n] * (len(size) - 2) if isinstance(n, int) else list(n) for n in window]
    return size, index, alive(*y.shape, density=density, dtype=torch.float32), [list(size[2:]), *each]


@pytest.mark.parametrize("change", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("name", POOLS)
def test_winners(name, change):
    """The input's entries in ascending order, each with the outputs that it won, in ascending order too."""
    for density in (0.0, 0.3, 1.0):
        size, index, mask, window = pooled(name, density)
        inputs = torch.Size(size[2:]).numel()
        offsets, channels, starts, rows = KERNELS.sparse_winners(change(index), pattern_of(mask), *window)
        won: dict[tuple[int, int], list[int]] = {}
        for row, (position, channel) in enumerate(zip(*entries(mask), strict=True)):
            sample, place = divmod(int(position), max(1, mask[0, 0].numel()))
            at = sample * inputs + int(index[sample, channel].flatten()[place])
            won.setdefault((at, int(channel)), []).append(row)
        assert channels.tolist() == [channel for _, channel in sorted(won)]
        counts = torch.bincount(torch.tensor([p for p, _ in won], dtype=torch.long), minlength=size[0] * inputs)
        assert torch.equal(offsets, F.pad(counts.cumsum(0), (1, 0)))
        assert rows.tolist() == [row for key in sorted(won) for row in won[key]]
        lengths = torch.tensor([len(won[key]) for key in sorted(won)], dtype=torch.long)
        assert torch.equal(starts, F.pad(lengths.cumsum(0), (1, 0)))
        assert channels.dtype == torch.int32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POOLS)
def test_gather_sum(name, dtype):
    for count, density in ((1, 1.0), (7, 0.3), (16, 0.0), (33, 0.6), (70, 1.0)):
        size, index, mask, window = pooled(name, density)
        above = Pattern.of(mask)
        register = torch.randn(size[0], count, *mask.shape[1:], dtype=dtype)
        offsets, channels, starts, rows = KERNELS.sparse_winners(index, above.tensors, *window)
        below = Pattern(offsets, channels, size[0], size[1:])
        part = (register * (mask != 0).unsqueeze(1)).double().flatten(3)
        expected = torch.zeros(size[0], count, *size[1:], dtype=torch.float64).flatten(3)
        expected.scatter_add_(3, index.flatten(2).unsqueeze(1).expand(part.shape), part)
        expected = expected.view(size[0], count, *size[1:])
        compact = compact_of(register, above)
        found = Compact(KERNELS.sparse_gather_sum(compact.parts, starts, rows, count), below, count)
        assert_close(found.dense(), expected, name)
        # The rows of a pool elsewhere in a wider table, some of whose lanes are read.
        place = torch.randperm(above.entries + 5)[: above.entries]
        table = torch.full((above.entries + 5, count + 9), torch.nan, dtype=dtype)
        table[place, 4 : 4 + count] = compact.values[:, :count]
        moved = (table[:, 4 : 4 + count], place, *above.tensors)
        again = KERNELS.sparse_gather_sum(moved, starts, rows, count)
        assert torch.equal(again[:, :count], found.values[:, :count])


# Weights


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_keeps_every_weight(dtype):
    for size in ((1, 1, 1, 1), (1, 5, 7, 9), (3, 4, 6, 4), (1, 300, 130, 2), (2, 129, 65, 3), (7, 1, 1, 9)):
        weight = torch.randn(size, dtype=dtype)
        packed = KERNELS.sparse_pack(weight)
        groups, ins, taps, outs, block_out, block_in = packed.shape
        assert (groups, taps) == (size[0], size[3])
        whole = packed.permute(0, 3, 4, 1, 5, 2).reshape(groups, outs * block_out, ins * block_in, taps)
        assert torch.equal(whole[:, : size[1], : size[2]], weight)
        assert whole.count_nonzero() == weight.count_nonzero()
        assert torch.equal(KERNELS.sparse_pack(reversed_memory(weight)), packed)
        assert torch.equal(KERNELS.sparse_pack(with_gaps(weight)), packed)
