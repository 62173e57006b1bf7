"""Relevance through a layer for alive neurons only, against PyTorch's gradient in float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import channels_last, reversed_memory, same, with_gaps
from tests.sparse.cases import (
    DTYPES,
    KERNELS,
    TOLERANCE,
    Layer,
    Problem,
    alive,
    assert_close,
    pattern_of,
    relevance,
    rows_of,
    scaled,
)

COUNTS = (1, 7, 8, 15, 16, 17, 32, 33, 64, 70, 100)
LAYERS = {
    "linear": Layer(13, 7, ()),
    "linear_of_one": Layer(1, 1, ()),
    "pointwise": Layer(5, 7, (9, 8), 1),
    "same": Layer(5, 7, (9, 8), 3, padding=1),
    "valid": Layer(3, 11, (9, 8), 3),
    "wide": Layer(3, 4, (5, 61), 3, padding=1),
    "tall": Layer(3, 4, (41, 3), 3, padding=1),
    "even_kernel": Layer(3, 4, (6, 7), (2, 4), padding=(0, 2)),
    "stride": Layer(5, 7, (9, 10), 3, stride=2, padding=1),
    "stride_not_whole": Layer(5, 7, (10, 12), 3, stride=(3, 4)),
    "stride_beyond_kernel": Layer(4, 5, (9, 31), 1, stride=(2, 3)),
    "padding_beyond_kernel": Layer(3, 4, (4, 5), 2, padding=(4, 3)),
    "nothing_but_padding": Layer(3, 4, (1, 1), 3, stride=5, padding=6),
    "dilation": Layer(4, 5, (9, 11), 3, padding=(2, 3), dilation=(2, 3)),
    "dilation_and_stride": Layer(4, 5, (12, 13), 3, stride=(2, 3), padding=2, dilation=(3, 2)),
    "kernel_beyond_map": Layer(3, 4, (3, 2), 7, padding=3),
    "one_position": Layer(200, 7, (1, 1), 1),
    "groups": Layer(6, 9, (7, 8), 3, padding=1, groups=3),
    "groups_of_many": Layer(132, 260, (3, 4), 1, groups=2),
    "grouped_stride": Layer(12, 8, (9, 31), 1, stride=2, groups=4),
    "depthwise": Layer(8, 8, (9, 31), 3, stride=(1, 2), padding=1, groups=8),
    "depthwise_many": Layer(131, 131, (3, 3), 3, padding=1, groups=131),
    "depthwise_dilated": Layer(5, 5, (9, 8), 3, padding=2, dilation=2, groups=5),
    "depthwise_times_two": Layer(4, 8, (6, 5), 3, padding=1, groups=4),
    "two_into_one": Layer(8, 4, (6, 5), 3, groups=4),
    "transposed": Layer(5, 7, (5, 4), 3, stride=2, padding=1, transposed=True),
    "transposed_output_padding": Layer(5, 7, (5, 4), 3, stride=3, padding=(1, 0), transposed=True, output_padding=2),
    "transposed_dilated": Layer(4, 3, (6, 5), (2, 3), stride=(2, 1), dilation=(1, 2), transposed=True),
    "transposed_groups": Layer(6, 4, (5, 6), 3, stride=2, groups=2, transposed=True, output_padding=1),
    "transposed_depthwise": Layer(6, 6, (5, 6), 3, stride=2, padding=1, groups=6, transposed=True),
    "transposed_cropped": Layer(3, 4, (5, 5), 2, stride=2, padding=3, transposed=True),
    "line": Layer(6, 9, (11,), 5, stride=2, padding=3, dilation=2, groups=3),
    "long_line": Layer(4, 3, (67,), 3, padding=1),
    "transposed_line": Layer(4, 3, (9,), 4, stride=3, transposed=True, output_padding=1),
    "volume": Layer(4, 3, (4, 5, 6), (3, 2, 3), stride=(1, 2, 1), padding=1, dilation=(1, 1, 2)),
    "same_volume": Layer(3, 4, (4, 3, 5), 3, padding=1),
    "depthwise_volume": Layer(3, 3, (3, 4, 5), 2, groups=3),
    "transposed_volume": Layer(3, 4, (2, 3, 2), 3, stride=2, padding=1, transposed=True, output_padding=(1, 0, 1)),
    "no_samples": Layer(5, 7, (4, 5), 3, batch=0),
    "one_sample": Layer(5, 7, (4, 5), 3, batch=1),
    "three_samples": Layer(5, 7, (4, 5), 3, padding=1, batch=3),
}  # fmt: skip
TOTALS = [1, 3, 13, 63, 64, 65, 127, 128, 129, 130, 300]


def check(problem: Problem) -> None:
    """Rows, and a dense result, which must be the same bit for bit."""
    rows, expected = problem.call(), problem.expected()
    assert rows.shape == (int((problem.mask != 0).sum()), -(-problem.count // 16) * 16)
    found = problem.dense(rows)
    assert_close(found, expected, problem.layer)
    dense = problem.call(channels=problem.layer.inputs)
    assert torch.equal(dense, found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_geometries(name, dtype, isa):
    for count, products in ((7, 1), (33, 2)):
        check(Problem(LAYERS[name], count, dtype, products))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["linear", "same", "stride", "depthwise", "groups", "transposed"])
def test_counts(name, dtype, isa):
    for count in COUNTS:
        check(Problem(LAYERS[name], count, dtype, products=1 + count % 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("total", TOTALS)
def test_channels(total, dtype, isa):
    """Around the sizes of the blocks that a weight is cut into, on either side."""
    for other in (1, 64, 131):
        check(Problem(Layer(total, other, (2, 3), 3, padding=1, batch=1), 17, dtype))
        check(Problem(Layer(other, total, (2, 4), (1, 2), stride=(1, 2)), 16, dtype))
    check(Problem(Layer(300, total, ()), 24, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_linear_layers(dtype, isa):
    """Around the sizes of the blocks that a linear weight is read in."""
    for inputs, outputs in ((2047, 64), (2048, 63), (2049, 65), (4100, 3), (1, 129), (5, 1)):
        check(Problem(Layer(inputs, outputs, (), batch=3), 17, dtype, products=2))


def test_more_than_a_tile_packs(isa):
    check(Problem(Layer(20, 300, (3, 30), 3, padding=1, batch=1), 64, torch.float32, products=2, above=1.0, below=1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["linear", "same", "stride", "groups", "depthwise", "transposed", "volume"])
def test_densities(name, dtype, isa):
    for above in (0.0, 0.05, 0.5, 1.0):
        for below in (0.0, 0.05, 0.5, 1.0):
            check(Problem(LAYERS[name], 20, dtype, 2, above, below))


@pytest.mark.parametrize("name", ["linear", "same", "depthwise"])
def test_no_targets(name):
    problem = Problem(LAYERS[name], 1, torch.float32)
    values, _, offsets, channels = problem.arriving
    for arriving in ((values, None, offsets, channels), (values[:, :0], None, offsets, channels)):
        assert problem.call(arriving, count=0).shape == (len(problem.leaving[1]), 0)
        dense = problem.call(arriving, channels=problem.layer.inputs, count=0)
        assert dense.shape == (2, 0, problem.layer.inputs, *problem.layer.size)


@pytest.mark.parametrize("name", ["linear", "same", "groups", "depthwise", "volume"])
@pytest.mark.parametrize("change", [channels_last(1), with_gaps, reversed_memory], ids=["last", "gaps", "reversed"])
def test_memory_of_coefficients(name, change):
    for dtype in DTYPES:
        problem = Problem(LAYERS[name], 9, dtype, products=2)
        plain = problem.call()
        problem.change = change
        assert torch.equal(problem.call(), plain)


def test_expanded_coefficients():
    """One number for many positions, or for all channels: strides of zero."""
    layer = Layer(4, 5, (6, 7), 3, padding=1)
    problem = Problem(layer, 9, torch.float64)
    for shape in ((1, 5, 1, 1), (2, 1, 6, 7), (2, 5, 1, 7), (2, 5, 6, 1), (1, 1, 1, 1)):
        u = torch.randn(shape, dtype=torch.float64)
        problem.coefficients = [u.expand(2, 5, 6, 7).contiguous()]
        problem.register = torch.randn(2, 9, 5, 6, 7, dtype=torch.float64)
        expected = problem.expected()
        problem.coefficients = [u.expand(2, 5, 6, 7)]
        assert_close(problem.dense(problem.call()), expected, shape)


def test_negated_coefficients():
    problem = Problem(LAYERS["same"], 9, torch.float64)
    plain = problem.call()
    problem.change = lambda t: torch._neg_view(-t) if t.is_floating_point() else t
    assert torch.equal(problem.call(), plain)


@pytest.mark.parametrize("name", ["linear", "same", "stride", "depthwise"])
@pytest.mark.parametrize("count", [1, 16, 33])
def test_rows_in_any_order_and_some_of_their_lanes(name, count, isa):
    """Rows elsewhere in a wider table that is NaN apart from them."""
    problem = Problem(LAYERS[name], count, torch.float32, products=2)
    values, _, offsets, channels = problem.arriving
    entries = len(channels)
    plain = problem.call()
    for start in (0, 5, 16):
        table = torch.full((2 * entries + 3, start + count + 11), torch.nan)
        place = torch.randperm(len(table))[:entries]
        table[place, start : start + count] = values[:, :count]
        part = table[:, start : start + count]
        assert torch.equal(problem.call((part, place, offsets, channels)), plain)
        part = table[place][:, start : start + count]
        assert torch.equal(problem.call((part, None, offsets, channels)), plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["linear", "same", "stride", "even_kernel", "transposed", "volume", "line"])
def test_weights_by_the_sign_of_the_input(name, dtype, isa):
    """Input channels twice, each with its own weight: folded into one dense result."""
    layer = LAYERS[name] if LAYERS[name].groups == 1 else Layer(6, 9, (11,), 5, stride=2, padding=3)
    for count in (5, 33, 70):
        problem = Problem(layer, count, dtype)
        x = problem.mask
        weight = problem.layer.canonical(problem.weights[0])
        both = torch.cat([weight.clamp(min=0), weight.clamp(max=0)], 2)
        leaving = pattern_of(torch.cat([x.clamp(min=0), x.clamp(max=0)], 1))
        found = relevance(layer, problem.arriving, count, problem.coefficients, [both], leaving, layer.inputs)
        s = scaled(problem.coefficients[0], problem.register)
        above = layer.transpose(problem.weights[0].clamp(min=0), s) * (x > 0).unsqueeze(1)
        below = layer.transpose(problem.weights[0].clamp(max=0), s) * (x < 0).unsqueeze(1)
        assert_close(found, above + below)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["linear", "same", "stride", "one_position", "transposed", "volume"])
@pytest.mark.parametrize("change", [same, channels_last(1), with_gaps, reversed_memory])
def test_folds_with_factors(name, dtype, change):
    """As the box rule has it: a product for each fold, everywhere."""
    layer = LAYERS[name]
    for count, folds in ((5, 1), (33, 2), (17, 3)):
        problem = Problem(layer, count, dtype)
        weights = [layer.weight(dtype) for _ in range(folds)]
        factors = [torch.randn(layer.batch, layer.inputs, *layer.size, dtype=dtype) for _ in range(folds)]
        leaving = pattern_of(torch.ones(layer.batch, folds * layer.inputs, *layer.size))
        packed = torch.cat([layer.canonical(w) for w in weights], 2)
        found = relevance(
            layer, problem.arriving, count, problem.coefficients, [packed], leaving, layer.inputs,
            [change(f) for f in factors],
        )  # fmt: skip
        s = scaled(problem.coefficients[0], problem.register)
        parts = zip(factors, weights, strict=True)
        assert_close(found, sum(f.double().unsqueeze(1) * layer.transpose(w, s) for f, w in parts))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["linear", "same", "wide", "stride", "volume"])
def test_folds_that_meet_here_and_there(name, dtype):
    """At some neurons several folds are alive, at others one or none."""
    layer = LAYERS[name]
    for count, folds, below in ((5, 2, 0.5), (33, 3, 0.3), (17, 2, 0.95)):
        problem = Problem(layer, count, dtype)
        size = (layer.batch, layer.inputs, *layer.size)
        weights = [layer.weight(dtype) for _ in range(folds)]
        factors, masks = ([alive(*size, density=d, dtype=dtype) for _ in range(folds)] for d in (1.0, below))
        packed = torch.cat([layer.canonical(w) for w in weights], 2)
        s = scaled(problem.coefficients[0], problem.register)
        parts = [layer.transpose(w, s) * (m != 0).unsqueeze(1) for w, m in zip(weights, masks, strict=True)]
        for given in (factors, []):
            found = relevance(
                layer, problem.arriving, count, problem.coefficients, [packed], pattern_of(torch.cat(masks, 1)),
                layer.inputs, given,
            )  # fmt: skip
            times = [f.double().unsqueeze(1) for f in given] or [1.0] * folds
            assert_close(found, sum(f * part for f, part in zip(times, parts, strict=True)))


def test_folds_of_groups():
    """Channels are numbered through all groups, so a fold may be one of them."""
    layer = Layer(6, 8, (5, 6), 3, padding=1, groups=2)
    problem = Problem(layer, 9, torch.float64, below=1.0)
    assert_close(problem.call(channels=3), problem.everywhere().unflatten(2, (2, 3)).sum(2))
    depthwise = Problem(Layer(6, 6, (5, 6), 3, padding=1, groups=6), 9, torch.float64, below=1.0)
    assert_close(depthwise.call(channels=2), depthwise.everywhere().unflatten(2, (3, 2)).sum(2))


ONE_OF_TWO = [name for name in LAYERS if "depthwise" not in name and name != "linear_of_one"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ONE_OF_TWO)
def test_one_of_two_weights(name, dtype, isa):
    """As the gamma rule has it: by whether two coefficients have opposite signs."""
    for count in (7, 33):
        problem = Problem(LAYERS[name], count, dtype, products=2)
        (u, v), layer = problem.coefficients, problem.layer
        opposite = u * v < 0
        expected = layer.transpose(problem.weights[0], scaled(torch.where(opposite, 0.0, u), problem.register))
        expected += layer.transpose(problem.weights[1], scaled(torch.where(opposite, u + v, 0.0), problem.register))
        weights = [layer.canonical(w) for w in problem.weights]
        for change in (same, channels_last(1), with_gaps):
            found = relevance(layer, problem.arriving, count, [change(u)], weights, problem.leaving, other=change(v))
            assert_close(problem.dense(found), expected * (problem.mask != 0).unsqueeze(1), name)
        dense = relevance(layer, problem.arriving, count, [u], weights, problem.leaving, layer.inputs, other=v)
        assert torch.equal(dense, problem.dense(found))


def test_one_of_two_weights_by_tiny_coefficients():
    problem = Problem(LAYERS["same"], 7, torch.float32, products=2)
    u, v = (1e-24 * c.abs().clamp(min=0.1) for c in problem.coefficients)
    everything = pattern_of(torch.ones_like(u))
    register = 1e20 * torch.randn_like(problem.register)
    weights = [problem.layer.canonical(w) for w in problem.weights]
    found = relevance(problem.layer, rows_of(register, everything), 7, [u], weights, problem.leaving, other=-v)
    expected = problem.layer.transpose(problem.weights[1], scaled(u - v, register))
    assert_close(problem.dense(found), expected * (problem.mask != 0).unsqueeze(1))


def test_a_pattern_wider_than_its_coefficients():
    """Another reader's neurons are alive here too; a coefficient of zero stops them."""
    problem = Problem(LAYERS["same"], 9, torch.float32)
    everything = pattern_of(torch.ones_like(problem.coefficients[0]))
    arriving = rows_of(problem.register.nan_to_num(3.0), everything)
    assert_close(problem.dense(problem.call(arriving)), problem.expected())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*LAYERS])
def test_sums_that_begin_with_another_register(name, dtype, isa):
    """Its pattern is its own: what it lacks begins at zero, what it has beyond the result's is left out."""
    layer = LAYERS[name]
    size = (layer.batch, layer.inputs, *layer.size)
    for count, products, factored in ((7, 1, False), (33, 2, True)):
        problem = Problem(layer, count, dtype, products)
        mask, factor = (alive(*size, density=0.5, dtype=dtype) for _ in range(2))
        register = torch.randn(layer.batch, count, *size[1:], dtype=dtype)
        begin = (*rows_of(register.masked_fill(mask.unsqueeze(1) == 0, torch.nan), pattern_of(mask)),)
        expected = torch.where(mask.unsqueeze(1) != 0, register.double(), 0.0)
        expected = expected * factor.double().unsqueeze(1) if factored else expected
        expected = expected * (problem.mask != 0).unsqueeze(1) + problem.expected()
        found = problem.call(initial=[(*begin, factor if factored else None)])
        assert_close(problem.dense(found), expected)
        # The same from rows in another order, in a wider table.
        place = torch.randperm(len(begin[0]))
        table = torch.full((len(place), count + 9), torch.nan, dtype=dtype)
        table[place, 4 : 4 + count] = begin[0][:, :count]
        again = problem.call(initial=[(table[:, 4 : 4 + count], place, *begin[2:], factor if factored else None)])
        assert torch.equal(again[:, :count], found[:, :count])


@pytest.mark.parametrize("name", ["same", "stride", "depthwise"])
def test_large_results_in_used_memory(name):
    """Buffers of a megabyte and more are used again: what they held before does not show."""
    layer = LAYERS[name]
    layer = Layer(64, 64, (24, 24), 3, layer.stride, 1, groups=64 if layer.groups > 1 else 1, batch=1)
    problem = Problem(layer, 40, torch.float32, above=0.1)
    problem.mask[:, :, :5] = 0
    rows = problem.call()
    assert rows.nbytes > 1 << 20
    expected, size = rows[:, :40].clone(), rows.nbytes
    for _ in range(2):
        rows.fill_(torch.nan)
        del rows
        assert KERNELS.sparse_kept_bytes() >= size
        rows = problem.call()
        assert torch.equal(rows[:, :40], expected)
    del rows
    KERNELS.sparse_release()
    assert KERNELS.sparse_kept_bytes() == 0


def test_alive_makes_what_it_says():
    made = alive(1000, density=0.25, dtype=torch.float32)
    assert 200 < int((made != 0).sum()) < 300


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 70), (257, 64), (600, 131), (64, 1)])
def test_a_linear_weight_that_lies_transposed(outputs, inputs, dtype):
    """Read in place, in blocks of its own: the way up has it so. For the numbers only the order of sums differs."""
    for count, above in ((5, 0.4), (70, 1.0), (33, 0.0)):
        u, x = (alive(2, n, density=d, dtype=dtype) for n, d in ((outputs, above), (inputs, 0.6)))
        weights = [torch.randn(inputs, outputs, dtype=dtype).t() for _ in range(2)]
        register = torch.randn(2, count, outputs, dtype=dtype).masked_fill((u == 0).unsqueeze(1), torch.nan)
        below = pattern_of(x)
        rows = KERNELS.sparse_conv_relevance(
            rows_of(register, pattern_of(u)), 2, count, [u, 2 * u], weights, [outputs, inputs], below, [], [], [], [],
            [], [], False, None, [], [],
        )  # fmt: skip
        found = KERNELS.sparse_to_dense((rows, None, *below), 2, count, [inputs])
        expected = scaled(u, register).double() @ (weights[0].double() + 2 * weights[1].double())
        expected = expected * (x != 0).unsqueeze(1)
        assert (found - expected).norm() <= TOLERANCE[dtype] * expected.norm()
