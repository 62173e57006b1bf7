"""An interrupted run goes on where it stopped: nothing lost, nothing done twice, the same bytes in the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.conftest import HERE, MODEL, files

ROOT = HERE.parents[1]
MANIFEST = "fastlrp-manifest.jsonl"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="sends signals")]


def start(*words: object) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WAITS_FOR_CTRL_C": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fastlrp", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What is left of both streams. ``communicate`` would lose what readline has buffered."""
    assert process.stdout is not None
    assert process.stderr is not None
    streams = process.stdout.read(), process.stderr.read()
    process.wait(timeout=60)
    return streams


def written(out: Path) -> dict[str, tuple[int, bytes]]:
    return {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in files(out).items()}


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder, generator = tmp_path / "many", np.random.default_rng(3)
    folder.mkdir()
    for i in range(10):
        Image.fromarray(generator.integers(0, 255, (16, 18, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def test_ctrl_c_and_the_same_command_again(run, many, tmp_path):
    model = f"{HERE / 'models.py'}:interrupted"  # Which waits for it: however late this process sends it.
    words = ["explain", model, many, "-t", "top2", "-f", "png,npz,raw", "--batch-size", 2, "--json"]
    process = start(*words, "-o", tmp_path / "out")
    _read_until(process, "waiting")
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    lines = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 130, err
    assert "interrupted: finishing what is under way" in err
    *inputs, end = lines
    assert end["event"] == "end"
    assert end["interrupted"]
    assert end["done"] == 6, "the batch under way is finished, and no other begun"
    assert end["left"] == 10 - end["done"] > 0
    assert f"interrupted after {end['done']} of 10 inputs: the same command goes on from here" in err
    assert [Path(line["input"]).name for line in inputs] == [f"{i}.png" for i in range(end["done"])]
    before = written(tmp_path / "out")
    assert sorted(before) == sorted(name for line in inputs for name in line["files"]), "only whole inputs"

    again = run(*words, "-o", tmp_path / "out")
    assert again.code == 0, again.err
    *resumed, last = again.lines
    assert (last["kept"], last["done"]) == (end["done"], 10 - end["done"])
    assert [line["status"] for line in resumed] == ["kept"] * end["done"] + ["done"] * (10 - end["done"])
    after = written(tmp_path / "out")
    assert {name: after[name] for name in before} == before, "no finished file is written twice"

    whole = run(*words, "-o", tmp_path / "whole")
    assert whole.code == 0, whole.err
    expected = written(tmp_path / "whole")
    assert after.keys() == expected.keys()
    different = [name for name in after if after[name][1] != expected[name][1] and not name.endswith(".npz")]
    assert not different
    for name in (name for name in after if name.endswith(".npz")):  # A zip archive has dates in it.
        mine, theirs = np.load(tmp_path / "out" / name), np.load(tmp_path / "whole" / name)
        for key in theirs:
            assert mine[key].tobytes() == theirs[key].tobytes()
    strip = ("event", "input", "sample", "targets", "files", "error")
    told = whole.lines[:-1]
    assert [{k: line[k] for k in strip} for line in resumed] == [{k: line[k] for k in strip} for line in told]


def test_the_second_ctrl_c_does_not_wait(many, tmp_path):
    process = start("explain", f"{HERE / 'models.py'}:very_slow", many, "-o", tmp_path / "out")
    too_long = threading.Timer(300, process.kill)  # A forward pass takes 600 s.
    too_long.start()
    _read_until(process, "waiting")
    process.send_signal(signal.SIGINT)
    _read_until(process, "interrupted: finishing what is under way")  # Two signals that wait are one.
    process.send_signal(signal.SIGINT)
    _, err = finish(process)
    too_long.cancel()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err


def _read_until(process: subprocess.Popen[str], beginning: str) -> None:
    """Read the process's errors up to a line that begins so."""
    assert process.stderr is not None
    read = []
    while not (read and read[-1].startswith(beginning)):
        read.append(process.stderr.readline())
        assert read[-1], f"ended without saying {beginning!r}: {''.join(read)}"


def test_what_a_killed_run_leaves(run, many, tmp_path):
    out, words = tmp_path / "out", ["explain", MODEL, many, "-o", tmp_path / "out", "-t", "top1", "-f", "npy"]
    assert run(*words).code == 0
    expected = written(out)
    manifest = out / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    # Killed in the middle of a line, with one more file done and half a file under way.
    manifest.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    (out / ".fastlrp-0123456789ab.tmp").write_bytes(b"half a fi")
    for i in range(6, 10):
        (out / f"{i}.png_relevance.npy").unlink()
    done = run(*words, "--json")
    assert done.code == 0
    assert (done.lines[-1]["kept"], done.lines[-1]["done"]) == (4, 6)
    assert not (out / ".fastlrp-0123456789ab.tmp").exists()
    after = written(out)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in expected.items()}
    kept = [f"{i}.png_relevance.npy" for i in range(4)]
    assert {name: after[name] for name in kept} == {name: expected[name] for name in kept}
    names = [json.loads(line)["name"] for line in manifest.read_text().splitlines()[1:]]
    assert names == [f"{i}.png" for i in range(10)]


def test_files_that_are_gone_are_made_again(run, many, tmp_path):
    out, words = tmp_path / "out", ["explain", MODEL, many, "-o", tmp_path / "out", "-t", "top2", "--json"]
    assert run(*words).code == 0
    before = written(out)
    victim = next(name for name in before if name.startswith("4.png"))
    (out / victim).unlink()
    done = run(*words)
    assert [line["status"] for line in done.lines[:-1]] == ["kept"] * 4 + ["done"] + ["kept"] * 5
    after = written(out)
    assert after[victim][1] == before[victim][1]
    others = [name for name in before if not name.startswith("4.png")]
    assert {name: after[name] for name in others} == {name: before[name] for name in others}


def test_an_input_that_has_changed_is_explained_again(run, many, tmp_path):
    out, words = tmp_path / "out", ["explain", MODEL, many, "-o", tmp_path / "out", "-t", "top1", "--json"]
    assert run(*words).code == 0
    shutil.copy(many / "1.png", many / "7.png")
    done = run(*words)
    assert [i for i, line in enumerate(done.lines[:-1]) if line["status"] == "done"] == [7]
    seven, one = ([p.read_bytes() for name, p in files(out).items() if name.startswith(f"{i}.png")] for i in (7, 1))
    assert seven == one


def test_more_inputs_join_the_same_folder(run, many, tmp_path):
    out = tmp_path / "out"
    assert run("explain", MODEL, many / "1.png", many / "2.png", "-o", out).code == 0
    done = run("explain", MODEL, many, "-o", out, "--json")
    assert (done.lines[-1]["kept"], done.lines[-1]["done"]) == (2, 8)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["-t", "top2"], "targets: top1 there, top2 here"),
        (["-c", "gamma"], "composite: epsilon_plus there, gamma here"),
        (["-p", "epsilon=0.5"], 'parameters: {} there, {"epsilon": 0.5} here'),
        (["--resize", "32"], "resize: null there, 32 here"),
        (["--seed", "1"], "weights: "),
        (["--cmap", "hot"], "cmap: soft there, hot here"),
        (["-f", "png,npy"], 'format: ["png"] there, ["npy", "png"] here'),
    ],
)
def test_other_settings_in_the_same_folder(run, many, tmp_path, words, what):
    out = tmp_path / "out"
    assert run("explain", MODEL, many, "-o", out).code == 0
    before = written(out)
    refused = run("explain", MODEL, many, "-o", out, *words)
    assert refused.code == 2
    assert what in refused.err
    assert "name another folder, or start anew with --overwrite" in refused.err
    assert written(out) == before


def test_overwrite_starts_anew(run, many, tmp_path):
    out = tmp_path / "out"
    assert run("explain", MODEL, many, "-o", out, "-t", "3").code == 0
    (out / "mine.txt").write_text("not a result")
    done = run("explain", MODEL, many, "-o", out, "-t", "5", "--overwrite", "--json")
    assert done.lines[-1]["done"] == 10
    assert sorted(files(out)) == [*(f"{i}.png_5.png" for i in range(10)), "mine.txt"]


def test_what_does_not_change_numbers_may_change(run, many, tmp_path):
    out = tmp_path / "out"
    assert run("explain", MODEL, many, "-o", out).code == 0
    done = run("explain", MODEL, many, "-o", out, "--batch-size", 3, "--workers", 1, "--max-memory", "1GB", "--json")
    assert done.lines[-1]["kept"] == 10


def test_two_runs_at_once(run, many, tmp_path):
    from fastlrp.cli.store import Store

    with Store(tmp_path / "out", {}):
        done = run("explain", MODEL, many, "-o", tmp_path / "out")
    assert done.code == 2
    assert "another run is writing to" in done.err


def test_a_foreign_manifest(run, many, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text("hello\n")
    done = run("explain", MODEL, many, "-o", tmp_path / "out")
    assert done.code == 2
    assert "is no manifest" in done.err
    assert (tmp_path / "out" / MANIFEST).read_text() == "hello\n"


def test_failed_inputs_are_tried_again(run, many, tmp_path):
    whole = (many / "5.png").read_bytes()
    (many / "5.png").write_bytes(whole[:100])
    words = ["explain", MODEL, many, "-o", tmp_path / "out", "-f", "npy", "--json"]
    assert run(*words).code == 1
    (many / "5.png").write_bytes(whole)
    done = run(*words)
    assert done.code == 0
    assert (done.lines[-1]["kept"], done.lines[-1]["done"]) == (9, 1)


def test_batches_do_not_depend_on_what_is_done(run, many, tmp_path):
    """Numbers of a batch may differ in the last bit from those of another: resuming keeps the batches."""
    words = ["explain", MODEL, many, "-t", "all", "-f", "npy", "--batch-size", 4]
    assert run(*words, "-o", tmp_path / "whole").code == 0
    assert run(*words, "-o", tmp_path / "out").code == 0
    for i in (1, 2, 6):
        (tmp_path / "out" / f"{i}.png_relevance.npy").unlink()
    assert run(*words, "-o", tmp_path / "out").code == 0
    whole, out = written(tmp_path / "whole"), written(tmp_path / "out")
    assert {name: data for name, (_, data) in out.items()} == {name: data for name, (_, data) in whole.items()}


def test_an_input_that_changes_after_it_was_read(run, many, tmp_path, monkeypatch):
    from fastlrp.cli.engine import Engine

    out, words = tmp_path / "out", ["explain", MODEL, many, "-o", tmp_path / "out", "-f", "npy", "--json"]
    explain = Engine.explain

    def late(self, samples):
        if any(sample.item.path.name == "7.png" for sample in samples):
            shutil.copy(many / "1.png", many / "7.png")
        return explain(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "explain", late)
        assert run(*words).code == 0
    done = run(*words)
    assert [i for i, line in enumerate(done.lines[:-1]) if line["status"] == "done"] == [7]
    seven, one = (np.load(out / f"{i}.png_relevance.npy") for i in (7, 1))
    assert np.allclose(seven, one, atol=1e-6)


def test_another_model_of_the_same_name_and_weights(run, many, tmp_path):
    """A file that the model's file imports; a program of other operations."""
    (tmp_path / "made.py").write_text(
        "from torch import nn\nimport parts_of_it\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(864, 4), parts_of_it.Last())\n"
    )
    part = "from torch import nn\n\nclass Last(nn.Module):\n    def forward(self, x):\n        return x.{}()\n"
    flat = lambda last: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(864, 4), last).eval()  # noqa: E731
    for number, (name, last) in enumerate((("relu", torch.nn.ReLU()), ("tanh", torch.nn.Tanh()))):
        sys.modules.pop("parts_of_it", None)
        (tmp_path / "parts_of_it.py").write_text(part.format(name) + "\n" * number)
        torch.manual_seed(0)
        program = torch.export.export(
            flat(last), (torch.rand(2, 3, 16, 18),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
        )
        torch.export.save(program, tmp_path / "made.pt2")
        for what, model in (("code", f"{tmp_path / 'made.py'}:make"), ("structure", tmp_path / "made.pt2")):
            done = run("explain", model, many / "1.png", "-o", tmp_path / what, "-f", "npy")
            assert done.code == (2 if number else 0), done.err
            assert not number or f"{what}: " in done.err
            if not number:  # Now this process has imported the file before, which changes nothing.
                assert run("explain", model, many / "1.png", "-o", tmp_path / what, "-f", "npy").code == 0
    sys.modules.pop("parts_of_it", None)
