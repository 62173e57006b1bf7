"""The model of costs, and what a user may wish for."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.paths.choose import LEAST_TARGETS, OF_CHANGES, OF_MAPS, Chooser, estimate
from fastlrp.plan.paths.rates import Rates
from tests.sparse.forms import FORMS, RATES, layer, linear

DENSITIES = [0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0]
COUNTS = [8, 15, 16, 17, 32, 33, 64, 100, 1000]


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


def test_rows_of_all_inputs_become_maps():
    form = FORMS["vgg"]
    nearly, all_of_them = (cost(form, 0.3, below, 32).sparse for below in (1 - 1e-9, 1.0))
    written = OF_MAPS * 2 * 4 * math.prod(form.leaving) / Rates().memory
    assert all_of_them - nearly == pytest.approx(written, rel=1e-3)


@pytest.mark.parametrize("name", FORMS)
def test_cost_of_a_target_shrinks_with_full_lanes(name):
    """Sixteen targets share what one costs; full blocks all cost the same for each target."""
    each = {count: cost(FORMS[name], 0.3, 0.3, count).sparse for count in range(1, 65)}
    assert all(each[count] > each[count + 1] for count in range(1, 15))
    assert each[32] < each[16]
    assert each[17] > each[32]
    assert each[64] <= each[32]
    # Rows of whole lanes cost what they hold; maps that are made of them do not.
    maps = FORMS[name].sign is not None or FORMS[name].factors is not None
    written = OF_MAPS * 2 * 4 * math.prod(FORMS[name].leaving) / Rates().memory if maps else 0.0
    assert each[8] - written == pytest.approx(2 * (each[16] - written))


def test_double_costs_more_both_ways():
    single, double = cost(layer(), 0.3, 0.3, 32, 4), cost(layer(), 0.3, 0.3, 32, 8)
    assert 1.5 < double.sparse / single.sparse <= 2
    assert 1.5 < double.dense / single.dense <= 2


def test_products_of_bfloat16_are_cheaper_where_they_are_dense():
    form, rates = layer(), replace(RATES, reduced=4.0)
    full, reduced = (estimate(f, 0.5, 0.5, 32, 4, rates) for f in (form, replace(form, is_reduced=True)))
    assert reduced.sparse == full.sparse
    assert 0.2 * full.dense < reduced.dense < 0.3 * full.dense


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


def test_a_layer_that_changes_form_pays_for_maps_and_rows():
    """Dense by itself, sparse if maps above it and rows below it have to be made for it."""
    form = replace(layer(64, 64, 56), is_filtered=True)
    cost = estimate(form, 0.5, 0.5, 8, 4, RATES)
    changes = 4 * OF_CHANGES * 2 * 1.5 * 64 * 56 * 56 / RATES.memory
    assert cost.dense < cost.sparse < cost.dense + changes
    asked = form, 0.5, 0.5, 8, 4, RATES
    found = [Chooser().way(*asked, dense_pays=pays) for pays in ("alone", "with changes", "never")]
    assert found == ["dense", "sparse", "sparse"]


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
