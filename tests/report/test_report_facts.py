"""True classes, probabilities, and several ways of explaining in one report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import report
from fastlrp.report import Sample
from tests.report.pages import Page, noise, sample


@pytest.fixture(scope="module")
def linear():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2, 0, 0], [0, 1, 1, 0], [2, 0, 0, 1]]))
        model.bias.zero_()
    return fastlrp.Explainer(model.eval(), "epsilon"), torch.tensor([[1.0, 1, 0, 0], [0, 0, 2, 1]])


def test_probabilities_are_the_softmax_of_all_scores(linear):
    explainer, x = linear  # Scores 3, 1, 2 and 0, 2, 1.
    first, second = report.collect(explainer, x, "top2", ledger=False, truth=[0, "two"], target_names=["a", "b", "two"])
    whole = np.exp([3.0, 1, 2]).sum()
    assert first.probabilities == pytest.approx([np.exp(3) / whole, np.exp(2) / whole])
    assert (first.probability, first.truth, first.true_class) == ("softmax", "a", 0)
    assert (second.truth, second.true_class) == ("two", 2)
    (one,) = report.collect(explainer, x[:1], [1], ledger=False, probability="sigmoid")
    assert one.probabilities == pytest.approx([1 / (1 + np.exp(-1))])
    assert (one.truth, one.true_class) == ("", None)
    (none,) = report.collect(explainer, x[:1], [1], ledger=False, probability=None)
    assert none.probabilities is None
    with pytest.raises(ValueError, match="softmax, sigmoid"):
        report.collect(explainer, x, [1], ledger=False, probability="odds")
    with pytest.raises(ValueError, match="for each of 2 samples"):
        report.collect(explainer, x, [1], ledger=False, truth=[1])


def test_scores_that_are_probabilities_stay_as_they_are():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)).eval()
    x = torch.ones(1, 4)
    (found,) = report.collect(fastlrp.Explainer(model, "epsilon"), x, "all", ledger=False)
    assert (found.probabilities, found.probability) == (pytest.approx(model(x)[0].tolist(), rel=1e-6), "probability")


def test_the_page_holds_them(tmp_path):
    given = sample(
        truth="class 2", true_class=2, probabilities=[0.5, 0.25, 0.125, 0.1, 0.02, 0.005], probability="softmax"
    )
    meta = Page(report.write(tmp_path / "r.html", [given], title="T", model="a net")).meta
    assert meta["model"] == "a net"
    (one,) = meta["samples"]
    assert (one["truth"], one["place"], one["probability"]) == ("class 2", [2], "softmax")
    assert (one["probabilities"][:2], one["methods"]) == ([0.5, 0.25], None)
    with pytest.raises(ValueError, match="must lie in"):
        sample(probabilities=[1.5] * 6)
    with pytest.raises(ValueError, match="6 targets and 2 probabilities"):
        sample(probabilities=[0.5] * 2)
    with pytest.raises(TypeError, match="true_class"):
        sample(truth=3)


def test_two_composites_are_joined_target_after_target(linear, tmp_path):
    explainer, x = linear
    ways = {
        "epsilon": report.collect(explainer, x, "top2", layers=["output"]),
        "gradient": report.collect(fastlrp.Explainer(explainer.model, "gradient"), x, "top2", truth=[0, 1]),
    }
    first, _ = report.compare(ways)
    assert first.methods == ["epsilon", "epsilon", "gradient", "gradient"]
    assert (first.classes, first.targets) == ([0, 2, 0, 2], ["0", "2", "0", "2"])
    assert first.layers == ["input"]  # The output is in the first alone.
    R = np.asarray(first.relevance["input"])[:, 0]
    assert R[0] == pytest.approx([1, 2, 0, 0], abs=1e-3)  # x * w of class 0.
    assert np.array_equal(R[2:], np.asarray(ways["gradient"][0].relevance["input"])[:, 0])
    assert {row["target"] for row in first.ledger} == {0, 1, 2, 3}
    (shown, _) = Page(report.write(tmp_path / "r.html", [first], title="T")).meta["samples"][0]["methods"][1:3]
    assert shown == "epsilon"


def test_what_cannot_be_compared():
    one, other = sample("a"), sample("b")
    with pytest.raises(ValueError, match="at least two ways"):
        report.compare({"x": [one]})
    with pytest.raises(ValueError, match="not those of 'x'"):
        report.compare({"x": [one], "y": [other]})
    small = Sample("a", None, ["t"], [1.0], {"input": noise(1, 5, 5)})
    with pytest.raises(ValueError, match=r"x \(12, 12\), y \(5, 5\)"):
        report.compare({"x": [one], "y": [small]})
