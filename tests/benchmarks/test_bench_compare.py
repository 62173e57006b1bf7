"""Providers, measuring in turns, and the command: on the small network."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import compare, layers, measure, memory, providers
from benchmarks.models import build
from benchmarks.providers import Provider
from benchmarks.rounds import OTHERS, spread_out
from fastlrp.run import runner
from tests.torchvision_models import import_models

import_models()


def ignore() -> None:
    pass


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_the_floor_runs(name):
    model, x = build(name, size=32, batch=2)
    part = providers.floor(model, x)
    assert not part.comparable
    assert part.run(x, spread_out(3, 10, 2), ignore) is None


def test_the_two_gradients_are_the_same():
    model, x = build("small", batch=2)
    classes = torch.tensor([[3, 5, 0], [9, 1, 2]])
    looped, batched = (part.run(x, classes, ignore) for part in providers.gradients(model))
    assert looped.shape == (2, 3, 1, 8, 8)
    assert measure.disagreement(looped, batched) < 1e-5


def test_the_stream_gives_its_last_block():
    model, x = build("small")
    ours = providers.ours(model, x, "epsilon_plus", "torch")
    streamed = providers.streaming(model, x, "epsilon_plus", "torch", 4)
    classes = spread_out(10, 10)
    assert measure.disagreement(ours.run(x, classes, ignore)[:, 8:], streamed.run(x, classes, ignore)) < 1e-6


def part(name, run, **options):
    return Provider(name, lambda x, classes, mark: run(classes, mark), **options)


def test_who_disagrees_or_fails_is_not_timed():
    x, classes = torch.ones(1, 1), spread_out(4, 4)
    right = torch.ones(1, 4, 1)

    def fails(classes, mark):
        raise RuntimeError("cannot do this\nat all")

    found = measure.measure(
        [
            part("fastlrp auto", lambda c, m: right[:, : c.shape[1]]),
            part("other near", lambda c, m: right[:, : c.shape[1]] * 1.00001, limit=3),
            part("other far", lambda c, m: right[:, : c.shape[1]] * 1.1),
            part("other failing", fails, optional=True),
        ],
        x, classes, 2,
    )  # fmt: skip
    ours, near, far, failing = found
    assert [len(entry.seconds) for entry in found] == [2, 2, 0, 0]
    assert (ours.error, near.measured) == (None, 3)
    assert near.error == pytest.approx(1e-5, rel=0.05)
    assert far.reason == "its output differs by 9.1e-02"  # relative to theirs
    assert failing.reason == "RuntimeError: cannot do this"
    rows = measure.rows(measure.Case("targets", "m", "c", classes, 1), found, {})
    assert [row["seconds_per_target"] is None for row in rows] == [False, False, True, True]
    assert "not timed: its output differs" in measure.line(rows[2])
    with pytest.raises(RuntimeError, match="cannot do this"):
        measure.measure([part("zennit", fails)], x, classes, 1)


def test_what_is_done_once_counts_as_for_all_targets(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def run(classes, mark):
        clock[0] += 8.0
        mark()
        clock[0] += 2.0 * classes.shape[1]

    # 4 targets asked, 2 measured, for each of 2 samples: 8 / 4 + 2 per target, where two targets alone take 6 each.
    found = measure.seconds(part("slow", run, limit=2), torch.ones(2, 1), spread_out(4, 4, 2))
    assert found == (8 / 4 + 2) / 2


def test_memory_is_seen_while_it_is_held():
    if memory.resident() is None:
        pytest.skip("there is no /proc")

    def run():
        block = torch.ones(16 << 20)
        time.sleep(0.2)
        return int(block[0])

    result, grown = memory.growth(run)
    assert result == 1
    assert 60 << 20 <= grown < 90 << 20


def test_the_better_way_counts():
    entries = [
        measure.Entry(part(name, ignore), seconds=[seconds])
        for name, seconds in (("fastlrp auto", 1.0), ("zennit retained", 4.0), ("zennit expanded", 3.0))
    ]
    ours, retained, _ = measure.rows(measure.Case("targets", "m", "c", spread_out(4, 4), 1), entries, {})
    assert ours["times_faster_than_zennit"] == 3.0
    assert retained["times_faster_than_zennit"] == 0.75


def test_spread_leaves_the_outer_tenths_out():
    assert measure.Entry(part("a", ignore), seconds=[1.0, 2.0, 3.0]).spread == 3.0
    assert measure.Entry(part("a", ignore), seconds=[0.1, *[2.0] * 8, 99.0]).spread == 1.0


@pytest.mark.parametrize("scenario", ["targets", "stream"])
def test_command(scenario, tmp_path, capsys):
    output = tmp_path / "folder" / "rows.jsonl"
    words = ["--scenario", scenario, "--models", "small", "--composites", "epsilon", "--targets", "4", "--repeats", "1"]
    words += ["--counts", "1,10", "--backends", "torch", "--density", "0.3", "--output", str(output)]
    compare.main(words)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert f"{scenario}: small, epsilon, 1 of 8x8, K =" in capsys.readouterr().out
    for row in rows:
        assert row["command"] == "python -m benchmarks.compare " + " ".join(words[:-2])
        assert {"commit", "machine", "threads", "python", "torch", "zennit", "captum"} <= row.keys()
        assert (row["scenario"], row["batch"], row["size"], row["density_asked"]) == (scenario, 1, 8, 0.3)
        assert abs(row["density"] - 0.3) < 0.02
        # Captum has no rule for a Flatten module, and says so.
        assert (row["reason"] is None) == (not row["provider"].startswith("captum"))
    who = {row["provider"].split()[0] for row in rows}
    assert who == ({"fastlrp", *OTHERS} if scenario == "targets" else {"fastlrp", "gradient"})
    if scenario == "stream":
        ours = [row for row in rows if row["provider"] == "fastlrp torch"]
        assert [row["targets"] for row in ours] == [1, 10]
        assert all("peak_over_one_target" in row for row in ours if row["peak_bytes"] is not None)


def test_unknown_words_are_refused(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--scenario", "sideways"])
    assert "--scenario: sideways not known; expected of targets, batch" in capsys.readouterr().err


def test_absent_goldens_leave_a_scenario_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("benchmarks.toolbox.GOLDENS", tmp_path)
    compare.main(["--scenario", "toolbox", "--output", ""])
    assert "toolbox: not measured, no LeNet-5.txt in ../shared/goldens" in capsys.readouterr().out


def test_layers(capsys):
    words = ["--model", "small", "--targets", "8", "--density", "0.3"]
    propagate = runner.propagate
    layers.main(words)
    assert runner.propagate is propagate  # Else the steps of every later plan are kept, with their weights.
    text = capsys.readouterr().out
    assert "small, epsilon_plus, " in text
    assert "0.30 of the neurons alive" in text
    for word in ("dense GFLOP/s", "made", "of peak", "conv2d", "outside of the steps"):
        assert word in text
