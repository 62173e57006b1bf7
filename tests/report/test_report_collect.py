"""Samples that ``collect`` makes hold what the explainer computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import report
from fastlrp.report import Maps, collect, ledger_rows
from fastlrp.run.record import ForwardRecord
from fastlrp.targets.target_names import target_names
from fastlrp.targets.targets import Targets

CLASSES = 7


@pytest.fixture(scope="module")
def explainer():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 4 * 4, 12), nn.ReLU(), nn.Linear(12, CLASSES),
    ).eval()  # fmt: skip
    return fastlrp.Explainer(model, "epsilon_plus", example_inputs=torch.rand(2, 3, 12, 12))


@pytest.fixture(scope="module")
def x():
    return torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def assert_holds(maps: Maps, R: torch.Tensor) -> None:
    """Within 16 bits of each map's largest value, and the rounding of float32."""
    R = R.numpy()
    largest = np.abs(R).max((1, 2), keepdims=True)
    assert maps.shape == R.shape
    assert (np.abs(np.asarray(maps) - R) <= largest * (1 / 65534 + 1e-6)).all()


@pytest.mark.slow
def test_input_layers_and_neurons(explainer, x):
    found = collect(explainer, x, "all", layers=["7", "3", "output"], ledger=False)
    wanted = explainer(x, "all", layers=["7", "3"], reduce="channels")
    for i, sample in enumerate(found):
        assert sample.layers == ["input", "7", "3", "output"]
        assert_holds(sample.relevance["input"], wanted["input"][i])
        assert_holds(sample.relevance["3"], wanted["3"][i])
        assert sample.relevance["3"].shape == (CLASSES, 4, 4)
        assert_holds(sample.relevance["7"], wanted["7"][i].unsqueeze(1))  # 12 neurons
        assert_holds(sample.relevance["output"], wanted["output"][i].unsqueeze(1))
        assert np.allclose(sample.scores, explainer.model(x)[i].detach(), rtol=1e-6)
        assert (sample.name, sample.ledger) == (f"sample {i}", None)
        assert sample.targets == [str(k) for k in range(CLASSES)]
    assert collect(explainer, x[:1], 3, ledger=False)[0].layers == ["input"]
    assert "output" not in collect(explainer, x[:1], 3, layers="all", ledger=False)[0].relevance


def test_targets_of_each_sample(explainer, x):
    names = [f"name {k}" for k in range(CLASSES)]
    found = collect(explainer, x, "top3", target_names=names, names=["a", "b", "c"], ledger=False)
    scores = explainer.model(x).detach()
    wanted = explainer(x, "top3", reduce="channels")
    for i, sample in enumerate(found):
        best = scores[i].topk(3).indices.tolist()
        assert (sample.name, sample.targets) == ("abc"[i], [names[k] for k in best])
        assert sample.scores == pytest.approx(scores[i][best].tolist())
        assert_holds(sample.relevance["input"], wanted[i])
    chosen = torch.tensor([[1, 2], [3, 4], [5, 6]])
    found = collect(explainer, x, chosen, target_names={k: f"n{k}" for k in range(1, 7)}, ledger=False)
    assert [sample.targets for sample in found] == [["n1", "n2"], ["n3", "n4"], ["n5", "n6"]]
    assert_holds(found[2].relevance["input"], explainer(x, chosen, reduce="channels")[2])


def test_targets_are_called_as_the_explainer_knows_them(explainer, x):
    """Contrasts too; names that are given come first; a model's own names may leave classes out."""
    animals = ["cat", "dog", "eel", "fox", "gnu", "hen", "ibis"]
    named = fastlrp.Explainer(explainer.model, "epsilon", labels=animals)
    asked = [3, {"dog": 1, "cat": -1}, {"gnu": -0.5}]
    assert collect(named, x, asked, ledger=False)[1].targets == ["fox", "dog - cat", "-0.5 gnu"]
    assert collect(named, x, [3], ledger=False, truth=["fox", 1, None])[0].truth == "fox"
    assert collect(named, x, [3], ledger=False, target_names=list("abcdefg"))[0].targets == ["d"]
    few = fastlrp.Explainer(explainer.model, "epsilon", labels={1: "dog"})
    assert collect(few, x, [3, {1: 1, 3: -2}], ledger=False)[0].targets == ["class 3", "dog - 2 class 3"]
    assert collect(explainer, x, [3, {1: 1, 3: -2}], ledger=False)[0].targets == ["class 3", "class 1 - 2 class 3"]


def test_targets_with_positions_are_called_by_them():
    output = torch.arange(10.0).view(1, 2, 5)
    asked = Targets([{1: 1, 4: -1}, 2], output, at=[1, 0])
    assert target_names(asked, list("abcde")) == [["b - e at 1", "c at 1", "b - e at 0", "c at 0"]]
    assert target_names(Targets([(1, 4)], output, at="pairs")) == [["targets[0]"]]


def test_initial_relevance(explainer, x):
    contrast = torch.zeros(2, CLASSES)
    contrast[0, 1], contrast[1, :2] = 2.0, torch.tensor([1.0, -3.0])
    found = collect(explainer, x, contrast, target_names=["one", "difference"], ledger=2)
    assert found[1].targets == ["one", "difference"]
    assert found[1].scores == [2.0, -2.0]
    assert_holds(found[1].relevance["input"], explainer(x, contrast, reduce="channels")[1])
    assert [row["arrived"] for row in found[1].ledger if row["layer"] == "8"] == [2.0, -2.0]
    assert collect(explainer, x, contrast, ledger=False)[0].targets == ["targets[0]", "targets[1]"]
    ones = collect(explainer, x, [2], initial="one", ledger=False)[0]
    assert_holds(ones.relevance["input"], explainer(x, [2], initial="one", reduce="channels")[0])
    assert ones.scores == pytest.approx([float(explainer.model(x)[0, 2].detach())])


def test_the_ledger_of_each_target_adds_up_to_that_of_verify(explainer, x):
    found = collect(explainer, x, "all", ledger=CLASSES)
    for i, sample in enumerate(found):
        whole = ledger_rows(explainer.verify(x[i : i + 1], "all"))
        for number, row in enumerate(whole):
            mine = [r for r in sample.ledger if r["layer"] == row["layer"] and r["operation"] == row["operation"]]
            assert [r["target"] for r in mine] == list(range(CLASSES))
            assert {r["rule"] for r in mine} == {row["rule"]}
            for name in ("arrived", "sent", "bias", "stabilizer", "dead"):
                assert sum(r[name] for r in mine) == pytest.approx(row[name], rel=1e-5, abs=1e-6), (row, name)
            for r in mine:
                if number == 0:
                    assert r["arrived"] == pytest.approx(sample.scores[r["target"]])
                assert r["arrived"] == pytest.approx(r["sent"] + r["bias"] + r["stabilizer"] + r["dead"], abs=1e-6)
    assert report.Sample(**{**vars(found[0]), "ledger": whole}).ledger is whole


def test_the_ledger_is_made_for_the_best_scores(explainer, x, monkeypatch):
    monkeypatch.setattr("fastlrp.report.collecting.LEDGER_TARGETS", 2)
    for sample in collect(explainer, x, "all"):
        made = {row["target"] for row in sample.ledger}
        assert made == set(np.argsort(sample.scores)[-2:])
    assert len({row["target"] for row in collect(explainer, x, "all", ledger=5)[0].ledger}) == 5
    assert len({row["target"] for row in collect(explainer, x, [1, 2], ledger=5)[0].ledger}) == 2


def test_a_ledger_in_blocks_is_the_same(explainer, x, monkeypatch):
    whole = collect(explainer, x, "all", ledger=6)
    monkeypatch.setattr("fastlrp.verify.compare.Comparison.block", lambda self, count: 4)
    for a, b in zip(whole, collect(explainer, x, "all", ledger=6), strict=True):
        assert len(a.ledger) == len(b.ledger)
        for p, q in zip(a.ledger, b.ledger, strict=True):
            assert (p["target"], p["layer"], p["rule"]) == (q["target"], q["layer"], q["rule"])
            assert p["sent"] == pytest.approx(q["sent"], rel=1e-5, abs=1e-7)


def test_rules_without_an_account_have_none():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    sample = collect(fastlrp.Explainer(model, "gradient"), torch.rand(1, 4), "all", initial="one")[0]
    assert {row["bias"] for row in sample.ledger} == {None}
    assert sample.image is None
    assert sample.relevance["input"].shape == (3, 1, 4)


def test_targets_come_in_blocks(explainer, x, monkeypatch):
    sizes = []
    stream = ForwardRecord.stream

    def watched(self, *args, **options):
        for positions, found in stream(self, *args, **options):
            sizes.append(len(positions))
            yield positions, found

    monkeypatch.setattr(ForwardRecord, "stream", watched)
    monkeypatch.setattr("fastlrp.report.collecting.BLOCK", 6)
    found = collect(explainer, x, "all", ledger=False)
    assert sizes == [2, 2, 2, 1]
    for i, sample in enumerate(found):
        assert_holds(sample.relevance["input"], explainer(x, "all", reduce="channels")[i])
    sizes.clear()
    small = fastlrp.Explainer(explainer.model, "epsilon_plus", max_memory="100KB")
    collect(small, x, "all", ledger=False)
    assert len(sizes) > 1
    assert sum(sizes) == CLASSES


@pytest.mark.parametrize("shape", [(2, 1, 6), (2, 6), (2, 2, 3, 4, 5)])
def test_other_shapes_of_input(shape):
    first = nn.Conv3d(2, 2, 3, padding=1) if len(shape) == 5 else nn.Identity()
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(int(np.prod(shape[1:])), 3)).eval()
    explainer, x = fastlrp.Explainer(model, "epsilon"), torch.rand(shape)
    sample = collect(explainer, x, "all")[1]
    wanted = explainer(x, "all", reduce="channels")[1]
    assert sample.relevance["input"].shape == {2: (3, 1, 6), 3: (3, 1, 6), 5: (3, 3 * 4, 5)}[len(shape)]
    assert_holds(sample.relevance["input"], wanted.reshape(sample.relevance["input"].shape))


def test_images(explainer, x):
    first = collect(explainer, x, 0, ledger=False)[0]
    assert np.array_equal(first.image, np.rint(255 * x[0].permute(1, 2, 0).double().numpy()).astype(np.uint8))
    normalised = collect(explainer, 4 * x - 2, 0, ledger=False)[1]
    assert (normalised.image.min(), normalised.image.max()) == (0, 255)
    grey, none = np.zeros((24, 24), np.uint8), None
    found = collect(explainer, x, 0, images=[grey, none, grey[:, :, None]], ledger=False)
    assert [None if s.image is None else s.image.shape for s in found] == [(24, 24, 3), None, (24, 24, 3)]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"x": (torch.rand(1, 3, 12, 12),)}, TypeError, "explains one tensor, got tuple.*Sample"),
        ({"x": torch.rand(0, 3, 12, 12)}, ValueError, "x has no samples"),
        ({"targets": CLASSES}, IndexError, "target 7 is out of range"),
        ({"layers": ["8x"]}, KeyError, "unknown layer '8x'"),
        ({"names": ["a"]}, ValueError, "names has 1 entries, 3 are needed"),
        ({"names": "abc"}, TypeError, "names must be a list of 3 names, got str"),
        ({"images": [None]}, ValueError, "images has 1 entries for 3 samples"),
        ({"images": [np.zeros((12, 12, 4), np.uint8), None, None]}, ValueError, r"must be an array \(H, W, 3\)"),
        ({"target_names": ["a", "b"]}, ValueError, "no name for class 2: give 7 names, one for each class.* it has 2"),
        ({"target_names": {0: "a"}}, ValueError, "no name for class 1"),
        ({"target_names": "cat"}, TypeError, "list with a name for each class, got the text 'cat'"),
        ({"ledger": -1}, ValueError, "ledger must be True, False or a number of targets, got -1"),
    ],
)
def test_arguments_that_do_not_fit(explainer, x, options, error, match):
    arguments = {"x": x, "targets": "all", **options}
    with pytest.raises(error, match=match):
        collect(explainer, **arguments)


def test_targets_know_their_classes():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 9)).eval()
    x = torch.rand(2, 1, 4, 4)
    samples = fastlrp.report.collect(fastlrp.Explainer(model, "epsilon"), x, "top3", ledger=0)
    best = model(x).topk(3).indices.tolist()
    assert [list(sample.classes) for sample in samples] == best
    assert [sample.targets for sample in samples] == [[str(c) for c in row] for row in best]
    every = fastlrp.report.collect(fastlrp.Explainer(model, "epsilon"), x, "all", ledger=0)
    assert list(every[0].classes) == list(range(9))
