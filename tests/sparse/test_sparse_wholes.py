"""Ways down compared as wholes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastlrp.plan.forms import Affine, Sum
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.paths.choose import OF_CHANGES, Chooser
from fastlrp.plan.paths.path import Path
from fastlrp.plan.steps import BackwardStep
from fastlrp.run.sparse import wholes
from fastlrp.run.sparse.needs import Needs
from fastlrp.run.sparse.specialize import Outlook, written
from fastlrp.run.sparse.specialize import outlook as outlook_of
from fastlrp.run.sparse.wholes import OF_PATTERNS, cheapest, cost_of, cost_of_whole
from tests.sparse.forms import RATES, layer


def test_all_ways_down_are_compared_as_a_whole():
    """Half of the neurons are alive."""
    form, rates = replace(layer(), is_reduced=True), replace(RATES, reduced=2.5)
    sparse, dense = ([Path(form, s, 0.5, 0.5 if s else 1.0)] * 9 for s in (True, False))
    assert cost_of(sparse, 32, 4, rates) < cost_of(dense, 32, 4, rates)
    assert cost_of(sparse, 32, 4, replace(rates, reduced=7.0)) > cost_of(dense, 32, 4, replace(rates, reduced=7.0))
    assert not Chooser().sparse(form, 0.5, 1.0, 32, 4, rates), "layer by layer it would be dense throughout"


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


def affine(name):
    """A layer of 12 neurons."""
    geometry = ConvGeometry([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    weight = torch.eye(3).view(3, 3, 1, 1)
    return Affine((weight,), (0,), (False,), None, None, geometry, (3, 2, 2), (3, 2, 2), 18, name)


def step(ins, out, form):
    name = form.path if isinstance(form, Affine) else "sum"
    return BackwardStep(name, None, torch.add, ins, (), (out,), (12,), 0, form)


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
        (("sparse", "dense", "sparse"), 3 * 6, 3 * (12 + 6)),
        # The sum takes rows, as it is given some. Of its own a map is made.
        (("sparse", "sparse", "dense"), 0, 2 * (12 + 6)),
        # A map is made of the first layer's rows, which suits the sum as well.
        (("sparse", "dense", "dense"), 3 * 12, 2 * (12 + 6)),
    ],
)
def test_what_moves_between_layers_is_counted_before_steps_are_written(chosen_ways, moved, changed):
    """Three layers of 12 neurons, half of them alive. The second reads the first, a sum reads both, the third the sum.
    A dense sum reads and writes three maps, one of rows three times six entries; a change of form, of the initial
    relevance too, reads one map and writes 6 rows.
    """
    alive = torch.zeros(1, 3, 2, 2)
    alive[:, :, 0] = 1
    steps = [
        (step((0,), 1, affine("a")), ()), (step((1,), 2, affine("b")), ()),
        (step((2, 1), 3, Sum((None, None))), (2, 1)), (step((3,), 4, affine("c")), (3,)),
    ]  # fmt: skip
    wished = dict(zip("abc", chosen_ways, strict=True))
    found = outlook_of(steps, Needs([alive], steps), lambda form, *_: wished[form.path])
    found.measure()
    assert (found.moved, found.changed) == (moved, changed)
    assert [path.way for path in found.paths] == list(chosen_ways)
    assert [path.below for path in found.paths] == [0.5, 0.5, 1.0], "dense layers read no more than sparse ones"


def test_a_sum_above_a_sum_is_dense_where_all_layers_are():
    """As of two branches below each other (ShuffleNet's, above a max-pool): rows were made for the upper one."""
    alive = torch.zeros(1, 3, 2, 2)
    alive[:, :, 0] = 1
    steps = [
        (step((0,), 1, affine("a")), ()), (step((0,), 2, affine("b")), (0,)),
        (step((1, 2), 3, Sum((None, None))), (1, 2)), (step((3,), 4, Sum((None,))), (3,)),
        (step((4,), 5, affine("c")), (4,)),
    ]  # fmt: skip
    dense = outlook_of(steps, Needs([alive], steps), lambda *_: "dense")
    assert written(steps, [alive], dense).steps == steps


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
