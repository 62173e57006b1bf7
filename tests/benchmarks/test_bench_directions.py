"""The benchmark of directions: what it writes of a small model, and that it refuses results that differ."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from benchmarks.directions import choice, main
from benchmarks.directions_others import compared
from benchmarks.directions_workloads import Workload
from benchmarks.providers import UnavailableError
from fastlrp import groups


def test_rows_of_the_choice():
    def make() -> tuple[fastlrp.Explainer, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
        x = torch.rand(1, 1, 8, 8)
        return fastlrp.Explainer(model, "epsilon_plus", example_inputs=x), x

    work = Workload("small", 10, {4: groups.patches(4)}, (1, 5), make, {})
    rows = list(choice(work, math.inf))
    assert [row["targets"] for row in rows] == [1, 5]
    for row in rows:
        assert set(row["seconds"]) == set(row["estimated"]) == {"down", "up", "middle"}
        assert row["excess"] == row["seconds"][row["taken"]] / min(row["seconds"].values()) - 1


def test_only_results_that_agree_are_timed(capsys):
    def gone() -> tuple[Tensor, float]:
        raise UnavailableError("it is not here")

    ours = torch.ones(1, 4, 3)
    ways = [("ours", lambda: (ours, 1.0)), ("same", lambda: (ours[:, :2], 5.0)), ("wrong", lambda: (ours * 2, 1.0))]
    rows = list(compared("title", "class", [*ways, ("gone", gone)]))
    assert [row["provider"] for row in rows] == ["ours", "same"]
    printed = capsys.readouterr().out
    assert "5.0 times fastlrp's time" in printed
    assert "wrong                      not timed: its output differs by 1.0e+00" in printed
    assert "left out: it is not here" in printed


def test_unknown_words():
    with pytest.raises(SystemExit):
        main(["--part", "everything"])
