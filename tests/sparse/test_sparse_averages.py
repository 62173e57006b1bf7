"""Average and sum pools between layers that are computed for alive neurons only."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastlrp import Explainer, composites, rules
from fastlrp.composites import Composite
from fastlrp.plan.compact import Compact
from fastlrp.plan.forms import Affine, AvgPool
from fastlrp.plan.geometry import ConvGeometry, PoolGeometry
from fastlrp.plan.steps import BackwardStep
from fastlrp.run.sparse.specialize import specialize
from tests.sparse.cases import DTYPES, KERNELS, TOLERANCE, alive, pattern_of
from tests.sparse.nets import assert_same

pytestmark = pytest.mark.usefixtures("captured_once")

AVG_POOL = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
LAYER = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

# Size of the input without samples; kernel, stride, padding; ceil_mode; count_include_pad; divisor_override.
POOLS = {
    "tiles": ((5, 6, 8), (2, 2), (2, 2), (0, 0), False, True, None),
    "sum": ((5, 6, 8), (2, 2), (2, 2), (0, 0), False, True, 1),
    "negative_divisor": ((3, 5, 5), (2, 3), (2, 3), (0, 1), False, True, -3),
    "rest": ((5, 7, 9), (2, 2), (2, 2), (0, 0), False, True, None),
    "rest_ceil": ((5, 7, 9), (2, 2), (2, 2), (0, 0), True, True, None),
    "gaps": ((4, 8, 9), (2, 1), (3, 4), (0, 0), False, True, None),
    "padded": ((3, 7, 6), (4, 2), (4, 2), (2, 1), False, True, None),
    "padded_without": ((3, 7, 6), (4, 2), (4, 2), (2, 1), False, False, None),
    "padded_ceil": ((3, 8, 7), (3, 4), (3, 3), (1, 2), True, True, None),
    "padded_ceil_without": ((3, 8, 7), (3, 4), (3, 3), (1, 2), True, False, None),
    "overlapping": ((3, 7, 6), (3, 3), (1, 1), (1, 1), False, True, None),
    "overlapping_without": ((3, 7, 6), (3, 2), (2, 1), (1, 0), True, False, None),
    "everything": ((33, 4, 3), (4, 3), (1, 1), (0, 0), False, True, None),
    "identity": ((5, 4, 3), (1, 1), (1, 1), (0, 0), False, True, None),
    "line": ((4, 11), (3,), (3,), (1,), False, False, None),
    "overlapping_line": ((4, 11), (4,), (2,), (2,), True, True, None),
    "volume": ((3, 4, 5, 6), (2, 1, 3), (2, 2, 3), (1, 0, 1), False, False, None),
    "overlapping_volume": ((2, 4, 3, 5), (2, 3, 1), (1, 2, 1), (0, 1, 0), True, True, None),
}


def pool_of(name: str) -> nn.Module:
    _, kernel, stride, padding, ceil, include, divisor = POOLS[name]
    divides = {} if len(kernel) == 1 else {"divisor_override": divisor}
    return LAYER[len(kernel)](kernel, stride, padding, ceil, include, **divides)


def defined(name, register, scale):
    """``(B, K, C, *S')`` times ``scale``, by PyTorch's gradient in float64."""
    batch, count = register.shape[:2]
    x = torch.zeros(batch * count, *POOLS[name][0], dtype=torch.float64, requires_grad=True)
    flow = register.double() if scale is None else register.double() * scale.double().unsqueeze(1)
    (c,) = torch.autograd.grad(pool_of(name)(x), x, flow.flatten(0, 1))
    return c.unflatten(0, (batch, count))


def form_of(name, scale, dtype):
    size, kernel, stride, padding, _, include, divisor = POOLS[name]
    arriving = tuple(pool_of(name)(torch.zeros(1, *size)).shape[1:])
    geometry = PoolGeometry(list(kernel), list(stride), list(padding))
    shares = AvgPool.shares_of(arriving[1:], size[1:], geometry, include, divisor, dtype)
    return AvgPool(scale, shares, arriving, size, geometry)


# Lists of rows


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLS)
def test_windows(name):
    """Wanted entries that are in the window of an output's entry, each with all of these, in ascending order."""
    size, kernel, stride, padding = POOLS[name][:4]
    form = form_of(name, None, torch.float32)
    inputs, outputs = torch.Size(size[1:]).numel(), torch.Size(form.arriving[1:]).numel()
    ones = torch.eye(inputs).view(inputs, 1, *size[1:])
    joined = form.reached(ones).flatten(1).bool()  # (inputs, outputs), by another way than the kernel's.
    for above, below in ((1.0, 1.0), (0.4, 1.0), (1.0, 0.4), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0)):
        batch = 2
        pooled = pattern_of(alive(batch, *form.arriving, density=above, dtype=torch.float32))
        wanted = pattern_of(alive(batch, *size, density=below, dtype=torch.float32))
        found = KERNELS.sparse_windows(
            wanted, pooled, batch, list(size[1:]), list(form.arriving[1:]), list(kernel), list(stride), list(padding)
        )
        above_at, channel_of = pooled[0].tolist(), pooled[1].tolist()
        rows_at = [{channel_of[e]: e for e in range(above_at[q], above_at[q + 1])} for q in range(batch * outputs)]
        offsets, channels, starts, rows = [0], [], [0], []
        below_at, wanted_of = wanted[0].tolist(), wanted[1].tolist()
        for q in range(batch * inputs):
            windows = [q // inputs * outputs + o for o in joined[q % inputs].nonzero().flatten().tolist()]
            for channel in wanted_of[below_at[q] : below_at[q + 1]]:
                taken = [rows_at[o][channel] for o in windows if channel in rows_at[o]]
                if taken:
                    channels.append(channel)
                    rows += taken
                    starts.append(len(rows))
            offsets.append(len(channels))
        overlap = any(k > s for k, s in zip(kernel, stride, strict=True))
        expected = [offsets, channels, starts if overlap else [], rows]
        assert [t.tolist() for t in found] == expected, (above, below)
        assert overlap or len(rows) == len(channels)
        assert [t.dtype for t in found] == [torch.int64, torch.int32, torch.int64, torch.int64]


def test_no_samples_and_no_channels():
    for size in ((0, 3, 4, 4), (2, 0, 4, 4)):
        pooled, wanted = pattern_of(torch.ones(*size[:2], 2, 2)), pattern_of(torch.ones(size))
        found = KERNELS.sparse_windows(wanted, pooled, size[0], [4, 4], [2, 2], [2, 2], [2, 2], [0, 0])
        assert [len(t) for t in found] == [size[0] * 16 + 1, 0, 0, 0]


# The form


@pytest.mark.parametrize("name", POOLS)
def test_what_a_window_reaches(name):
    form = form_of(name, None, torch.float32)
    for density in (0.0, 0.2, 1.0):
        mask = alive(2, *POOLS[name][0], density=density, dtype=torch.float32)
        expected = AVG_POOL[mask.dim()]((mask != 0).double(), *POOLS[name][1:4], POOLS[name][4])
        assert torch.equal(form.reached(mask) != 0, expected != 0)


def identity(sizes, slot, dtype):
    """A layer that multiplies with what is in a slot."""
    channels, dims = sizes[0], len(sizes) - 1
    weight = torch.eye(channels, dtype=dtype).view(channels, channels, *[1] * dims)
    geometry = ConvGeometry([1] * dims, [0] * dims, [1] * dims, False, [0] * dims, 1)
    return Affine((weight,), (slot,), (False,), None, None, geometry, sizes, sizes, 1, "identity")


def renaming(sizes):
    """A pool that does nothing but put the rows into another register."""
    ones = [1] * (len(sizes) - 1)
    return AvgPool(None, None, sizes, sizes, PoolGeometry(ones, ones, [0] * len(ones)))


def through(forms, state, register):
    """All registers of these layers in turn, computed the sparse way."""

    def never(*_):
        raise AssertionError("the dense way was taken")

    steps = [
        (BackwardStep("a layer", None, never, (i,), (), (i + 1,), (0,), 0, form), ()) for i, form in enumerate(forms)
    ]
    found = specialize(steps, state, lambda *_: True)
    registers = {0: register}
    for step, _ in found.steps:
        registers[step.out] = step.run(*[registers[r] for r in step.ins])
    return [registers[i] for i in range(len(forms) + 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POOLS)
def test_pools(name, dtype):
    """Of a register that is NaN wherever nothing is wanted of it: dense, rows in order, and rows that were renamed."""
    size = POOLS[name][0]
    for count, above, below in ((1, 1.0, 0.5), (7, 0.5, 0.5), (16, 0.3, 1.0), (33, 0.0, 1.0), (70, 0.6, 0.1),
                                (10, 1.0, 1.0), (3, 1.0, 0.0)):  # fmt: skip
        wanted = alive(2, *size, density=below, dtype=dtype)
        for scaled in (True, False):
            form = form_of(name, 1 if scaled else None, dtype)
            scale = alive(2, *form.arriving, density=above, dtype=dtype) if scaled else None
            register = torch.randn(2, count, *form.arriving, dtype=dtype)
            expected = defined(name, register, scale) * wanted.unsqueeze(1)
            known = form.reached(wanted) if scale is None else scale
            register = register.masked_fill(known.unsqueeze(1) == 0, torch.nan)
            reader = identity(size, 0, dtype)
            copy = identity(form.arriving, 2, dtype)
            state = [wanted, scale, (known != 0).to(dtype)]
            for higher in ([], [copy], [renaming(form.arriving)], [copy, renaming(form.arriving)]):
                registers = through([*higher, form, reader], state, register)
                assert type(registers[-2]) is Compact
                found = registers[-1]
                assert found.shape == expected.shape
                assert bool(found.isfinite().all())
                error = float((found.double() - expected).norm())
                assert error <= TOLERANCE[dtype] * float(expected.norm()), (count, above, below, scaled, higher)


@pytest.mark.parametrize("name", ["tiles", "sum", "rest_ceil", "identity"])
def test_tiles_only_rename_rows(name):
    """What one window has is in one row, however many pools are stacked: nothing is copied."""
    form = replace(form_of(name, None, torch.float32), shares=None)
    wanted = torch.ones(2, *form.leaving)
    chain = [identity(form.arriving, 1, torch.float32), renaming(form.arriving), form, renaming(form.leaving),
             identity(form.leaving, 0, torch.float32)]  # fmt: skip
    registers = through(chain, [wanted, torch.ones(2, *form.arriving)], torch.randn(2, 7, *form.arriving))
    above, _, middle, below = registers[1:5]
    assert above.rows is None
    assert middle.values is below.values is above.values
    assert middle.pattern.entries == below.pattern.entries == wanted.numel() == len(middle.rows) == len(below.rows)


# In networks


@cache
def network(name, overlap_with_max=False):
    """Two layers with a weight around a pool, an average of the rest, and a linear layer."""
    size, kernel = POOLS[name][:2]
    dims = len(kernel)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        layers = [
            CONV[dims](size[0], 6, 3, padding=1), nn.ReLU(), pool_of(name), CONV[dims](6, 5, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.LazyLinear(12),
        ]  # fmt: skip
        if overlap_with_max:
            layers[2:3] = [LAYER[dims](2, 1, 1), pool_of(name), [nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d][dims - 1](1)]
        model = nn.Sequential(*layers).eval()
        model(torch.zeros(1, *size))
        return model.double()


RULES = {
    "norm": composites.epsilon_plus,
    "epsilon": composites.epsilon,
    "gradient": composites.gradient,
    "of_sum": lambda: Composite(((tuple(LAYER.values()), rules.Norm(of_sum=True)), *composites.epsilon().entries)),
}


@pytest.mark.each_value(2)
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", POOLS)
def test_networks(name, rule, stacked):
    model = network(name, stacked)
    x = torch.randn(2, *POOLS[name][0], dtype=torch.float64)
    composite = RULES[rule]()
    with (
        Explainer(model, composite, paths="sparse").forward(x) as ours,
        Explainer(model, composite, paths="dense").forward(x) as theirs,
    ):
        for targets in (1, [i % 12 for i in range(40)]):
            assert_same(ours.relevance(targets), theirs.relevance(targets), 1e-12)
        assert_same(ours.relevance([1, 2], layers="all"), theirs.relevance([1, 2], layers="all"), 1e-12)


@pytest.mark.parametrize("output", [(1, 1), (2, 3), (4, 6), (3, 4), (None, 2)])
def test_adaptive_pools(output):
    """Those whose windows are all alike, and others."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(output), nn.Conv2d(6, 4, 1),
                          nn.ReLU(), nn.Flatten(), nn.LazyLinear(12)).eval()  # fmt: skip
    x = torch.randn(2, 2, 4, 6)
    model(x)
    model, x = model.double(), x.double()
    for composite in ("epsilon_plus", "gradient"):
        sparse, dense = (Explainer(model, composite, paths=paths) for paths in ("sparse", "dense"))
        given = list(range(12))
        assert_same(sparse(x, given), dense(x, given), 1e-12)


def test_max_pools_as_averages():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
                          nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(12)).eval()  # fmt: skip
    x = torch.randn(2, 2, 9, 8)
    model(x)
    model, x = model.double(), x.double()
    for mode in ("average", "sum"):
        composite = composites.epsilon_plus(max_pool=mode)
        sparse, dense = (Explainer(model, composite, paths=paths) for paths in ("sparse", "dense"))
        assert_same(sparse(x, list(range(12))), dense(x, list(range(12))), 1e-12)
        assert any(isinstance(step.form, AvgPool) for step in sparse.plan.program.backward)


@pytest.mark.parametrize(("pool", "given"), [(nn.AvgPool2d(4), 1.0), (nn.MaxPool2d(4), 1 / 16)])
def test_below_an_average_pool_all_that_is_wanted_is_given(pool, given):
    """Not only as many entries as the pool has outputs, as below a max-pool, whose winners alone get something."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), pool, nn.Flatten(), nn.Linear(32, 4))
    explainer = Explainer(model.eval(), "epsilon", paths="sparse")
    record = explainer.forward(torch.rand(1, 3, 8, 8))
    record.relevance(range(4))
    assert record.paths["1"].arriving == pytest.approx(given)
