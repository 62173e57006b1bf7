"""Some layers dense and others for alive neurons only: registers change their form between, and few numbers of a map
that a dense layer reads have to be there."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from fastlrp import Explainer
from fastlrp.plan.steps import Emission
from fastlrp.run import blocks, descent, runner
from tests.models.cases import Written
from tests.sparse.nets import CLASSES, COMPOSITES, NETS, assert_same, make, samples

TIGHT = 1e-13  # Measured: 6e-16.
TARGETS = [i * 5 % CLASSES for i in range(21)]
pytestmark = pytest.mark.usefixtures("captured_once")


def layers_of(name: str) -> list[str]:
    made = Explainer(make(name), "epsilon_plus", paths="sparse")
    made(samples(name), TARGETS)
    return list(made.plan.latest_paths)


def mixes(name: str) -> list[dict[str, Any]]:
    """Each layer alone of its way, every other one, and some at random."""
    layers, generator = layers_of(name), torch.Generator().manual_seed(3)
    found = []
    for way, other in (("sparse", "dense"), ("dense", "sparse")):
        found += [{layer: way, "*": other} for layer in layers]
        found.append({**dict.fromkeys(layers[::2], way), "*": other})
    for _ in range(4):
        drawn = torch.rand(len(layers), generator=generator) < 0.5
        found.append({layer: "sparse" if s else "dense" for layer, s in zip(layers, drawn.tolist(), strict=True)})
    return found


@pytest.mark.each_value(2)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1", "max_pool_ties"])
def test_any_mix_of_ways_gives_the_same(name, composite):
    rule, model, x = COMPOSITES[composite](), make(name), samples(name)
    expected = Explainer(model, rule, paths="dense")(x, TARGETS)
    for paths in mixes(name):
        made = Explainer(model, rule, paths=paths)
        assert_same(made(x, TARGETS), expected, TIGHT, paths)


def test_layers_side_by_side_above_dense_ones_go_any_way():
    """Their sum begins with what the dense one gives, whether or not those below want rows."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.b(m.a(x).relu()).relu()
        return m.head((m.c(x) + m.d(x)).relu().flatten(1))

    torch.manual_seed(0)
    convs = {name: nn.Conv2d(3 if name == "a" else 4, 4, 3, padding=1) for name in "abcd"}
    model = Written(body, **convs, head=nn.Linear(100, CLASSES)).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = Explainer(model, "epsilon_plus", paths="dense")(x, TARGETS)
    for ways in itertools.product(("dense", "sparse"), repeat=3):
        paths: Any = {**dict(zip("bcd", ways, strict=True)), "*": "dense"}
        assert_same(Explainer(model, "epsilon_plus", paths=paths)(x, TARGETS), expected, TIGHT, paths)


@pytest.mark.parametrize("name", ["vgg", "residual", "shared_sums"])
def test_hidden_layers_are_whole_in_any_mix(name):
    """What is handed out is more than what a dense layer below reads."""
    x = samples(name)
    expected = Explainer(make(name), "epsilon_plus", paths="dense")(x, TARGETS, layers="all")
    for paths in mixes(name)[:3]:
        assert_same(Explainer(make(name), "epsilon_plus", paths=paths)(x, TARGETS, layers="all"), expected, TIGHT)


def stack() -> nn.Module:
    convs = [nn.Conv2d(3 if n == 0 else 4, 4, 3, padding=1, dtype=torch.float64) for n in range(4)]
    steps = [step for each in convs for step in (each, nn.ReLU())]
    return nn.Sequential(*steps, nn.Flatten(), nn.Linear(4 * 36, CLASSES, dtype=torch.float64)).eval()


def ways_down(monkeypatch: pytest.MonkeyPatch, paths: dict[str, str]) -> tuple[Explainer, list[list[Any]]]:
    taken: list[list[Any]] = []
    specialize = runner.specialize

    def noted(*args: Any, **kwargs: Any) -> Any:
        found = specialize(*args, **kwargs)
        taken.append([step for step, _ in found.steps if type(step) is not Emission])
        return found

    monkeypatch.setattr(runner, "specialize", noted)
    return Explainer(stack(), "epsilon_plus", paths=paths), taken


def test_a_sparse_layer_above_a_dense_one_gives_what_that_reads(monkeypatch):
    """And no more: of half of the neurons alive."""
    made, taken = ways_down(monkeypatch, {"4": "dense", "*": "sparse"})
    made(torch.rand(1, 3, 6, 6, dtype=torch.float64), TARGETS)
    path = made.plan.latest_paths["6"]
    assert path.sparse
    assert path.below < 0.9
    assert [step.name for step in taken[-1] if step.name.endswith("made a map")] == ["6 (conv2d, ZPlus), made a map"]


def test_dense_layers_that_follow_each_other_change_nothing(monkeypatch):
    made, taken = ways_down(monkeypatch, {"4": "dense", "2": "dense", "*": "sparse"})
    made(torch.rand(1, 3, 6, 6, dtype=torch.float64), TARGETS)
    changes = [step.name for step in taken[-1] if step.ins == step.outs and step.name[0] in "642"]
    assert changes == ["6 (conv2d, ZPlus), made a map", "2 (conv2d, ZPlus), made compact"]


@pytest.mark.parametrize("dense_layers", [("4",), ("4", "2"), ("6", "2")])
def test_blocks_of_a_dense_layer_come_together_before_the_next_sparse_one(monkeypatch, dense_layers):
    """Sparse layers cost the same for one target as for a vector of them, so that they take all at once."""
    model, x = stack(), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    expected = Explainer(model, "epsilon_plus", paths="dense")(x, TARGETS)
    made = Explainer(model, "epsilon_plus", paths={**dict.fromkeys(dense_layers, "dense"), "*": "sparse"})
    counts: list[tuple[int, bool]] = []
    advance = descent.Descent._advance

    def noted(self: Any, steps: Any, part: Any, end: int | None = None) -> Any:
        counts.append((part.count, steps[part.position][0].least > 1))
        return advance(self, steps, part, end)

    monkeypatch.setattr(descent.Descent, "_advance", noted)
    with made.forward(x) as record:
        for targets_at_once in (1, 2, 5):
            record.plan.block_bytes = targets_at_once * 2 * 4 * 36 * 8
            counts.clear()
            assert_same(record.relevance(TARGETS), expected, TIGHT)
            assert {count for count, is_sparse in counts if not is_sparse} > {targets_at_once}
            assert {count for count, is_sparse in counts if is_sparse} == {len(TARGETS)}


def test_blocks_hand_out_their_own_relevance_before_they_come_together():
    model, x = stack(), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    expected = Explainer(model, "epsilon_plus", paths="dense")(x, TARGETS, layers="all")
    with Explainer(model, "epsilon_plus", paths={"4": "dense", "*": "sparse"}).forward(x) as record:
        record.plan.block_bytes = 2 * 2 * 4 * 36 * 8
        assert_same(record.relevance(TARGETS, layers="all"), expected, TIGHT)


def test_foretold_memory_holds_where_blocks_come_together(monkeypatch):
    """All targets are there again below a dense layer that took a few of them at once."""
    x = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    with Explainer(stack(), "epsilon_plus", paths={"4": "dense", "*": "sparse"}).forward(x) as record:
        plan = record.plan
        schedule = plan.schedule(plan.explained_inputs())
        state = runner.complete(plan, record._slots_in_parts(), schedule.slots)
        steps = runner.specialize(plan, schedule.steps, state, 64, 1).steps
        rows = [step.numel for step, _ in steps if type(step) is not Emission and step.least > 1]
        found = blocks.peak_bytes(steps, {plan.program.top: CLASSES}, 1, 64, 8, 2 * 4 * 36 * 8)
    # What a sparse layer reads and writes, for all targets.
    assert found >= 64 * 8 * 2 * min(rows[-3:])
    monkeypatch.setattr(blocks, "next_sparse", lambda *_: None)
    assert found > blocks.peak_bytes(steps, {plan.program.top: CLASSES}, 1, 64, 8, 2 * 4 * 36 * 8)
