"""``verify``, ``bench``, ``demo``, ``info``, ``report``, and the help."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import partial

import pytest
import torch
from PIL import Image

import fastlrp
from fastlrp.cli import digits
from tests.cli.conftest import HERE, MODEL
from tests.cli.test_cli_explain import loaded, pixels

COMMANDS = ["explain", "report", "verify", "bench", "demo", "info"]


def test_verify(run, photos):
    done = run("verify", MODEL, photos / "a.png", "-t", "all", "-c", "gamma")
    assert done.code == 0
    report = fastlrp.Explainer(loaded(), "gamma").verify(pixels(photos / "a.png"), "all")
    assert done.out == f"{report}\n"
    line = run("verify", MODEL, photos / "a.png", "-t", "all", "-c", "gamma", "--json").lines[0]
    assert line["ok"] is True
    assert line["score"] == pytest.approx(report.score, rel=1e-5)
    assert [row["path"] for row in line["layers"]] == [row.path for row in report.rows]


def test_verify_that_fails(run, photos):
    done = run("verify", MODEL, photos / "a.png", "--tolerance", "1e-12")
    assert done.code == 1
    assert "NOT OK" in done.out
    assert "more than 1e-12" in done.err


def test_verify_nothing(run, photos):
    assert run("verify", MODEL).code == 2
    assert run("verify", MODEL, photos / "nosuch.png").code == 2


def test_bench(run, photos):
    done = run("bench", MODEL, photos / "a.png", "-t", "all", "--repeats", 2, "--batch-size", 2)
    assert done.code == 0, done.err
    assert re.search(r"^10 gradients +0\.\d+", done.out, re.M)
    assert re.search(r"^fastlrp, 10 targets +0\.\d+", done.out, re.M)
    assert "input 2x3x20x24" in done.out
    line = run("bench", MODEL, "--sample-shape", "3,16,16", "-t", "top1", "--repeats", 1, "--json").lines[0]
    assert list(line["seconds"]) == ["forward pass", "1 gradient", "fastlrp, 1 target"]
    assert all(seconds > 0 for seconds in line["seconds"].values())
    assert line["shape"] == [1, 3, 16, 16]


def test_bench_without_a_size(run):
    done = run("bench", MODEL)
    assert done.code == 2
    assert "what size of input? Give --sample-shape C,H,W, or an input" in done.err


@pytest.mark.slow
def test_info(run):
    from fastlrp.info import text

    done = run("info")
    assert done.code == 0
    assert done.out.splitlines()[0] == text().splitlines()[0]
    assert len(done.out.splitlines()) <= 15
    assert run("info", "--all").out == text() + "\n"
    assert run("--version").out == f"fastlrp {fastlrp.__version__}\n"


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "accuracy"), [(5, 85), pytest.param(10, 95, marks=pytest.mark.full)])
def test_demo_and_what_it_says_to_try(run, tmp_path, monkeypatch, epochs, accuracy):
    """Trained for less time than a user's, but in a full run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "train", partial(digits.train, epochs=epochs))
    done = run("demo", "-o", "my demo")
    assert done.code == 0, done.err
    assert float(re.search(r"accuracy +([\d.]+) %", done.out)[1]) > accuracy
    assert Image.open("my demo/demo.png").size > (800, 800)
    assert sorted(os.listdir("my demo/digits")) == [f"{i}.png" for i in range(10)]
    tries = re.findall(r"^  (fastlrp .*)$", done.out, re.M)
    assert [line.split()[1] for line in tries] == ["explain", "verify", "report"]
    command = tries[0].replace("fastlrp", f"{sys.executable} -m fastlrp", 1)
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    tried = subprocess.run(command, shell=True, capture_output=True, text=True, env=env)
    assert tried.returncode == 0, tried.stderr
    for line in tries[1:]:
        again = run(*shlex.split(line)[1:])
        assert again.code == 0, again.err
    assert len(os.listdir("my demo/maps")) == 41
    assert (tmp_path / "my demo" / "report.html").stat().st_size > 10_000


def test_report(run, photos, tmp_path):
    pytest.importorskip("jinja2")
    (photos / "broken.png").write_bytes(b"")
    labels = tmp_path / "names.txt"
    labels.write_text("\n".join(f"kind {i}" for i in range(10)))
    out = tmp_path / "new" / "report.html"
    words = ["-t", "all", "--labels", labels, "--layers", "3", "--title", "What it sees", "--ledger", 1]
    done = run("report", MODEL, photos, "-o", out, *words)
    assert done.code == 1
    assert "broken.png: " in done.err
    assert f"{out}: 6 inputs, " in done.out
    page = out.read_text(encoding="utf-8")
    for text in ("What it sees", "kind 7", str(photos / "more" / "e.bmp"), "epsilon_plus"):
        assert text in page


def test_report_of_arrays_lists_and_json(run, photos, tmp_path):
    pytest.importorskip("jinja2")
    listed = photos / "list.txt"
    listed.write_text("a.png 3\nb.jpg 12\nd.jpg 4\n")
    done = run("report", MODEL, "--list", listed, "-t", "class", "-o", tmp_path / "r.html", "--json")
    assert done.code == 1
    failed, end = done.lines
    assert "class 12" in failed["error"]
    assert end == {
        "event": "report", "file": str(tmp_path / "r.html"), "bytes": (tmp_path / "r.html").stat().st_size, "inputs": 2,
        "failed": 1,
    }  # fmt: skip
    fastlrp_io = pytest.importorskip("fastlrp.io")
    fastlrp_io.write_array(torch.rand(3, 3, 8, 8), tmp_path / "x.npy")
    assert run("report", MODEL, tmp_path / "x.npy", "-o", tmp_path / "x.html").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "."], "is a folder: name the file, for instance report.html"),
        (["--max-size", "big"], "--max-size: the size must be a positive number of bytes"),
        (["--max-size", "1KB"], "max_bytes=1024"),
        (["--layers", "nosuch"], "unknown layer 'nosuch'"),
    ],
)
def test_reports_that_cannot_be(run, photos, tmp_path, monkeypatch, words, message):
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    done = run("report", MODEL, photos, *words)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help(run, command):
    done = run(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: fastlrp {command}")
    assert max(map(len, done.out.splitlines())) <= 110
    assert command in run("--help").out
    if command == "explain":
        sections = re.findall(r"^(\w+):$", done.out, re.M)
        assert sections == ["Targets", "Results", "Relevance", "Input", "Text", "Model", "Speed", "Messages"]


def test_no_bar_without_a_terminal(run, photos, tmp_path):
    done = run("explain", MODEL, photos, "-o", tmp_path / "out")
    assert "\r" not in done.err
    assert "it/s" not in done.err
    assert done.err.splitlines()[-1].startswith("6 of 6 inputs explained in ")
    quiet = run("explain", MODEL, photos, "-o", tmp_path / "quiet", "-q")
    assert quiet == type(quiet)(0, "", "")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_bar_on_a_terminal(photos, tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "fastlrp", "explain", MODEL, str(photos), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=slave, env=env)
    os.close(slave)
    seen = b""
    try:
        while part := os.read(master, 4096):
            seen += part
    except OSError:  # The other end is closed.
        pass
    process.communicate()
    os.close(master)
    assert process.returncode == 0
    assert "6/6" in seen.decode()
    assert "input/s" in seen.decode() or "s/input" in seen.decode()
