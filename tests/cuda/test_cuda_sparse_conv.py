"""Relevance through a layer for alive neurons only: the CUDA kernels, emulated, against products in float64 of the
operands that they round, and against the CPU's kernels."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cuda.emulated import ORDERS, ROOT, emulated, order
from tests.cuda.sparse_conv_cases import CPU, KINDS, Case, allowing_tf32, pattern, rows_of
from tests.cuda.test_cuda_compile import compiled, figures
from tests.fixtures import one_thread, poisoned, seeded  # noqa: F401
from tests.ops.cases import channels_last, reversed_memory, same, with_gaps
from tests.sparse.cases import Layer
from tests.sparse.test_sparse_kernels import LAYERS

SHAPES = ["linear", "same", "stride", "even_kernel", "groups_of_many", "transposed", "volume", "line"]
# Sizes that ask for every tile: runs of one to eight positions, one to three tiles of columns, more places than are
# looked at together, and more terms than a batch has.
TILES = {
    "one_position_each": (Layer(70, 5, (12, 11), 1, batch=2), 1.0),
    "two_tiles": (Layer(280, 3, (10, 10), 1, batch=1), 0.6),
    "three_tiles": (Layer(290, 3, (10, 10), 1, batch=1), 1.0),
    "runs_of_three": (Layer(36, 40, (3, 10), 3, padding=1, batch=1), 0.9),
    "runs_that_overflow": (Layer(130, 9, (2, 17), 3, padding=1, batch=1), 0.08),
    "runs_in_groups": (Layer(48, 32, (3, 9), 3, padding=1, groups=2, batch=1), 0.4),
    "many_taps": (Layer(3, 4, (9, 8), (12, 13), padding=6, batch=1), 0.5),
    "many_taps_dilated": (Layer(3, 4, (6, 7), (12, 13), padding=12, dilation=2, batch=1), 0.5),
    "many_terms": (Layer(20, 300, (2, 5), 3, padding=1, batch=1), 0.5),
    "long_linear": (Layer(70, 1030, (), batch=2), 0.5),
    "gaps_between_taps": (Layer(4, 3, (3, 9), (2, 2), stride=(3, 4), transposed=True), 0.5),
    "narrow_stride": (Layer(20, 6, (3, 23), (1, 2), stride=(1, 5)), 0.2),
}  # fmt: skip


@pytest.fixture(params=ORDERS)
def threads(request):
    """In which order the threads of a block run."""
    with order(request.param, seed=3):
        yield request.param


def check(case: Case) -> Tensor:
    """Rows, and a dense result, which must be the same bit for bit."""
    rows = case.call()
    found = case.dense(rows)
    case.close(found, case.expected())
    assert torch.equal(case.call(channels=case.layer.inputs).to(found.dtype), found)
    return rows


@pytest.mark.parametrize("name", LAYERS)
def test_geometries(name):
    """Each without tensor cores and with them, in one of the orders of threads."""
    for number, kind in enumerate(("float32", ("tf32", "float16")[len(name) % 2])):
        with order(ORDERS[(number + len(name)) % 3], seed=number):
            check(Case(LAYERS[name], KINDS[kind], 7 if number == 1 else 33, products=1 + number % 2))


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_geometries_in_other_types(name, kind, threads):
    check(Case(LAYERS[name], KINDS[kind], 21, products=2))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(TILES, ("float32", "tf32")),
        *((name, ("float16", "float64")[n % 2]) for n, name in enumerate(TILES) if n % 3 < 2),
    ],
)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.full)])
def test_tiles(name, kind, every):
    """With one number of targets in turn, with each in a full run."""
    layer, below = TILES[name]
    turn = list(TILES).index(name) + list(KINDS).index(kind)
    ways = ((20, 2), (70, 1)) if len(name) % 2 else ((20, 1), (50, 1), (70, 2))
    for count, products in ways if every else [ways[turn % len(ways)]]:
        check(Case(layer, KINDS[kind], count, products, above=0.9, below=below))


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear", "valid", "depthwise_volume"])
def test_counts(name, kind):
    """Around the targets of a vector, a warp and a tile."""
    for count in (1, 8, 17, 33, 64, 65, 130):
        check(Case(LAYERS[name], KINDS[kind], count))


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["linear", "same", "groups"])
def test_densities(name, kind):
    for above, below in itertools.product((0.0, 0.05, 1.0), repeat=2):
        check(Case(LAYERS[name], KINDS[kind], 20, 2, above, below))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["linear", "same", "stride", "groups_of_many", "depthwise", "transposed", "volume"])
def test_as_on_the_cpu(name, dtype):
    case = Case(LAYERS[name], KINDS[dtype], 33, products=2)
    found, expected = case.call(), case.call(module=CPU)
    assert found.shape == expected.shape
    case.close(found[:, :33], expected[:, :33].double())
    case.close(case.call(channels=case.layer.inputs), case.call(channels=case.layer.inputs, module=CPU).double())


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_the_order_of_threads(kind):
    layers = (LAYERS["same"], LAYERS["depthwise"], *(TILES[name][0] for name in ("two_tiles", "runs_of_three")))
    for layer in layers:
        case = Case(layer, KINDS[kind], 40, products=2)
        plain = case.call()[:, :40]
        for name, seed in (("backward", 0), ("random", 1)):
            with order(name, seed):
                assert torch.equal(case.call()[:, :40], plain)


@pytest.mark.each_value
@pytest.mark.parametrize(("name", "kind"), itertools.product(["linear", "valid", "depthwise_volume"], KINDS))
def test_rows_in_any_order_and_some_of_their_lanes(name, kind):
    """Rows elsewhere in a wider table that is NaN apart from them; not all begin at 16 bytes."""
    for count in (1, 33):
        case = Case(LAYERS[name], KINDS[kind], count)
        values, _, *entries = case.arriving
        plain = case.call()[:, :count]
        for start in (0, 5, 16):
            table = torch.full((2 * len(values) + 3, 16 * 4), torch.nan, dtype=values.dtype)
            place = torch.randperm(len(table))[: len(values)]
            table[place, start : start + count] = values[:, :count]
            for part, rows in ((table[:, start:], place), (table[place][:, start : start + count], None)):
                with order(ORDERS[(start + count) % 3], seed=3):
                    found = case.call(arriving=(part, rows, *entries))[:, :count]
                assert torch.equal(found, plain)


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear", "same", "groups_of_many", "depthwise_volume", "transposed"])
def test_sums_that_begin_with_another_register(name, kind):
    """Its pattern is its own: what it lacks begins at zero, what it has beyond the result's is left out."""
    layer = LAYERS[name]
    size = (layer.batch, layer.inputs, *layer.size)
    for count, factored in ((7, False), (40, True)):
        case = Case(layer, KINDS[kind], count, products=2)
        mask, factor = (case.alive(*size, density=0.5) for _ in range(2))
        register = torch.randn(size[0], count, *size[1:]).to(case.kind.dtype)
        begin = rows_of(register.masked_fill(mask.unsqueeze(1) == 0, torch.nan), pattern(mask))
        expected = torch.where(mask.unsqueeze(1) != 0, register.double(), 0.0)
        expected = expected * factor.double().unsqueeze(1) if factored else expected
        expected = (expected + case.everywhere()) * (case.mask != 0).unsqueeze(1)
        found = case.call(initial=[(*begin, factor if factored else None)])
        case.close(case.dense(found), expected)
        # The same from rows in another order, in a wider table that begins anywhere.
        place = torch.randperm(len(begin[0]))
        table = torch.full((len(place), count + 9), torch.nan, dtype=case.kind.dtype)
        table[place, 3 : 3 + count] = begin[0][:, :count]
        moved = (table[:, 3 : 3 + count], place, *begin[2:], factor if factored else None)
        assert torch.equal(case.call(initial=[moved])[:, :count], found[:, :count])


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear", "same", "stride", "transposed", "volume"])
def test_weights_by_the_sign_of_the_input(name, kind):
    """Input channels twice, each with its own weight: folded into one dense result."""
    for count, products in ((5, 1), (40, 2)):
        case = Case(LAYERS[name], KINDS[kind], count, products)
        x, weights = case.mask, [case.layer.canonical(w) for w in case.weights]
        both = [torch.cat([w.clamp(min=0), w.clamp(max=0)], 2) for w in weights]
        leaving = pattern(torch.cat([x.clamp(min=0), x.clamp(max=0)], 1))
        found = case.call(case.layer.inputs, weights=both, leaving=leaving)
        above = case.everywhere([w.clamp(min=0) for w in case.weights]) * (x > 0).unsqueeze(1)
        below = case.everywhere([w.clamp(max=0) for w in case.weights]) * (x < 0).unsqueeze(1)
        case.close(found, above + below)


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    [
        *((name, kind, same) for name in ("linear", "same", "stride", "one_position", "volume") for kind in KINDS),
        *(("same", kind, change) for kind in ("tf32", "float32") for change in (channels_last(1), with_gaps)),
        *(("volume", kind, reversed_memory) for kind in ("tf32", "float32")),
    ],
)
def test_folds_with_factors(name, kind, change):
    """As the box rule has it: a product for each fold; at some neurons all are alive, at others some or none."""
    layer = LAYERS[name]
    for count, folds, below in ((5, 1, 1.0), (33, 2, 1.0), (17, 3, 0.4)):
        case = Case(layer, KINDS[kind], count)
        size = (layer.batch, layer.inputs, *layer.size)
        weights = [layer.weight(case.kind.wide).to(case.kind.dtype) for _ in range(folds)]
        masks, factors = ([case.alive(*size, density=d) for _ in range(folds)] for d in (below, 1.0))
        parts = [case.everywhere([w]) * (m != 0).unsqueeze(1) for w, m in zip(weights, masks, strict=True)]
        packed = [torch.cat([layer.canonical(w) for w in weights], 2)]
        for given in (factors, []):
            found = case.call(
                layer.inputs, weights=packed, leaving=pattern(torch.cat(masks, 1)), factors=[change(f) for f in given]
            )
            times = [f.double().unsqueeze(1) for f in given] or [1.0] * folds
            expected = sum(f * part for f, part in zip(times, parts, strict=True))
            norm = sum(float((f * part).norm()) for f, part in zip(times, parts, strict=True))
            # Summands were rounded before they are added, and may cancel.
            assert float((found.double() - expected).norm()) <= 1.5 * case.kind.tolerance * norm


def test_folds_of_groups():
    """Channels are numbered through all groups, so a fold may be one of them."""
    case = Case(Layer(6, 8, (5, 6), 3, padding=1, groups=2), KINDS["float64"], 9, below=1.0)
    case.close(case.call(channels=3), case.everywhere().unflatten(2, (2, 3)).sum(2))
    case = Case(Layer(6, 6, (5, 6), 3, padding=1, groups=6), KINDS["float32"], 9, below=1.0)
    case.close(case.call(channels=2), case.everywhere().unflatten(2, (3, 2)).sum(2))


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["tf32", "float16"])
@pytest.mark.parametrize("name", ["linear", "same", "groups_of_many", "depthwise"])
@pytest.mark.parametrize("change", [channels_last(1), with_gaps, reversed_memory, lambda t: torch._neg_view(-t)])
def test_memory_of_coefficients(name, kind, change):
    case = Case(LAYERS[name], KINDS[kind], 9, products=2)
    plain = case.call()[:, :9]
    assert torch.equal(case.call(coefficients=[change(u) for u in case.coefficients])[:, :9], plain)


def test_a_pattern_wider_than_its_coefficients():
    """Another reader's neurons are alive here too; a coefficient of zero stops them."""
    for kind in KINDS.values():
        case = Case(LAYERS["same"], kind, 9)
        register = case.register.nan_to_num(3.0)
        everything = rows_of(register, pattern(torch.ones_like(case.coefficients[0])))
        case.close(case.dense(case.call(arriving=everything)), case.expected())


@pytest.mark.parametrize("name", ["linear", "same", "depthwise"])
def test_no_targets(name):
    case = Case(LAYERS[name], KINDS["float32"], 1)
    values, *rest = case.arriving
    for part in (values, values[:, :0]):
        assert case.call(arriving=(part, *rest), count=0).shape == (len(case.leaving[1]), 0)
        dense = case.call(case.layer.inputs, arriving=(part, *rest), count=0)
        assert dense.shape == (2, 0, case.layer.inputs, *case.layer.size)


def test_dense_results_have_their_channels_innermost():
    case = Case(LAYERS["same"], KINDS["float32"], 9, below=1.0)
    assert case.call(case.layer.inputs).movedim(2, -1).is_contiguous()


def test_one_launch_and_nothing_read_on_the_host():
    module = emulated()
    case = Case(LAYERS["same"], KINDS["float32"], 9, products=2)
    arguments = {"arriving": case.arriving, "leaving": case.leaving}
    case.call(**arguments)  # looks at patterns that other kernels made
    for channels, launches in ((None, 1), (case.layer.inputs, 1), (1, 2)):
        before = module.launches(), module.reads_on_host()
        case.call(channels, **arguments)
        assert (module.launches() - before[0], module.reads_on_host() - before[1]) == (launches, 0)


@pytest.mark.parametrize("name", ["same", "linear"])
def test_pytorch_switches_decide_on_tf32(name):
    """cudnn's for convolutions, matmul's for linear layers."""
    case = Case(LAYERS[name], KINDS["float32"], 9)
    exact, rounded = (case.call(allowing=allowing_tf32(both, both))[:, :9] for both in (False, True))
    assert not torch.equal(exact, rounded)
    for convolutions, products in ((True, False), (False, True)):
        found = case.call(allowing=allowing_tf32(convolutions, products))[:, :9]
        assert torch.equal(found, rounded if (products if name == "linear" else convolutions) else exact)


def test_packed_weights():
    weight = torch.randn(3, 5, 7, 4, dtype=torch.float64)
    packed = emulated().sparse_pack(weight)
    assert packed.is_contiguous()
    assert torch.equal(packed, weight.permute(0, 3, 1, 2))


def test_tensor_cores_are_used():
    """The machine code of every tile has its kind's product, and no other's."""
    tools = pytest.importorskip("triton.backends.nvidia", reason="cuobjdump comes with Triton")
    cuobjdump = Path(tools.__path__[0]) / "bin" / "cuobjdump"
    if not cuobjdump.exists():
        pytest.skip(f"there is no {cuobjdump.name}")
    log, built = compiled(ROOT / "csrc" / "cuda" / "sparse_conv.cu")
    text = subprocess.run([cuobjdump, "-sass", built], capture_output=True, text=True, check=True).stdout
    seen = []
    for part in re.split(r"(?=Function : )", text)[1:]:
        kernel = part.split("\n", 1)[0]
        products = set(re.findall(r"HMMA\.(\S+)", part))
        kind = next(name for name in ("Tf32", "__half", "__nv_bfloat16", "Plain") if name in kernel)
        expected = {"Tf32": {"1688.F32.TF32"}, "__half": {"16816.F32"}, "__nv_bfloat16": {"16816.F32.BF16"}}
        assert products == expected.get(kind, set()), kernel
        assert ("LDSM" in part) == (kind != "Plain"), kernel
        assert "LDGSTS" in part, kernel
        seen.append(kind)
    assert len(seen) == len(figures(log)) > 25
    assert set(seen) == {"Tf32", "__half", "__nv_bfloat16", "Plain"}
