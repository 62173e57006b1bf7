"""The GPU run as far as a machine without a GPU can show it: the script, its parts on a CPU, the summary."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import summary
from benchmarks.gpu.goals import Goal, goals
from benchmarks.gpu.part import no_gpu

ROOT = Path(__file__).parents[2]
SCRIPT = "benchmarks/gpu.sh"
PARTS = [
    "build", "smoke", "tests", "memcheck", "roofline", "models", "ops", "sparse", "attention", "norm", "recurrence",
    "racecheck", "batch", "stream", "replay",
]  # fmt: skip


def script(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", SCRIPT, *words], cwd=ROOT, capture_output=True, text=True, env=env)


def listed(text: str) -> dict[str, int]:
    """Parts of a dry run with their limits."""
    rows = [
        line.split() for line in text.splitlines() if " at most " in line and not line.startswith(("quick", "full"))
    ]
    return {row[0]: int(row[3]) for row in rows}


def test_dry_run_lists_the_parts():
    full, quick = (script(*words, "--dry-run").stdout for words in ([], ["--quick"]))
    assert list(listed(full)) == PARTS
    assert list(listed(quick)) == PARTS
    assert all(limit <= listed(full)[name] for name, limit in listed(quick).items())
    assert f"full: at most {sum(listed(full).values())} s in all" in full
    # One command on a lent GPU has ten minutes.
    assert max(listed(full).values()) < 600


def test_dry_run_of_some_parts():
    assert list(listed(script("--only", "tests,ops", "--dry-run").stdout)) == ["build", "tests", "ops"]
    assert list(listed(script("--only", "tests", "--no-build", "--dry-run").stdout)) == ["tests"]
    assert list(listed(script("--only", "ncu", "--no-build", "--dry-run").stdout)) == ["ncu"]
    assert "ncu" in listed(script("--ncu", "--dry-run").stdout)
    assert set(listed(script("--dry-run", FASTLRP_GPU_LIMIT="7").stdout).values()) == {7}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "opps", "out"], "there is no part 'opps'; there are: build smoke tests "),
        (["--fast", "out"], "there is no option --fast"),
        (["--seconds", "soon", "out"], "--seconds wants a whole number, got 'soon'"),
        (["one", "two"], "one OUT, got 'one' and 'two'"),
        ([], "OUT is missing"),
    ],
)
def test_wrong_calls(words, message):
    done = script(*words)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.skipif(no_gpu() is None, reason="there is a GPU")
def test_refusal_without_a_gpu(tmp_path):
    done = script(str(tmp_path / "out"))
    assert done.returncode == 2
    assert f"nothing to measure on: {no_gpu()}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_refusal_without_python(tmp_path):
    done = script(str(tmp_path), PYTHON="no-such-python")
    assert (done.returncode, "there is no 'no-such-python'" in done.stderr) == (2, True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    done = subprocess.run(["shellcheck", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.fixture
def python(tmp_path):
    """A Python that does of each part what its name says, so that the script alone is tested."""
    path = tmp_path / "python"
    path.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        f'  *benchmarks.gpu.summary* | -c*) exec {sys.executable} "$@" ;;\n'
        '  *benchmarks.gpu.ops*) echo "about to fail"; echo "wrong: a result is off"; exit 1 ;;\n'
        "  *benchmarks.gpu.sparse*) exec sleep 100 ;;\n"
        '  *) echo "called with $*" ;;\n'
        "esac\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def results(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "status.jsonl").read_text().splitlines()]
    return {row["part"]: row["result"] for row in rows}


def test_a_part_that_fails_or_hangs_loses_nothing(python, tmp_path):
    out = tmp_path / "out"
    words = ["--rehearse", "--only"]
    done = script(*words, "roofline,ops,sparse,models,memcheck", str(out), PYTHON=python, FASTLRP_GPU_LIMIT="2")
    assert done.returncode == 1
    assert results(out) == {"roofline": "ok", "ops": "failed", "sparse": "took too long", "models": "ok"}
    assert "memcheck: cannot be rehearsed" in done.stdout
    assert "wrong: a result is off" in done.stdout
    assert "| sparse | took too long | 2 | 2 |" in (out / "summary.md").read_text()
    log = (out / "log.txt").read_text()
    for text in ("about to fail", "=== roofline, at most 2 s:", "--scenario targets"):
        assert text in log
    again = script("--resume", *words, "roofline,ops,models", str(out), PYTHON=python, FASTLRP_GPU_LIMIT="2")
    assert "roofline: ok before" in again.stdout
    assert "models: ok before" in again.stdout
    assert "ops: failed" in again.stdout


def test_parts_share_the_seconds(python, tmp_path):
    done = script("--rehearse", "--only", "roofline,models", "--seconds", "3", str(tmp_path), PYTHON=python)
    assert results(tmp_path) == {"roofline": "no time left", "models": "no time left"}
    assert done.returncode == 1


def test_rehearsal_measures_on_the_cpu(tmp_path):
    """The parts themselves, with tiny shapes. Their rows say that they are a CPU's, so no goal is judged by them."""
    done = script("--rehearse", "--only", "roofline,ops,sparse,attention,norm,recurrence", str(tmp_path))
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == {"roofline", "ops", "sparse", "transformer"}
    assert {row["device"] for row in rows} == {"cpu"}
    assert {"commit", "torch", "date", "command"} <= rows[0].keys()
    assert "of 50 goals are not measured by this run." in done.stdout
    summary = (tmp_path / "summary.md").read_text()
    for title in ("### Parts", "### Peaks, measured", "### Living neurons only", "### The floor, layer by layer"):
        assert title in summary


# The summary

MADE = {
    "device": "NVIDIA H100 80GB HBM3", "driver": "580", "cuda": "13.0", "cudnn": 9, "torch": "2.11", "triton": "3.6",
    "zennit": "0.5.1", "commit": "abc", "date": "2026-01-01",
}  # fmt: skip
MODEL = {
    **MADE, "part": "models", "scenario": "targets", "model": "vgg16", "composite": "epsilon_plus", "targets": 256,
    "batch": 1, "size": 224, "precision": "tf32", "provider": "fastlrp auto", "seconds_per_target": 0.001,
    "spread": 1.01, "times_faster_than_zennit": 5.0, "share_of_floor": 1.3, "share_of_gradient": 0.5,
    "peak_bytes": 1 << 30, "peak_bytes_in_all": 2 << 30, "error": 1e-3, "reason": None,
}  # fmt: skip
OP = {
    **MADE, "part": "ops", "op": "pool_max_relevance", "model": "vgg16", "call": "64x112x112", "targets": 128,
    "precision": "tf32", "backend": "cuda", "seconds": 0.001, "spread": 1.0, "error": 1e-7, "limit": 1e-5,
    "reason": None, "unable": False, "bytes": 1 << 30, "times_faster_than_composed": 2.5, "of_peak": 0.9,
    "of_peak_flops": 0.0, "of_peak_bytes": 0.7,
}  # fmt: skip
STATUS = {"part": "tests", "result": "ok", "seconds": 100, "limit": 560, "note": "pytest"}


def board(*rows):
    return {line.split(" | ")[0].strip("| "): line for line in summary.scoreboard(list(rows)).splitlines()}


def test_summary():
    text = summary.markdown([MODEL, OP], [STATUS])
    assert "Measured on NVIDIA H100 80GB HBM3, driver 580, CUDA 13.0, cuDNN 9, PyTorch 2.11, Triton 3.6" in text
    assert "| tests | ok | 100 | 560 | pytest |" in text
    assert (
        "| vgg16 | epsilon_plus | tf32 | 256 | 1 | fastlrp auto | 1 | 1.01 | 5.0 | 0.50 | 1.30 | 1024 | 2048 |" in text
    )
    assert "| pool_max_relevance | tf32 | cuda | 1 | 0 | 2.50 | 2.50 | 0.90 | 0.90 |" in text
    assert "call by call" in text
    assert "call by call" not in summary.markdown([MODEL, OP], [], short=True)
    assert summary.markdown([], []) == summary.NOTHING


def test_goals_are_judged():
    rows = board(MODEL, OP, {**OP, "call": "512x7x7", "of_peak_bytes": 0.85})
    assert len(rows) == 2 + len(goals())
    assert "≥ 4 | 5.00 | met |" in rows["one image, K = 256: vgg16, epsilon_plus, tf32, times faster than Zennit"]
    assert (
        "≤ 1.15 | 1.30 | missed |" in rows["one image, K = 256: vgg16, epsilon_plus, tf32, time over the dense floor"]
    )
    assert "– | not measured |" in rows["one image, K = 256: resnet50, epsilon_plus, tf32, times faster than Zennit"]
    bandwidth = next(line for name, line in rows.items() if "copy's bandwidth" in name)
    assert "0.70 (pool_max_relevance 64x112x112 K=128 tf32), 1 of 2 met | missed |" in bandwidth


def test_who_was_not_timed_misses_a_goal():
    lost = {**MODEL, "times_faster_than_zennit": None, "reason": "its output differs"}
    line = board(lost)["one image, K = 256: vgg16, epsilon_plus, tf32, times faster than Zennit"]
    assert "no time | missed |" in line


def test_a_cpu_or_other_shapes_meet_no_goal():
    for change in ({"device": "cpu"}, {"targets": 32}, {"size": 32}, {"provider": "fastlrp torch"}):
        text = summary.scoreboard([{**MODEL, **change}])
        assert "| met |" not in text
        assert "| missed |" not in text


def test_streams_are_flat_and_small():
    few = {**MODEL, "scenario": "stream", "seconds_per_target": 0.001}
    many = {**few, "targets": 1000, "seconds_per_target": 0.00105, "peak_bytes_in_all": 7.5e9}
    rows = board(few, many)
    assert "1.05 (tf32) | met |" in rows["K = 1000 on vgg16: time per target over that of 256"]
    assert "7.50 (tf32) | met |" in rows["K = 1000 on vgg16: memory of the process on the device, GB"]


def test_a_goal_ranks_by_its_direction():
    found = [("a", 1.0), ("b", 3.0), ("c", 2.0)]
    assert Goal("", lambda rows: found, least=1.5).judge([])[1:] == ("1.00 (a), 2 of 3 met", "missed")
    assert Goal("", lambda rows: found, most=3.0).judge([])[1:] == ("3.00 (b), 3 of 3 met", "met")


def test_the_newest_row_counts(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text(json.dumps(MODEL) + "\n" + json.dumps(OP) + "\n")
    second.write_text(json.dumps({**MODEL, "commit": "def", "seconds_per_target": 0.002}) + "\n\n")
    rows = summary.read([first, second])
    assert [row["commit"] for row in rows] == ["abc", "def"]
    second.write_text('{"part": "mod')
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1 is no row"):
        summary.read([first, second])


def test_the_page_is_written_between_its_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{summary.MARKERS.begin}\nstale\n{summary.MARKERS.end}\nafter\n")
    summary.MARKERS.write(page, summary.markdown([MODEL], [], short=True))
    assert "stale" not in page.read_text()
    assert "| fastlrp auto |" in page.read_text()
    assert page.read_text().endswith("after\n")
    page.write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md needs the lines"):
        summary.MARKERS.write(page, "")
    assert (ROOT / "benchmarks" / "README.md").read_text().count(summary.MARKERS.begin) == 1


def test_no_gpu_is_a_reason():
    if torch.cuda.is_available():
        assert no_gpu() is None
    else:
        assert "CUDA" in (no_gpu() or "")
