"""Sparse products of bfloat16: against float64 with rounded operands, and each unit against its definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer, composites
from fastlrp.plan.forms import Affine
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.paths.choose import Chooser
from fastlrp.plan.paths.rates import Rates, shipped
from fastlrp.plan.products import reduced
from tests.sparse import cases
from tests.sparse.cases import KERNELS, Layer, Problem, pattern_of, relevance, rows_of, scaled

TOLERANCE = 1e-6
"""Of sums in float32 of at most 1,200 terms, in the 2-norm; worst measured 1.4e-7."""

LAYERS = {
    "3x3": Layer(20, 30, (7, 9), padding=1),
    "one output more than a block": Layer(65, 129, (3, 4), padding=1),
    "strides and dilation": Layer(17, 33, (9, 8), kernel=(2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "groups": Layer(12, 9, (6, 5), groups=3, padding=1),
    "transposed": Layer(9, 7, (4, 5), stride=2, padding=1, output_padding=1, transposed=True),
    "many inputs of one output": Layer(40, 1, (5, 6), padding=1),
    "1x1": Layer(70, 50, (3, 3), kernel=1),
    "one axis": Layer(5, 6, (31,), kernel=4, padding=2),
    "three axes": Layer(4, 5, (3, 4, 5), padding=1, batch=1),
    "thin": Layer(2, 40, (12, 11), padding=1),
    "linear": Layer(300, 200, ()),
    "more rows than are gathered at once": Layer(20, 60, (11,), kernel=7, padding=3),
}


@pytest.fixture(params=KERNELS.available_bf16_units())
def unit(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every unit that this machine has."""
    KERNELS.set_bf16_unit(request.param)
    yield request.param
    KERNELS.set_bf16_unit("auto")


def rounded(problem: Problem) -> Tensor:
    """``(B, K, Ci, *S)`` in float64 from operands that were rounded to bfloat16."""
    parts = zip(problem.coefficients, problem.weights, strict=True)
    return sum(
        problem.layer.transpose(w.bfloat16().double(), scaled(u, problem.register).bfloat16().double())
        for u, w in parts
    )


def assert_close(found: Tensor, expected: Tensor, context: object = "") -> None:
    error = float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))
    assert found.shape == expected.shape, context
    assert error <= TOLERANCE, f"{context}: {error:.3g}"


@pytest.mark.parametrize("name", LAYERS)
def test_bf16_products_are_those_of_rounded_operands(name: str, unit: str) -> None:
    for count in (1, 70) if name == "3x3" else (33,):
        problem = Problem(LAYERS[name], count, torch.float32, above=0.4, below=0.6)
        expected = rounded(problem)
        mask = (problem.mask != 0).unsqueeze(1)
        assert_close(problem.dense(problem.call(narrow=True)), expected * mask, (name, count))
        everywhere = pattern_of(torch.ones_like(problem.mask))
        dense = problem.call(leaving=everywhere, channels=problem.layer.inputs, narrow=True)
        assert_close(dense, expected, (name, count, "dense"))


def test_bf16_with_two_products_and_a_sum_to_begin_with(unit: str) -> None:
    problem = Problem(LAYERS["3x3"], 20, torch.float32, products=2)
    begin = torch.randn(2, 20, 20, 7, 9)
    factor = cases.alive(2, 20, 7, 9, density=0.5, dtype=torch.float32)
    initial = [(*rows_of(begin, pattern_of(factor)), factor)]
    found = problem.dense(problem.call(initial=initial, narrow=True))
    mask = (problem.mask != 0).unsqueeze(1)
    assert_close(found, (rounded(problem) + scaled(factor, begin)) * mask)


def test_bf16_with_one_of_two_weights(unit: str) -> None:
    layer, count = LAYERS["one output more than a block"], 8
    u, v = (cases.alive(2, 129, 3, 4, density=0.5, dtype=torch.float32) for _ in range(2))
    register = torch.randn(2, count, 129, 3, 4)
    first, second = layer.weight(torch.float32), layer.weight(torch.float32)
    leaving = pattern_of(torch.ones(2, 65, 3, 4))
    weights = [layer.canonical(w) for w in (first, second)]
    found = relevance(layer, rows_of(register, pattern_of(u)), count, [u], weights, leaving, 65, other=v, narrow=True)
    turned = (u * v < 0) & (u != 0)
    expected = sum(
        layer.transpose(w.bfloat16().double(), scaled(torch.where(here, c, 0.0), register).bfloat16().double())
        for w, c, here in ((first, u, ~turned), (second, u + v, turned))
    )
    assert_close(found, expected)


def of_both_units(case: Problem) -> Iterator[tuple[Tensor, Tensor, str]]:
    """By the software that defines a layout's order of sums, and by each unit that this machine has for it."""
    for defined, fast in {"software": "avx512_bf16", "software_tiles": "amx"}.items():
        if fast in KERNELS.available_bf16_units():
            found = []
            for name in (defined, fast):
                KERNELS.set_bf16_unit(name)
                found.append(case.call(narrow=True)[:, : case.count])
            KERNELS.set_bf16_unit("auto")
            yield *found, fast


@pytest.mark.parametrize("name", LAYERS)
def test_bf16_units_of_one_layout_give_the_same_bits(name: str) -> None:
    """AVX512-BF16 and AMX add in the order that their software shows."""
    for by_definition, found, unit in of_both_units(Problem(LAYERS[name], 20, torch.float32)):
        assert torch.equal(by_definition, found), unit


@pytest.mark.parametrize("name", ["one axis", "1x1", "more rows than are gathered at once"])
def test_bf16_units_of_one_layout_give_the_same_bits_of_the_smallest_numbers(name: str) -> None:
    """A sum and its next product are rounded at once, also where the product alone would be below 2^-126."""
    problem = Problem(LAYERS[name], 20, torch.float32)
    problem.register *= 2.0**-122
    for by_definition, found, unit in of_both_units(problem):
        assert torch.equal(by_definition, found), unit


@pytest.mark.parametrize("inputs", [1, 15, 16, 17, 32, 33, 48, 49, 64])
def test_bf16_edges_of_tiles(inputs: int) -> None:
    """Channels and targets that fill tiles, and one more or less."""
    for outputs in (1, 31, 33, 257):
        for count in (1, 17, 33, 64, 65):
            case = Problem(Layer(inputs, outputs, (2,), kernel=1, batch=1), count, torch.float32, above=0.9, below=1.0)
            expected = rounded(case)
            for by_definition, found, unit in of_both_units(case):
                assert torch.equal(by_definition, found), (unit, outputs, count)
                assert_close(case.dense(found.contiguous()), expected, (unit, outputs, count))


def test_bf16_is_the_same_whatever_the_threads_blocks_and_targets(unit: str, threads: None) -> None:
    problem = Problem(Layer(20, 30, (7, 9), padding=1), 70, torch.float32)
    whole = problem.call(narrow=True)
    torch.set_num_threads(2)
    assert torch.equal(problem.call(narrow=True)[:, :70], whole[:, :70])
    values, _, *pattern = problem.arriving
    for start, count in ((0, 1), (3, 16), (40, 30)):
        part = (values[:, start : start + count], None, *pattern)
        assert torch.equal(problem.call(arriving=part, count=count, narrow=True)[:, :count],
                           whole[:, start : start + count])  # fmt: skip
    single = Problem(Layer(20, 30, (7, 9), padding=1, batch=1), 70, torch.float32)
    single.weights, single.coefficients = problem.weights, [problem.coefficients[0][:1]]
    single.register, single.mask = problem.register[:1], problem.mask[:1]
    alone = single.call(narrow=True)
    assert torch.equal(alone[:, :70], whole[: len(alone), :70])


def test_bf16_passes_on_what_is_not_finite(unit: str) -> None:
    problem = Problem(LAYERS["3x3"], 4, torch.float32, above=1.0, below=1.0)
    clean = problem.dense(problem.call(narrow=True))
    problem.register[0, 1, 5, 3, 4] = torch.nan
    problem.register[1, 2, 7, 3, 4] = torch.inf
    found = problem.dense(problem.call(narrow=True))
    reached = torch.zeros(7, 9, dtype=torch.bool)
    reached[2:5, 3:6] = True
    assert bool(found[0, 1][:, reached].isnan().all())
    assert not bool(found[1, 2][:, reached].isfinite().any())
    found[0, 1][:, reached] = clean[0, 1][:, reached]
    found[1, 2][:, reached] = clean[1, 2][:, reached]
    assert torch.equal(found, clean)


def test_bf16_weights_are_refused_with_reasons(unit: str) -> None:
    with pytest.raises(ValueError, match="sparse_pack_pairs: one channel per group makes no pairs"):
        KERNELS.sparse_pack_pairs(torch.ones(3, 1, 1, 9))
    with pytest.raises(TypeError, match="sparse_pack_pairs: weight must"):
        KERNELS.sparse_pack_pairs(torch.ones(1, 2, 3, 9, dtype=torch.float64))
    problem = Problem(LAYERS["3x3"], 4, torch.float64)
    problem.weights = [w.float() for w in problem.weights]
    with pytest.raises(TypeError, match="values"):
        problem.call(narrow=True)
    with pytest.raises(ValueError, match=r"bf16 unit: expected 'auto' or one that this machine has .*, got 'mmx'"):
        KERNELS.set_bf16_unit("mmx")


# Whole explanations


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
              nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU(), nn.Conv2d(24, 40, 1), nn.ReLU(), nn.Flatten(),
              nn.Linear(40 * 49, 20)]  # fmt: skip
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    "composite",
    [composites.epsilon_plus(), composites.gamma(), composites.epsilon_alpha2_beta1(),
     composites.epsilon_gamma_box(-3.0, 3.0)],
    ids=lambda c: c.name,
)  # fmt: skip
def test_bf16_sparse_explanations_are_those_of_float32_to_a_few_digits(
    composite: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduced, "NEAREST", 0)  # The last convolution has its kernel of bfloat16, too.
    model, x = network(), torch.randn(2, 3, 14, 14)
    full = Explainer(model, composite, precision="float32", paths="sparse")(x, range(20))
    for unit in KERNELS.available_bf16_units():
        KERNELS.set_bf16_unit(unit)
        explainer = Explainer(model, composite, precision="bf16", paths="sparse")
        found = explainer(x, range(20))
        KERNELS.set_bf16_unit("auto")
        error = (found - full).flatten(2).norm(dim=-1) / full.flatten(2).norm(dim=-1)
        assert float(error.max()) < 1e-2, unit  # Worst measured: 3.9e-3.
        if not unit.startswith("software"):  # which is never the faster one
            assert str(explainer.plan).count("sparse bf16") == 3, "the depthwise layer stays in float32"
            assert torch.equal(explainer(x, range(3, 9)), found[:, 3:9])


def test_the_cheapest_of_four_ways_is_taken() -> None:
    form = _form()
    rates = replace(Rates(), reduced=2.0, sparse_reduced=2 * Rates.sparse, half_reduced=2 * Rates.half_filled)

    def way(
        alive: float, count: int = 32, wish: str = "auto", rates: Rates | None = rates, narrow: bool = True,
        form: Affine = form,
    ) -> str:  # fmt: skip
        return Chooser(wish).way(replace(form, is_reduced=narrow), alive, alive, count, 4, rates)

    assert way(0.3) == way(0.3, wish="sparse") == way(0.9, wish="sparse") == "sparse bf16"
    assert way(1.0) == way(0.3, count=7) == way(0.3, wish="dense") == way(0.3, rates=None) == "dense"
    assert way(0.3, narrow=False) == way(0.3, rates=shipped("software")) == "sparse"
    assert way(0.3, wish="sparse", rates=None) == "sparse"
    assert way(0.3, rates=shipped("avx512_bf16")) == way(0.3, rates=shipped("amx")) == "sparse bf16"
    # Measured of such a layer of VGG-16 with eight targets: 128 ms sparse, 144 dense.
    twice = replace(form, weights=form.weights * 2, coefficients=(0, 1), splits=(False, False))
    assert way(0.5, count=8, rates=shipped("avx512_bf16"), form=twice) == "sparse bf16"
    depthwise = replace(
        form, geometry=replace(form.geometry, groups=256), weights=(torch.empty(1).expand(256, 1, 3, 3),)
    )
    assert not replace(depthwise, is_reduced=True).has_pairs


def _form() -> Affine:
    weight = torch.empty(1).expand(256, 256, 3, 3)
    geometry = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    return Affine(
        (weight,), (0,), (False,), None, None, geometry, (256, 28, 28), (256, 28, 28), 2 * 9 * 256**2 * 784, ""
    )
