"""Bit for bit the same for any number of threads, and for any way to cut targets into blocks.

That is what the sparse kernels promise. A dense layer is a library's matrix product or convolution, whose order of sums
depends on its shape, on the machine and on the library (a vector times a matrix adds otherwise than a matrix times a
matrix). Where one stands above sparse layers, these tests put a product with one order in its place.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastlrp import Explainer
from fastlrp.aten import _product
from fastlrp.plan.compact import Compact, Pattern
from tests.ops.cases import in_dtypes
from tests.sparse.cases import DTYPES, KERNELS, Layer, Problem, alive, pattern_of, relevance, rows_of
from tests.sparse.nets import COMPOSITES, NETS, assert_same, make, samples, sparse_layers

K = 70
BLOCKS = (1, 7, 16, 33)
LAYERS = {
    "linear": Layer(2100, 131, ()),
    "same": Layer(65, 130, (3, 30), 3, padding=1, batch=1),
    "one_block": Layer(9, 20, (5, 30), 3, padding=1),
    "stride": Layer(65, 130, (5, 9), 3, stride=2, padding=1, batch=1),
    "few_positions": Layer(300, 140, (1, 2), 3, padding=1, batch=1),
    "groups": Layer(12, 16, (12, 9), 3, padding=1, groups=4),
    "depthwise": Layer(40, 40, (6, 7), 3, padding=1, groups=40),
    "transposed": Layer(20, 30, (5, 6), 3, stride=2, transposed=True),
    "volume": Layer(5, 6, (3, 4, 5), 3, padding=1),
    # Few entries per position: output by output.
    "thin": Layer(1, 10, (19, 40), 5, padding=1, batch=3),
    "thin_strided": Layer(3, 9, (12, 31), (3, 4), stride=(2, 1), padding=(2, 1), dilation=(2, 1)),
    "thin_volume": Layer(2, 5, (5, 4, 9), 3, padding=1),
}
pytestmark = pytest.mark.usefixtures("captured_once")


def results(problem, begin):
    """Rows, a dense result, rows that begin with another register, and products folded by the sign of the input."""
    layer, x, weight = problem.layer, problem.mask, problem.layer.canonical(problem.weights[0])
    rows = [problem.call()[:, : problem.count], problem.call(initial=[begin])[:, : problem.count]]
    dense = [problem.call(channels=layer.inputs)]
    if layer.groups == 1:
        both = torch.cat([weight.clamp(min=0), weight.clamp(max=0)], 2)
        leaving = pattern_of(torch.cat([x.clamp(min=0), x.clamp(max=0)], 1))
        coefficient = problem.coefficients[:1]
        dense.append(relevance(layer, problem.arriving, problem.count, coefficient, [both], leaving, layer.inputs))
    return [*rows, *(d.transpose(0, 1) for d in dense)]


def identical(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def some_targets(problem, start, stop):
    part = replace(problem)
    for name in ("weights", "coefficients", "mask"):
        setattr(part, name, getattr(problem, name))
    part.register, part.count = problem.register[:, start:stop], stop - start
    return part


@pytest.mark.parametrize(("name", "dtype"), in_dtypes(LAYERS))
def test_products_by_blocks(name, dtype, isa):
    problem = Problem(LAYERS[name], K, dtype, products=2)
    register, mask = (
        torch.randn(problem.mask.shape[0], K, *problem.mask.shape[1:], dtype=dtype),
        problem.mask.roll(1, 1),
    )
    whole = results(problem, (*rows_of(register, pattern_of(mask)), problem.mask))
    for size in BLOCKS if isa == KERNELS.available_isas()[-1] else BLOCKS[1::2]:
        # The first two, the last, and those on either side of a panel of 64 targets: all begin differently.
        for start in sorted({0, size, 64 // size * size, (K - 1) // size * size}):
            stop = min(K, start + size)
            begin = (*rows_of(register[:, start:stop], pattern_of(mask)), problem.mask)
            for position, part in enumerate(results(some_targets(problem, start, stop), begin)):
                expected = whole[position][:, start:stop] if position < 2 else whole[position][start:stop].contiguous()
                assert torch.equal(part, expected), (size, start, position)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", LAYERS)
def test_products_by_threads(name):
    problem = Problem(LAYERS[name], 33, torch.float32, products=2)
    register = torch.randn(problem.mask.shape[0], 33, *problem.mask.shape[1:])
    begin = (*rows_of(register, pattern_of(problem.mask)), None)
    torch.set_num_threads(1)
    expected = results(problem, begin)
    for number in (2, 3):
        torch.set_num_threads(number)
        assert identical(results(problem, begin), expected)


def moves(register, other, index, mask):
    """Everything that moves rows: to and from dense, sums, winners, windows."""
    pattern, below = Pattern.of(mask), Pattern.of(other)
    compact = Compact.of(register, pattern)
    total = KERNELS.sparse_sum([(*compact.parts, mask), (*compact.parts, None)], below.tensors, 3, register.shape[1])
    window = [[34, 36], [3, 3], [2, 2], [1, 1], [1, 1]]
    offsets, channels, starts, rows = KERNELS.sparse_winners(index, pattern.tensors, *window)
    gathered = KERNELS.sparse_gather_sum(compact.parts, starts, rows, register.shape[1])
    count = register.shape[1]
    won = [offsets, channels, starts, rows]
    wanted = Pattern.of(torch.ones(3, 40, 34, 36)).tensors
    for step in (1, 2, 3):
        won += KERNELS.sparse_windows(wanted, pattern.tensors, 3, [34, 36], [17, 18], [2, 2], [step, 2], [1, 1])
    return [*pattern.tensors, compact.values[:, :count], compact.dense(), total[:, :count], *won, gathered[:, :count]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["thin", "thin_strided", "thin_volume"])
def test_entries_do_not_depend_on_their_neighbours(name, dtype, isa):
    """With few entries per position the kernel goes output by output, with many input by input: in the same order."""
    layer = replace(LAYERS[name], inputs=6)
    problem = Problem(layer, 20, dtype)
    problem.mask = torch.ones_like(problem.mask)
    many = problem.dense(problem.call())
    for channel in range(6):
        problem.mask = torch.zeros_like(problem.mask)
        problem.mask[:, channel] = 1
        few = problem.dense(problem.call())
        assert torch.equal(few[:, :, channel], many[:, :, channel])


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_moves_by_threads_and_blocks():
    x = torch.randn(3, 40, 34, 36)
    y, index = nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    mask = alive(*y.shape, density=0.5, dtype=torch.float32)
    register, other = torch.randn(3, 20, *y.shape[1:]), alive(*y.shape, density=0.5, dtype=torch.float32)
    torch.set_num_threads(1)
    expected = moves(register, other, index, mask)
    for number in (2, 3):
        torch.set_num_threads(number)
        assert identical(moves(register, other, index, mask), expected)
    torch.set_num_threads(1)
    for size in (1, 7, 16):
        parts = [moves(part, other, index, mask) for part in register.split(size, 1)]
        for position in (2, 3, 4, -1):
            assert torch.equal(torch.cat([part[position] for part in parts], 1), expected[position])


def test_products_by_several_callers_at_once():
    problems = [Problem(LAYERS[name], 20, torch.float32) for name in ("linear", "one_block", "depthwise", "stride")] * 3
    expected = [problem.call(channels=problem.layer.inputs) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda problem: problem.call(channels=problem.layer.inputs), problems)
        assert identical(list(found), expected)


# Explainers


@pytest.fixture
def ordered_products(monkeypatch):
    """Matrix products of dense layers whose sums have one order, whatever their shape."""

    def ordered(left, right):
        total = left[..., :1] * right[0]
        for i in range(1, len(right)):
            total = total + left[..., i, None] * right[i]
        return total

    monkeypatch.setattr(torch.Tensor, "__matmul__", ordered)
    monkeypatch.setattr(_product, "_fits", lambda x, weight: False)


def by_blocks(record, targets, size, **options):
    parts = [part for _, part in record.stream(targets, block=size, **options)]
    return torch.cat(parts, 1)


BY_BLOCKS = ("epsilon_plus", "zplus", "epsilon_alpha2_beta1", "epsilon_gamma_box")
"""Each network has two of them."""


@pytest.mark.parametrize(
    ("name", "dtype", "composite"),
    [
        (name, dtype, BY_BLOCKS[(place + more) % 4])
        for place, (name, dtype) in enumerate(in_dtypes(NETS, every=3))
        for more in (0, 1)
    ],
)
@pytest.mark.usefixtures("ordered_products")
def test_explanations_by_blocks(name, composite, dtype):
    """All of these networks' layers are sparse but the last linear one: classes select its rows, others a product."""
    with Explainer(make(name, dtype), COMPOSITES[composite](), paths="sparse").forward(
        samples(name, 2, dtype)
    ) as record:
        for targets in ([i * 5 % 12 for i in range(K)], torch.randn(2, K, *record.scores.shape[1:], dtype=dtype)):
            whole = record.relevance(targets)
            for size in BLOCKS:
                assert torch.equal(by_blocks(record, targets, size), whole), size


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["vgg", "shared_sums", "geometries"])
def test_explanations_by_threads(name):
    """Everything below the dense forward pass, whose own order of sums PyTorch decides."""
    with Explainer(make(name, torch.float32), "epsilon_plus", paths="sparse").forward(
        samples(name, 2, torch.float32)
    ) as r:
        torch.set_num_threads(1)
        expected = r.relevance([i * 5 % 12 for i in range(40)], layers="all")
        for number in (2, 3):
            torch.set_num_threads(number)
            r._answers.specialized.clear()
            found = r.relevance([i * 5 % 12 for i in range(40)], layers="all")
            assert identical(found.values(), expected.values())


def test_explanations_by_budgets():
    with Explainer(make("vgg"), "zplus", paths="sparse").forward(samples("vgg")) as record:
        expected = record.relevance([i * 5 % 12 for i in range(K)])
    used = set()
    for budget in ("300KB", "500KB", "1MB", "2MB", "1GB"):
        with Explainer(make("vgg"), "zplus", paths="sparse", max_memory=budget).forward(samples("vgg")) as record:
            sizes = tuple(len(part) for part, _ in record.stream([i * 5 % 12 for i in range(K)]))
            if sizes[0] < 16:
                continue  # Computed densely.
            used.add(sizes[0])
            assert torch.equal(record.relevance([i * 5 % 12 for i in range(K)]), expected), budget
    assert len(used) > 2


@pytest.fixture
def wide():
    """Linear layers as large as those whose library function sums in another order for another number of rows."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1024, 300), nn.ReLU(), nn.Linear(300, 257), nn.ReLU(), nn.Linear(257, K),
    )  # fmt: skip
    return model.eval(), torch.randn(2, 3, 8, 8)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETS)
def test_classes_by_blocks(name, dtype):
    """Targets that are classes need no product at all: nothing depends on a library."""
    with Explainer(make(name, dtype), "epsilon_plus", paths="sparse").forward(samples(name, 2, dtype)) as record:
        targets = [i * 5 % 12 for i in range(K)]
        whole = record.relevance(targets)
        for size in BLOCKS:
            assert torch.equal(by_blocks(record, targets, size), whole), size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["vgg", "linear"])
def test_a_dense_last_layer_depends_on_blocks(name, dtype):
    """Weighted outputs go through a library's product. Measured: 1.8e-7 at most in float32, 3e-16 in float64."""
    with Explainer(make(name, dtype), "epsilon_plus", paths="sparse").forward(samples(name, 2, dtype)) as record:
        targets = torch.randn(2, K, *record.scores.shape[1:], dtype=dtype)
        whole = record.relevance(targets)
        for size in BLOCKS:
            assert_same(by_blocks(record, targets, size), whole, {torch.float32: 5e-7, torch.float64: 1e-15}[dtype])


@pytest.mark.usefixtures("ordered_products")
@pytest.mark.parametrize("composite", ["epsilon_plus", "zplus", "alpha_beta"])
def test_wide_layers_by_blocks(wide, composite):
    model, x = wide
    explainer = Explainer(model, composite, paths="sparse")
    with explainer.forward(x) as record:
        for targets in ("all", torch.randn(2, K, K)):
            whole = record.relevance(targets)
            for size in BLOCKS:
                assert torch.equal(by_blocks(record, targets, size), whole), size
    assert {"0", "3", "6", "8"} <= set(sparse_layers(explainer))


def test_dense_layers_among_sparse_ones_depend_on_blocks(wide):
    """oneDNN's convolutions of more or fewer maps add in another order. Measured: 1.3e-7 at most, in float32."""
    model, x = wide
    with Explainer(model, "alpha_beta", paths={"[03]": "dense", "*": "sparse"}).forward(x) as record:
        whole = record.relevance("all")
        for size in BLOCKS:
            assert_same(by_blocks(record, "all", size), whole, 5e-7)
