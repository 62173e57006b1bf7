"""The argument ``paths`` and what a record keeps: choices, patterns, budgets, blocks, several callers at once."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastlrp
from fastlrp import Explainer
from fastlrp.plan.compact import Compact
from fastlrp.run import runner
from tests.sparse.nets import CLASSES, assert_same, make, samples, sparse_layers, worst_error

TIGHT = 1e-13  # Measured: 6e-16.
TARGETS = [i % CLASSES for i in range(40)]
pytestmark = pytest.mark.usefixtures("captured_once")


def explainer(paths="sparse", name="vgg", composite="epsilon_plus", **options):
    return Explainer(make(name), composite, paths=paths, **options)


def dense(name="vgg", targets=TARGETS, composite="epsilon_plus", **options):
    return explainer("dense", name, composite)(samples(name), targets, **options)


# Which layers


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("sparse", {"0", "2", "5", "9"}),
        ("dense", set()),
        ({"*": "sparse"}, {"0", "2", "5", "9"}),
        ({"*": "dense"}, set()),
        ({"2": "sparse", "*": "dense"}, {"2"}),
        ({"2": "dense", "*": "sparse"}, {"0", "5", "9"}),
        ({"[05]": "sparse", "?": "dense"}, {"0", "5"}),
        ({"*": "dense", "2": "sparse"}, set()),
        ({"0": "sparse", "2": "dense", "5": "sparse", "9": "dense"}, {"0", "5"}),
    ],
)
def test_layers_by_name(paths, expected):
    """The first entry that matches decides. The last layer selects rows of its weight, which no path beats."""
    made = explainer(paths)
    found = made(samples("vgg"), TARGETS)
    assert_same(found, dense(), TIGHT)
    assert set(sparse_layers(made)) == expected
    assert set(made.plan.latest_paths) == ({"0", "2", "5", "9", "11"} if expected else set(made.plan.latest_paths))


def test_names_of_modules_inside_modules():
    made = explainer({"a": "sparse", "[bc]": "sparse", "*": "dense"}, "residual")
    assert_same(made(samples("residual"), TARGETS), dense("residual"), TIGHT)
    assert set(sparse_layers(made)) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "paths", ["Sparse", "", "sparse ", True, 1, {"*": "fast"}, {"*": None}, {1: "sparse"}, {"0": "sparse", "*": ""}]
)
def test_bad_paths(paths):
    with pytest.raises(ValueError, match="paths must be 'auto', 'dense' or 'sparse', or a dict from module path"):
        explainer(paths)


@pytest.mark.parametrize("pattern", ["12", "features.*", "1", ""])
def test_a_pattern_that_names_no_layer_is_an_error(pattern):
    """Layer 1 is a ReLU: only layers with a weight go one way or the other."""
    with pytest.raises(ValueError, match=rf"paths={{'{re.escape(pattern)}': 'sparse'}} matches no layer with a weight"):
        explainer({pattern: "sparse", "*": "dense"})(samples("vgg"), [0])


def test_the_error_names_paths_that_are_close():
    with pytest.raises(ValueError, match=r"their paths are, for example, '0', '2', '5'"):
        explainer({"conv": "dense"})(samples("vgg"), [0])


def test_explain_takes_paths():
    x = samples("vgg")
    assert_same(fastlrp.explain(make("vgg"), x, TARGETS, paths="sparse"), dense(), TIGHT)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_other_backends_have_no_sparse_way(backend):
    made = explainer("auto", backend=backend)
    assert_same(made(samples("vgg"), TARGETS), dense(), 1e-10)
    assert made.plan.latest_paths == {}


@pytest.mark.parametrize("count", [1, 7, 8, 40])
def test_auto_is_right_and_dense_for_few_targets(count):
    made = explainer("auto")
    assert_same(made(samples("vgg"), TARGETS[:count]), dense(targets=TARGETS[:count]), TIGHT)
    assert count >= 8 or sparse_layers(made) == []


@pytest.fixture
def mostly_dead():
    """Layers as VGG's are, most of whose neurons are dead."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3 if i == 0 else 64, 64, 3, padding=1) for i in range(3)]
    with torch.no_grad():
        for layer in layers:
            layer.bias -= 2 * layer(torch.randn(4, layer.in_channels, 8, 8)).std()
    body = [module for layer in layers for module in (layer, torch.nn.ReLU())]
    head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, CLASSES))
    return torch.nn.Sequential(*body, *head).eval(), torch.randn(1, 3, 16, 16)


def test_auto_takes_what_pays(mostly_dead):
    model, x = mostly_dead
    made = Explainer(model, "epsilon_plus")
    found = made(x, TARGETS)
    assert {"2", "4"} <= set(sparse_layers(made))
    assert_same(found, Explainer(model, "epsilon_plus", paths="dense")(x, TARGETS), 2e-6)
    assert_same(made(x, TARGETS[:7]), found[:, :7], 2e-6)


def test_plan_shows_the_latest_call(mostly_dead):
    model, x = mostly_dead
    made = Explainer(model, "epsilon_plus")
    with made.forward(x) as record:
        record.relevance(TARGETS)
        assert sparse_layers(made)
        record.relevance(TARGETS[:7])
        assert not sparse_layers(made)
        record.relevance(TARGETS)
        assert sparse_layers(made)


def test_plan_prints():
    made = explainer("auto", example_inputs=samples("vgg"))
    before = str(made.plan)
    assert "epsilon_plus" in before
    made(samples("vgg"), TARGETS)
    assert "epsilon_plus" in str(made.plan)


def test_plan_shows_what_was_taken():
    made = explainer({"2": "dense", "*": "sparse"})
    made(samples("vgg"), TARGETS)
    lines = {line.split()[0]: line for line in str(made.plan).splitlines() if line.strip()}
    assert "sparse" in lines["0"]
    assert "sparse" not in lines["2"]
    assert "sparse" in lines["5"]


# Records


def test_cached_bytes_counts_patterns():
    with explainer().forward(samples("vgg")) as record, explainer("dense").forward(samples("vgg")) as plain:
        before = record.cached_bytes
        assert before == plain.cached_bytes
        record.relevance(TARGETS)
        plain.relevance(TARGETS)
        assert plain.cached_bytes == before
        once = record.cached_bytes
        # Offsets of 64 + 64 + 16 positions and a channel for each alive neuron, two samples; not more than everything.
        assert before + 2 * 8 * 144 <= once <= before + 2 * 3 * (8 * 200 + 16 * 8 * 8 * 17)
        record.relevance(TARGETS)
        assert record.cached_bytes == once
        record.close()
        assert len(record._answers.specialized) == 0
        for call in (
            lambda: record.relevance(TARGETS),
            lambda: next(record.stream(TARGETS)),
            lambda: record.cached_bytes,
        ):
            with pytest.raises(RuntimeError, match="this record is closed"):
                call()


def test_without_lrp_aware_patterns_are_not_kept():
    with explainer().forward(samples("vgg"), lrp_aware=False) as record:
        before = record.cached_bytes
        assert_same(record.relevance(TARGETS), dense(), TIGHT)
        assert record.cached_bytes == before


@pytest.mark.each_value
@pytest.mark.parametrize("paths", ["auto", "sparse", {"[5a]*": "dense"}])
@pytest.mark.parametrize("name", ["vgg", "residual", "shared_sums"])
def test_one_record_for_several_counts(paths, name):
    """In any order: what is prepared for one number of targets does not spoil another."""
    with explainer(paths, name).forward(samples(name)) as record:
        for count in (1, 40, 7, 8, 16, 17, 33, 1, 70, 40, 100):
            targets = [i * 5 % CLASSES for i in range(count)]
            assert_same(record.relevance(targets), dense(name, targets), TIGHT, count)
        for layers in ("all", ["a"] if name != "vgg" else ["2"], None):
            found = record.relevance(TARGETS, layers=layers)
            assert_same(found, dense(name, layers=layers), TIGHT)


def test_records_of_one_explainer_do_not_share_patterns():
    made = explainer()
    first, second = made.forward(samples("vgg")), made.forward(-samples("vgg", batch=3))
    expected = explainer("dense")(-samples("vgg", batch=3), TARGETS)
    for _ in range(2):
        assert_same(first.relevance(TARGETS), dense(), TIGHT)
        assert_same(second.relevance(TARGETS), expected, TIGHT)


def test_several_threads_use_one_record_at_once():
    counts = [40, 3, 17, 1, 33, 40, 8, 20] * 3
    targets = [[i * 5 % CLASSES for i in range(count)] for count in counts]
    with explainer(name="shared_sums").forward(samples("shared_sums")) as record:
        expected = [record.relevance(given) for given in targets]
    with explainer(name="shared_sums").forward(samples("shared_sums")) as record, ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(record.relevance, targets), expected, strict=True):
            assert torch.equal(found, alone)


def test_several_threads_use_one_explainer_at_once():
    made, xs = explainer(), [samples("vgg") * scale for scale in (1, -1, 2, -0.5)] * 3
    expected = [explainer()(x, TARGETS) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(lambda x: made(x, TARGETS), xs), expected, strict=True):
            assert torch.equal(found, alone)


def test_changed_weights_are_seen():
    """Packed weights belong to the plan, which is prepared again."""
    import copy

    model, x = copy.deepcopy(make("vgg")), samples("vgg")
    made = Explainer(model, "epsilon_plus", paths="sparse")
    before = made(x, TARGETS)
    with torch.no_grad():
        model[2].weight.mul_(-0.5)
    after = made(x, TARGETS)
    assert worst_error(after, before) > 0.1
    assert_same(after, Explainer(model, "epsilon_plus", paths="dense")(x, TARGETS), TIGHT)


# Budgets and blocks


@pytest.fixture
def computed(monkeypatch):
    """Number of targets of every block, and whether any of its steps was sparse."""
    seen: list[tuple[int, bool]] = []
    propagate = runner.propagate

    def spy(plan, state, initial, steps, *rest):
        names = [getattr(step.run, "__qualname__", "") for step, _ in steps if hasattr(step, "run")]
        seen.append((initial.shape[1], any("specialize" in name or "_Rewrite" in name for name in names)))
        return propagate(plan, state, initial, steps, *rest)

    monkeypatch.setattr(runner, "propagate", spy)
    return seen


def least_memory(name="vgg"):
    """Of one target by the dense way, as the error for one byte says."""
    with pytest.raises(ValueError, match="too small for one target") as error:
        explainer("dense", name, max_memory=1)(samples(name), 0)
    return int(str(error.value).split(" needs ")[1].split(" bytes")[0])


@pytest.mark.parametrize("name", ["vgg", "residual"])
def test_memory_for_less_than_sixteen_lanes_falls_back_to_dense(name, computed):
    made = explainer(name=name, max_memory=2 * least_memory(name))
    assert_same(made(samples(name), TARGETS), dense(name), TIGHT)
    ours = computed[: -len(computed) + computed.index((40, False)) if (40, False) in computed else None]
    assert ours
    assert all(count < 16 and not sparse for count, sparse in ours)


@pytest.mark.parametrize("factor", [1, 5, 20, 40, 1000])
def test_any_budget_is_correct(factor, computed):
    made = explainer(max_memory=factor * least_memory())
    found = made(samples("vgg"), TARGETS)
    assert sum(count for count, _ in computed) == 40
    assert_same(found, dense(), TIGHT)
    with made.forward(samples("vgg")) as record:
        parts = [part for _, part in record.stream(TARGETS)]
        layers = record.relevance(TARGETS, layers=["2"]) if factor > 20 else None
    assert_same(torch.cat(parts, 1), dense(), TIGHT)
    if layers is not None:
        assert_same(layers, dense(layers=["2"]), TIGHT)


def test_a_large_budget_is_used_sparsely(computed):
    explainer(max_memory="1GB")(samples("vgg"), TARGETS)
    assert computed == [(40, True)]


def test_too_small_a_budget():
    with pytest.raises(ValueError, match="max_memory=1024 bytes is too small for one target"):
        explainer(max_memory="1KB")(samples("vgg"), TARGETS)


@pytest.mark.parametrize("limit", [1 << 12, 1 << 15, 1 << 17])
@pytest.mark.parametrize("name", ["vgg", "residual", "shared_sums"])
def test_registers_that_outgrow_their_limit_are_split(name, limit, monkeypatch):
    """Compact ones are cut along their targets, without a copy."""
    cut = []
    narrow = Compact.narrow

    def spy(self, *arguments):
        cut.append(arguments)
        return narrow(self, *arguments)

    monkeypatch.setattr(Compact, "narrow", spy)
    with explainer(name=name).forward(samples(name)) as record:
        record.plan.block_bytes = limit
        targets = [i * 5 % CLASSES for i in range(100)]
        assert_same(record.relevance(targets), dense(name, targets), TIGHT)
        found = record.relevance(targets, layers="all")
        assert_same(found, dense(name, targets, layers="all"), TIGHT)
    if limit == 1 << 17 and name != "shared_sums":
        assert cut


# What a call took


def test_a_record_knows_its_own_paths_whoever_asks_in_between():
    """Two records of one plan; printing the plan shows the one that was asked last."""
    made = explainer()
    with made.forward(samples("vgg")) as first, made.forward(samples("vgg").flip(3) - 0.5) as second:
        assert first.paths == second.paths == {}
        first.relevance(TARGETS)
        mine = dict(first.paths)
        table = first.plan.table(first.paths)
        assert set(mine) == {"0", "2", "5", "9", "11"}
        assert str(made.plan) == table
        second.relevance(TARGETS)
        assert first.paths == mine
        assert first.plan is second.plan
        assert first.plan.table(first.paths) == table
        assert str(made.plan) == second.plan.table(second.paths) != table
        assert first.under("epsilon_alpha2_beta1").paths == {}
        assert first.paths == mine
    assert "sparse " not in made.plan.table({})
