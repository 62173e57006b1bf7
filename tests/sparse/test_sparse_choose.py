"""The model of costs, and what a user may wish for."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from fastlrp.plan.forms import Affine, Sum
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.paths.choose import LEAST_TARGETS, OF_CHANGES, Chooser, estimate
from fastlrp.plan.paths.path import Path
from fastlrp.plan.paths.rates import Rates
from fastlrp.plan.steps import BackwardStep
from fastlrp.run.sparse import wholes
from fastlrp.run.sparse.specialize import Outlook
from fastlrp.run.sparse.specialize import outlook as outlook_of
from fastlrp.run.sparse.wholes import OF_PATTERNS, cheapest, cost_of, cost_of_whole

RATES = Rates()

DENSITIES = [0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0]
COUNTS = [8, 15, 16, 17, 32, 33, 64, 100, 1000]


def layer(
    inputs=256, outputs=256, size=28, kernel=3, groups=1, signed=False, box=False, products=1, path="features.10"
):
    """A convolution as VGG-16 has them; nothing here runs, so its weights need no memory of their own."""
    weight = torch.empty(1).expand(outputs, inputs // groups, kernel, kernel)
    work = 2 * outputs * size * size * inputs // groups * kernel * kernel
    geometry = ConvGeometry([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], groups)
    return Affine(
        (weight,) * products, tuple(range(products)), (False,) * products, 9 if signed else None,
        (7, 8) if box else None, geometry, (outputs, size, size), (inputs, size, size), work, path,
    )  # fmt: skip


def linear(inputs=512, outputs=4096):
    weight = torch.empty(1).expand(outputs, inputs, 1)
    return Affine((weight,), (0,), (False,), None, None, ConvGeometry(), (outputs,), (inputs,),
                  2 * inputs * outputs, "classifier")  # fmt: skip


FORMS = {
    "vgg": layer(), "first": layer(3, 64, 224, signed=True), "box": layer(3, 64, 224, box=True, products=2),
    "deep": layer(512, 512, 14), "pointwise": layer(256, 64, 56, 1), "grouped": layer(groups=32),
    "depthwise": layer(groups=256), "two_products": layer(products=2), "linear": linear(),
}  # fmt: skip


def cost(form, above, below, count, itemsize=4):
    found = estimate(form, above, below, count, itemsize)
    assert found.dense > 0
    assert found.sparse >= 0
    return found


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("itemsize", [4, 8])
def test_cost_grows_with_density(name, itemsize):
    form = FORMS[name]
    for count, fixed in itertools.product(COUNTS, DENSITIES):
        for along in (lambda d, other=fixed: (d, other), lambda d, other=fixed: (other, d)):
            costs = [cost(form, *along(d), count, itemsize) for d in DENSITIES]
            assert costs == sorted(costs, key=lambda c: c.sparse)
            assert len({c.dense for c in costs}) == 1, "the dense way does not look at densities"


@pytest.mark.parametrize("name", FORMS)
def test_cost_of_a_target_shrinks_with_full_lanes(name):
    """Sixteen targets share what one costs; full blocks all cost the same for each target."""
    each = {count: cost(FORMS[name], 0.3, 0.3, count).sparse for count in range(1, 65)}
    assert all(each[count] > each[count + 1] for count in range(1, 15))
    assert each[32] < each[16]
    assert each[17] > each[32]
    assert each[64] <= each[32]
    assert each[8] == pytest.approx(2 * each[16])


def test_double_costs_more_both_ways():
    single, double = cost(layer(), 0.3, 0.3, 32, 4), cost(layer(), 0.3, 0.3, 32, 8)
    assert 1.5 < double.sparse / single.sparse <= 2
    assert 1.5 < double.dense / single.dense <= 2


def test_products_of_bfloat16_are_cheaper_where_they_are_dense():
    form, rates = layer(), replace(RATES, reduced=4.0)
    full, reduced = (estimate(f, 0.5, 0.5, 32, 4, rates) for f in (form, replace(form, is_reduced=True)))
    assert reduced.sparse == full.sparse
    assert 0.2 * full.dense < reduced.dense < 0.3 * full.dense


def test_all_ways_down_are_compared_as_a_whole():
    """Half of the neurons are alive."""
    form, rates = replace(layer(), is_reduced=True), replace(RATES, reduced=2.5)
    sparse, dense = ([Path(form, s, 0.5, 0.5 if s else 1.0)] * 9 for s in (True, False))
    assert cost_of(sparse, 32, 4, rates) < cost_of(dense, 32, 4, rates)
    assert cost_of(sparse, 32, 4, replace(rates, reduced=7.0)) > cost_of(dense, 32, 4, replace(rates, reduced=7.0))
    assert not Chooser().sparse(form, 0.5, 1.0, 32, 4, rates), "layer by layer it would be dense throughout"


def test_a_stride_leaves_fewer_taps_of_each_position():
    """A position finds an output at a quarter of its taps, if these are taken at every other row and column."""
    dear = replace(RATES, call=1.0)
    form = layer(64, 64, 112, 1)
    strided = replace(form, geometry=ConvGeometry([2, 2], [0, 0], [1, 1], False, [0, 0], 1), arriving=(64, 56, 56))
    cost = [estimate(f, 0.5, 0.5, 16, 4, dear).sparse for f in (form, strided)]
    assert cost[0] == pytest.approx(112 * 112 / 16, rel=1e-3)
    assert cost[1] == pytest.approx(cost[0] / 4, rel=1e-3)


def test_dense_products_into_a_pictures_three_channels_fill_no_vector():
    free = replace(RATES, memory=1e30)
    three, eight = (estimate(layer(n, 64, 224), 0.5, 1.0, 16, 4, free).dense for n in (3, 8))
    assert three == pytest.approx(eight)
    assert estimate(layer(16, 64, 224), 0.5, 1.0, 16, 4, free).dense == pytest.approx(2 * eight)


def test_several_products_of_one_register_move_maps_of_float32():
    slow = replace(RATES, dense=1e30, reduced=2.0)
    full = layer(products=2)
    reduced = replace(full, is_reduced=True)
    one, both, gamma = (
        estimate(form, 0.5, 0.5, 8, 4, slow).dense
        for form in (replace(layer(), is_reduced=True), reduced, replace(reduced, gamma=0.25))
    )
    assert both == pytest.approx(4 * one)
    assert gamma == pytest.approx(2 * one)
    assert both == pytest.approx(estimate(full, 0.5, 0.5, 8, 4, slow).dense)


# Wholes


def outlooks(forms, densities, moved):
    """Ways down of layers one over the other, the last one first, as the rewriting would find them; ``moved``: entries
    where a dense register meets a sparse reader or the other way round."""

    def outlook(choose):
        paths, wanted, changes = [], 1.0, 0
        for form, above in zip(reversed(forms), reversed(densities), strict=True):
            way = choose(form, above, wanted)
            changes += bool(paths) and paths[-1].sparse != (way != "dense")
            paths.append(Path(form, way != "dense", above, wanted, way == "sparse bf16", above))
            wanted = above
        return Outlook(None, paths[::-1], 0, changes * moved)

    return outlook


def ways(forms, densities, count, wish="auto", moved=0, rates=RATES):
    found = cheapest(Chooser(wish), count, 4, rates, outlooks(forms, densities, moved))
    return ["sparse" if path.sparse else "dense" for path in found.paths]


def test_layers_go_the_way_of_their_neighbours_where_changes_cost_more_than_they_gain():
    """Layer by layer the last one is dense."""
    forms, densities = [layer(path=f"features.{n}") for n in (4, 3, 2)] + [layer(64, 256, 28, 1)], [0.3] * 3 + [0.9]
    alone = outlooks(forms, densities, 0)(lambda form, *d: Chooser().way(form, *d, 8, 4, RATES))
    assert [path.sparse for path in alone.paths] == [True, True, True, False]
    assert ways(forms, densities, 8, moved=10**7) == ["sparse"] * 4


@pytest.mark.parametrize(("of_mixed", "expected"), [(0.97, ["sparse"] * 3), (0.9, ["sparse", "dense", "dense"])])
def test_a_mixed_way_has_to_gain_more_than_its_estimate_leaves_out(monkeypatch, of_mixed, expected):
    def cost(way, *_):
        return {1: 1.0, 2: of_mixed}[len({path.sparse for path in way.paths})]

    monkeypatch.setattr(wholes, "cost_of_whole", cost)
    assert ways([replace(layer(512, 512), is_filtered=True)] * 3, [0.15, 0.5, 0.5], 8) == expected


def test_filtered_layers_beside_sparse_ones_are_dense():
    """VGG-16 with 8 targets: below a max-pool few neurons are given anything, elsewhere half of them is alive."""
    forms, given = [replace(layer(512, 512), is_filtered=True)] * 3, [0.15, 0.5, 0.5]
    assert ways(forms, given, 8, moved=10**6) == ["sparse", "dense", "dense"]
    assert ways([layer(512, 512)] * 3, given, 8, moved=10**6)[:2] == ["sparse"] * 2, "as plain sums"
    assert ways(forms, [0.15] * 3, 8, moved=10**6)[:2] == ["sparse"] * 2


def test_changes_of_form_count():
    """Sparse layers above a dense one pay as long as little has to be moved where they meet."""
    forms, densities = [layer(path=f"features.{n}") for n in (4, 3, 2)], [0.9, 0.1, 0.9]
    assert ways(forms, densities, 16) == ["sparse", "sparse", "dense"]
    assert ways(forms, densities, 16, moved=10**8) in (["dense"] * 3, ["sparse"] * 3)
    mixed = outlooks(forms, densities, 10**6)(lambda form, above, below: "sparse" if above < 0.5 else "dense")
    sparse, dense = ([path for path in mixed.paths if path.sparse == is_sparse] for is_sparse in (True, False))
    expected = OF_PATTERNS * cost_of(sparse, 16, 4, RATES) + cost_of(dense, 16, 4, RATES)
    expected += 4 * OF_CHANGES * 2e6 / RATES.memory
    assert cost_of_whole(mixed, 16, 4, RATES) == pytest.approx(expected)
    summed = replace(mixed, moved=10**6)
    assert cost_of_whole(summed, 16, 4, RATES) == pytest.approx(expected + 4 * 1e6 / RATES.memory)


def test_a_layer_that_changes_form_pays_for_maps_and_rows():
    """Dense by itself, sparse if maps above it and rows below it have to be made for it."""
    form = replace(layer(64, 64, 56), is_filtered=True)
    cost = estimate(form, 0.5, 0.5, 8, 4, RATES)
    changes = 4 * OF_CHANGES * 2 * 1.5 * 64 * 56 * 56 / RATES.memory
    assert cost.dense < cost.sparse < cost.dense + changes
    asked = form, 0.5, 0.5, 8, 4, RATES
    assert [Chooser().way(*asked, changes_form=changes) for changes in (False, True)] == ["dense", "sparse"]


def test_taking_tiles_apart_is_a_part_of_the_filtering():
    """64 channels at 56x56 gain less than 512 at 28x28, and maps of 14x14 fill 16 tiles."""

    def gain(form, rates=RATES):
        plain, filtered = (estimate(f, 0.5, 0.5, 8, 4, rates).dense for f in (form, replace(form, is_filtered=True)))
        return plain / filtered

    assert 1.4 < gain(layer(64, 64, 224)) < 1.7 < 2.5 < gain(layer(512, 512, 28)) < RATES.filtered
    free = replace(RATES, memory=1e30)
    assert gain(layer(512, 512, 14), free) == pytest.approx(gain(layer(512, 512, 28), free) * (14 / 16) ** 2)


def test_a_linear_layer_reads_its_weight_once_for_all_targets():
    """Of dead neurons the sparse way reads no rows."""
    slow = replace(RATES, dense=1e30, sparse=1e30, half_filled=1e30, call=1e-30)
    form = linear(20000, 4000)
    read = 4 * 20000 * 4000 / RATES.memory
    few, many = (estimate(form, 0.5, 0.5, count, 4, slow) for count in (16, 32))
    assert few.dense == pytest.approx(read / 16, rel=0.02)
    assert many.dense == pytest.approx(read / 32, rel=0.04)
    assert few.sparse == pytest.approx(read / 32, rel=0.04)
    assert estimate(form, 0.5, 0.5, 8, 4, slow).sparse == pytest.approx(read / 16, rel=0.04)


@pytest.mark.parametrize(
    ("chosen_ways", "moved", "changed"),
    [
        # The sum is dense, and its three maps are moved.
        (("dense", "dense", "dense"), 3 * 12, 0),
        # The initial relevance is made compact.
        (("sparse", "sparse", "sparse"), 0, 12 + 6),
        # What the dense layer gives is, at once.
        (("dense", "sparse", "sparse"), 0, 12 + 6),
        # And a map is made of the first layer's rows, which the sum reads; then rows of what the second one gives.
        (("sparse", "dense", "sparse"), 0, 3 * (12 + 6)),
        # The sum takes rows, as it is given some. Of its own a map is made.
        (("sparse", "sparse", "dense"), 0, 2 * (12 + 6)),
        # A map is made of the first layer's rows, which suits the sum as well.
        (("sparse", "dense", "dense"), 3 * 12, 2 * (12 + 6)),
    ],
)
def test_what_moves_between_layers_is_counted_before_steps_are_written(chosen_ways, moved, changed):
    """Three layers of 12 neurons, half of them alive. The second reads the first, a sum reads both, the third the sum.
    A dense sum reads and writes three maps; a change of form, of the initial relevance too, reads one, writes 6 rows.
    """
    alive = torch.zeros(1, 3, 2, 2)
    alive[:, :, 0] = 1
    weight = torch.eye(3).view(3, 3, 1, 1)
    geometry = ConvGeometry([1, 1], [0, 0], [1, 1], False, [0, 0], 1)

    def affine(name):
        return Affine((weight,), (0,), (False,), None, None, geometry, (3, 2, 2), (3, 2, 2), 18, name)

    def step(ins, out, form):
        return BackwardStep(form.path if isinstance(form, Affine) else "sum", None, torch.add, ins, (), (out,), (12,),
                            0, form)  # fmt: skip

    steps = [
        (step((0,), 1, affine("a")), ()), (step((1,), 2, affine("b")), ()),
        (step((2, 1), 3, Sum((None, None))), (2, 1)), (step((3,), 4, affine("c")), (3,)),
    ]  # fmt: skip
    wished = dict(zip("abc", chosen_ways, strict=True))
    found = outlook_of(steps, [alive], lambda form, *_: wished[form.path])
    assert (found.moved, found.changed) == (moved, changed)
    assert [path.way for path in found.paths] == list(chosen_ways)
    assert [path.below for path in found.paths] == [0.5, 0.5, 1.0], "dense layers read no more than sparse ones"


@pytest.mark.parametrize("count", [8, 16])
def test_wishes_hold_in_all_wholes(count):
    forms, densities = [layer(path=f"features.{n}") for n in (4, 3, 2)], [0.5] * 3
    for wished, other in (("sparse", 1.0), ("dense", 0.01)):
        found = ways(forms, [other] * 3, count, {"features.3": wished}, moved=10**8)
        assert found[1] == wished
    assert ways(forms, densities, count, "sparse", moved=10**8) == ["sparse"] * 3
    assert ways(forms, densities, count, {"features.3": "sparse"}, rates=None) == ["dense", "sparse", "dense"]


def test_what_is_wished_sparse_reads_bfloat16_where_that_is_faster(monkeypatch):
    monkeypatch.setattr(Affine, "has_pairs", True)
    rates = replace(RATES, reduced=2.0, sparse_reduced=2e11, half_reduced=2e11)
    form = replace(layer(), is_reduced=True, is_filtered=True)
    found = cheapest(Chooser("sparse"), 8, 4, rates, outlooks([form] * 2, [0.9] * 2, 0))
    assert [path.way for path in found.paths] == ["sparse bf16"] * 2


def test_rates_are_numbers_of_a_machine():
    assert all(value > 0 for value in vars(RATES).values())
    faster = estimate(layer(), 0.5, 0.5, 32, 4, type(RATES)(sparse=10 * RATES.sparse))
    assert faster.sparse < cost(layer(), 0.5, 0.5, 32).sparse
    assert faster.dense == cost(layer(), 0.5, 0.5, 32).dense


# Choices


def chosen(form, above, below, count, itemsize=4, wish="auto"):
    return Chooser(wish).sparse(form, above, below, count, itemsize, RATES)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("count", range(LEAST_TARGETS))
def test_few_targets_are_dense(name, count):
    assert not any(chosen(FORMS[name], above, below, count) for above in DENSITIES for below in DENSITIES)


@pytest.mark.parametrize("count", [32, 48, 64, 96])
@pytest.mark.parametrize("name", ["vgg", "deep"])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_a_third_alive_is_sparse(name, count, itemsize):
    for above, below in ((0.3, 0.3), (0.3, 0.5), (0.5, 0.3), (0.05, 1.0), (0.1, 0.1)):
        assert chosen(FORMS[name], above, below, count, itemsize), (above, below)


@pytest.mark.parametrize("name", ["vgg", "deep", "pointwise", "two_products", "linear"])
@pytest.mark.parametrize("count", [8, 32, 64])
def test_everything_alive_is_dense(name, count):
    """Where the library has no more to compute: not for weights split by sign, nor for groups, which it is slow at."""
    assert not chosen(FORMS[name], 1.0, 1.0, count)


@pytest.mark.parametrize("name", FORMS)
def test_choice_changes_once_with_density(name):
    for count in COUNTS:
        for fixed in DENSITIES:
            for choices in (
                [chosen(FORMS[name], d, fixed, count) for d in DENSITIES],
                [chosen(FORMS[name], fixed, d, count) for d in DENSITIES],
            ):
                assert choices == sorted(choices, reverse=True)


# Wishes


@pytest.mark.parametrize("wish", ["dense", "sparse"])
def test_a_wish_is_granted_whatever_it_costs(wish):
    for form, density, count in itertools.product(FORMS.values(), (0.0, 0.3, 1.0), (1, 7, 32)):
        assert chosen(form, density, density, count, wish=wish) == (wish == "sparse")
        assert chosen(form, density, density, count, wish={"*": wish}) == (wish == "sparse")


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"features.10": "sparse"}, "sparse"),
        ({"features.1": "sparse"}, "auto"),
        ({"features.1?": "dense"}, "dense"),
        ({"features.*": "dense", "features.10": "sparse"}, "dense"),
        ({"features.10": "sparse", "features.*": "dense"}, "sparse"),
        ({"classifier": "dense", "*": "sparse"}, "sparse"),
        ({"Features.10": "dense"}, "auto"),
        ({"*": "auto"}, "auto"),
        ({}, "auto"),
        ("auto", "auto"),
    ],
)
def test_the_first_entry_that_matches_decides(wish, expected):
    assert Chooser(wish).wish("features.10") == expected
    for above, count in itertools.product((0.1, 1.0), (1, 32)):
        usual = chosen(layer(), above, above, count)
        assert (
            chosen(layer(), above, above, count, wish=wish) == {"sparse": True, "dense": False, "auto": usual}[expected]
        )


@pytest.mark.parametrize(
    ("wish", "few", "many"),
    [
        ("auto", False, True), ("dense", False, False), ("sparse", True, True), ({}, False, True),
        ({"a": "sparse"}, True, True), ({"a": "dense"}, False, True), ({"a": "dense", "*": "dense"}, False, False),
        ({"a": "auto", "*": "dense"}, False, True),
    ],
)  # fmt: skip
def test_whether_any_layer_may_be_sparse(wish, few, many):
    assert Chooser(wish).may_be_sparse(LEAST_TARGETS - 1) == few
    assert Chooser(wish).may_be_sparse(LEAST_TARGETS) == many


def test_a_later_change_of_the_wishes_is_not_seen():
    wishes = {"*": "sparse"}
    chooser = Chooser(wishes)
    wishes["*"] = "dense"
    assert chooser.wish("a") == "sparse"


@pytest.mark.parametrize("wish", ["Dense", "", " sparse", {"a": "fast"}, {"a": None}, {"a": 1}, {1: "dense"}])
def test_bad_wishes(wish):
    with pytest.raises(
        ValueError, match="paths must be 'auto', 'dense' or 'sparse', or a dict from module path to one"
    ):
        Chooser(wish)


@pytest.mark.parametrize("wish", [None, 1, True, ["sparse"], ("a", "b"), {"sparse"}])
def test_wishes_of_another_type(wish):
    with pytest.raises(ValueError, match="paths must be 'auto', 'dense' or 'sparse', or a dict from module"):
        Chooser(wish)
