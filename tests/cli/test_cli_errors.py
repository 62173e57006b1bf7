"""Bad input: one line that says what to do, the right exit code, and nothing lost or left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastlrp
from tests.cli.conftest import HERE, MODEL, files

MODELS = HERE / "models.py"
PHOTO = "a.png"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([MODEL, "nosuch.png"], "there is no file or folder 'nosuch.png'"),
        ([MODEL, "notes.txt.gz"], "'notes.txt.gz' is neither an image (.png .jpg"),
        ([MODEL], "nothing to explain: give images, folders, arrays, or --list FILE"),
        ([MODEL, "empty"], "there is no image or array in 'empty'"),
        ([MODEL, "--list", "nolist"], "--list: there is no file 'nolist'"),
        ([MODEL, "--list", PHOTO], "--list: a.png is no text"),
        ([MODEL, "--list", "blank.txt"], "--list: blank.txt names no file"),
        ([MODEL, PHOTO, "-t", "class"], "--targets class takes each input's class from a list"),
        ([MODEL, PHOTO, "-t", "10"], "--targets: target 10 is out of range: the output (1, 10) has 10 classes, 0 to 9"),
        ([MODEL, PHOTO, "-t", "top11"], "'top11' asks for 11 classes, the output has 10"),
        ([MODEL, PHOTO, "-t", "best"], "'best' is none of: all, class, top5 (any number), or class numbers"),
        ([MODEL, PHOTO, "-t", "1,1"], "'1,1' names a class twice"),
        ([MODEL, PHOTO, "-c", "eps"], "unknown composite 'eps': expected one of epsilon_plus"),
        ([MODEL, PHOTO, "-p", "gamma=1"], "epsilon_plus has no parameter 'gamma': it takes epsilon, stabilizer"),
        ([MODEL, PHOTO, "-p", "epsilon=small"], "-p epsilon: expected a number, got small"),
        ([MODEL, PHOTO, "-p", "zero_bias=1"], "-p zero_bias: expected true or false"),
        ([MODEL, PHOTO, "-p", "max_pool=best"], "-p max_pool: expected winner, ties, average or sum"),
        ([MODEL, PHOTO, "-p", "epsilon"], "'epsilon' is not KEY=VALUE, such as epsilon=0.1"),
        ([MODEL, PHOTO, "-p", "epsilon=1", "-p", "epsilon=2"], "-p gives a parameter twice"),
        ([MODEL, PHOTO, "-c", "epsilon_gamma_box", "-p", "low=0"], "takes both bounds: -p low=… -p high=…"),
        ([MODEL, PHOTO, "-c", "alpha_beta", "-p", "alpha=1", "-p", "beta=1"], "--composite alpha_beta: "),
        ([MODEL, PHOTO, "--profile", "lrp"], "unknown profile 'lrp': expected one of zennit"),
        ([MODEL, PHOTO, "--layers", "33"], "unknown layer '33'; did you mean 3?"),
        ([MODEL, PHOTO, "--grey"], "to have 3 channels"),
        ([MODEL, PHOTO, "--mean", "1,2"], "--mean has 2 numbers for 3 channels: give 1 or 3"),
        ([MODEL, PHOTO, "--std", "0"], "--std must be positive, got 0"),
        ([MODEL, PHOTO, "--range", "1,0"], "'1,0' is not a range LOW,HIGH"),
        ([MODEL, PHOTO, "--resize", "big"], "'big' is not a size, such as 224 or HEIGHTxWIDTH"),
        ([MODEL, PHOTO, "-f", "jpg"], "--format: unknown 'jpg', expected some of png, npy, npz, raw"),
        ([MODEL, PHOTO, "-f", "npy", "--overlay"], "--overlay draws pictures: add png to --format"),
        ([MODEL, PHOTO, "--minimal", "--overlay"], "--minimal writes two text files and nothing else"),
        ([MODEL, PHOTO, "--cmap", "greenish"], "unknown colour map 'greenish'"),
        ([MODEL, PHOTO, "--alpha", "2"], "--alpha must be a number from 0 to 1, or relevance"),
        ([MODEL, PHOTO, "--level", "1", "--normalize", "unaligned"], "--level is for --normalize symmetric"),
        ([MODEL, PHOTO, "--level", "nan"], "'nan' is not a number above 0, such as 0.5"),
        ([MODEL, PHOTO, "--level", "0"], "'0' is not a number above 0, such as 0.5"),
        ([MODEL, PHOTO, "--std", "nan"], "'nan' is not a list of numbers, such as 0.5 or"),
        ([MODEL, PHOTO, "-o", ""], "it is empty: name where results go"),
        ([MODEL, PHOTO, "--max-input", "lots"], "--max-input: the size must be a positive number of bytes or text"),
        ([MODEL, PHOTO, "--device", "meta"], "--device meta: it has no numbers to explain; --device cpu is always"),
        ([MODEL, PHOTO, "--labels", "nolabels"], "--labels: there is no file 'nolabels'"),
        ([MODEL, PHOTO, "--labels", "blank.txt"], "--labels: blank.txt is empty"),
        ([MODEL, PHOTO, "--max-memory", "lots"], "must be a positive number of bytes or text such as '2GB'"),
        ([MODEL, PHOTO, "--precision", "bf16", "--dtype", "float64"], "precision='bf16' is for models of float32 and"),
        ([MODEL, PHOTO, "--max-memory", "1KB"], "too small for one target: a batch of 1 needs"),
        ([MODEL, PHOTO, "--device", "warp"], "--device warp: "),
        ([MODEL, PHOTO, "--map-shape", "3x3"], "--map-shape 3x3 does not fit an input (3, 20, 24)"),
        ([MODEL, "x.npy", "--resize", "8"], "arrays are the model's input as they are"),
        ([MODEL, "x.npy", "-c", "epsilon_gamma_box"], "needs the bounds of arrays: -p low=… -p high=…"),
        ([MODEL, PHOTO, "-o", PHOTO], "--out: cannot write to 'a.png': "),
        ([MODEL, ".", "-o", "."], "the results would go among the inputs"),
        ([f"{MODELS}:branches", PHOTO], "the forward pass branches on the values of a tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_as_asked(run, photos, monkeypatch, words, message):
    monkeypatch.chdir(photos)
    (photos / "empty").mkdir()
    (photos / "blank.txt").write_text("\n\n")
    (photos / "notes.txt.gz").write_text("")
    np.save("x.npy", np.zeros((2, 3, 8, 8), np.float32))
    if "-o" not in words:
        words = [*words, "-o", "out"]
    done = run("explain", *words)
    assert done.code == 2, done
    assert message.lower() in done.err.lower()
    assert not (photos / "out").exists(), "nothing is left of a run that could not begin"
    assert done.out == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet", "unknown model 'resnet': expected torchvision:NAME, torchvision:NAME@WEIGHTS, hf:FOLDER"),
        ("weights.pth", "that is a file of weights; name the model first, such as torchvision:resnet18 --weights"),
        ("more", "for a Hugging Face folder write hf:more"),
        (str(MODELS), "name the function in it that makes the model"),
        ("nosuch.py:make", "there is no file 'nosuch.py'"),
        ("nosuch.pt2", "there is no model file 'nosuch.pt2'"),
        ("broken.pt2", "broken.pt2 is no program of torch.export.save"),
        ("broken.txt", "broken.txt"),
        (f"{MODELS}:make", "has no function 'make': it has factory"),
        (f"{MODELS}:no_model", "no_model returned int, expected a torch.nn.Module"),
        (f"{MODELS}:raises", "FileNotFoundError: there is no checkpoint"),
        ("syntax.py:make", "SyntaxError"),
        ("hf:nosuch", "there is no such folder. fastlrp downloads nothing"),
        ("hf:more", "there is no config.json in it"),
    ],
)
def test_models_that_are_none(run, photos, monkeypatch, spec, message):
    monkeypatch.chdir(photos)
    (photos / "weights.pth").write_bytes(b"")
    (photos / "broken.pt2").write_bytes(b"not a zip")
    (photos / "broken.txt").write_text("Linear 3\n")
    (photos / "syntax.py").write_text("def make(:\n")
    done = run("explain", spec, PHOTO, "-o", "out")
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (photos / "out").exists()


def test_unreadable_images_are_reported_and_skipped(run, photos, tmp_path):
    whole = (photos / "a.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.gif").write_text("GIF this is not")
    flipped = bytearray((photos / "b.jpg").read_bytes())
    flipped[2:40] = bytes(38)
    (photos / "flipped.jpg").write_bytes(flipped)
    done = run("explain", MODEL, photos, "-o", tmp_path / "out", "--json")
    assert done.code == 1
    *lines, end = done.lines
    failed = {os.path.basename(line["input"]): line["error"] for line in lines if line["status"] == "failed"}
    assert failed.keys() == {"cut.png", "empty.jpg", "text.gif", "flipped.jpg"}
    assert "cannot be decoded: image file is truncated" in failed["cut.png"]
    assert "is no image that Pillow knows" in failed["text.gif"]
    assert (end["done"], end["failed"], end["left"]) == (6, 4, 0)
    assert len(files(tmp_path / "out")) == 6
    for error in failed.values():
        assert error in done.err


def test_no_readable_input_at_all(run, photos, tmp_path):
    (photos / "a.png").write_bytes(b"nothing")
    done = run("explain", MODEL, photos / "a.png", "-o", tmp_path / "out")
    assert done.code == 1
    assert "no input can be read: " in done.err
    assert not (tmp_path / "out").exists()


def test_bad_arrays_are_reported_and_skipped(run, tmp_path):
    x = np.random.default_rng(0).random((3, 3, 8, 8)).astype(np.float32)
    x[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "y.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:200])
    np.save(tmp_path / "z.npy", np.zeros((2, 3, 4, 4, 4)))
    done = run("explain", MODEL, *(tmp_path / f"{n}.npy" for n in "xyz"), "-t", 0, "-o", tmp_path / "out", "--json")
    assert done.code == 1
    errors = [line["error"] for line in done.lines[:-1]]
    assert [error is None for error in errors] == [True, False, True, False, False]
    assert "1 of its 192 numbers are NaN or infinite" in errors[1]
    assert "say with --sample-shape what one sample is" in errors[4]


def test_sizes_that_the_model_does_not_take(run, photos, tmp_path):
    from PIL import Image

    spec = tmp_path / "fixed.py"
    spec.write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 24, 2))\n"
    )
    Image.new("RGB", (8, 8)).save(photos / "small.png")
    done = run("explain", f"{spec}:make", photos, "-o", tmp_path / "out", "--json")
    assert done.code == 1
    failed = [line for line in done.lines[:-1] if line["status"] == "failed"]
    assert [os.path.basename(line["input"]) for line in failed] == ["small.png"]
    assert "the model does not take an input (3, 8, 8): the model could not be captured" in failed[0]["error"]


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(run, photos, tmp_path, monkeypatch):
    out, words = (
        tmp_path / "out",
        ["explain", MODEL, photos, "-o", tmp_path / "out", "-f", "npy,png", "--batch-size", 2],
    )
    replace, written = os.replace, []

    def full(source, target):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        written.append(target)
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        done = run(*words)
    assert done.code == 1
    assert "No space left on device" in done.err
    assert "when that is mended, the same command goes on from here" in done.err
    assert not [path for path in out.rglob("*") if path.name.startswith(".")], "no temporary file stays"
    before = {name: path.stat().st_mtime_ns for name, path in files(out).items()}
    again = run(*words, "--json")
    assert again.code == 0
    kept = [name for line in again.lines[:-1] if line["status"] == "kept" for name in line["files"]]
    assert kept
    after = {name: path.stat().st_mtime_ns for name, path in files(out).items()}
    assert len(after) == 12
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_a_full_disk_for_the_manifest(run, photos, tmp_path, monkeypatch):
    from fastlrp.cli.store import Store

    def full(self, line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ["explain", MODEL, photos, "-o", tmp_path / "out"]
    with monkeypatch.context() as patched:
        patched.setattr(Store, "_append", full)
        done = run(*words)
    assert done.code == 2
    assert "cannot write to" in done.err
    assert "No space left on device" in done.err
    assert run(*words).code == 0


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(errno.EROFS, "Read-only")])
def test_a_folder_that_cannot_be_written_to(run, photos, tmp_path, monkeypatch, error):
    import fastlrp.cli.store as store

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(store, "open", refuse, raising=False)
    done = run("explain", MODEL, photos, "-o", tmp_path / "out")
    assert done.code == 2
    assert f"--out: cannot write to '{tmp_path / 'out'}': {error.strerror}" in done.err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(run, photos, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    done = run("explain", MODEL, photos, "-o", tmp_path / "out")
    assert done.code == 2
    assert "Permission denied" in done.err


def test_debug_shows_where(run, photos):
    from click.testing import CliRunner

    from fastlrp.cli.app import app

    result = CliRunner().invoke(app, ["explain", f"{MODELS}:raises", str(photos), "--debug"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "there is no checkpoint" in result.stderr


def test_an_error_that_nobody_foresaw_is_one_line(run, photos, tmp_path, monkeypatch):
    from fastlrp.cli.engine import Engine

    def break_down(self, *args):
        raise RuntimeError("the kernel\nsaid no")

    monkeypatch.setattr(Engine, "probe", break_down)
    done = run("explain", MODEL, photos, "-o", tmp_path / "out")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "error: RuntimeError: the kernel said no (--debug shows where)"


@pytest.mark.slow
def test_the_library_does_not_import_the_command_line_which_says_what_it_needs():
    code = """
import runpy, sys, fastlrp
others = ("click", "PIL", "matplotlib")
print([m for m in sys.modules if m.split(".")[0] in others or m.startswith("fastlrp.cli")])
sys.modules["click"] = None
for word in ("--version", "demo"):
    sys.argv = ["fastlrp", word]
    try:
        runpy.run_module("fastlrp", run_name="__main__")
    except SystemExit as end:
        print(word, end.code)
"""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stderr == 'fastlrp: error: the command line needs click: pip install "fastlrp[cli]"\n'
    imported, version, *ends = done.stdout.splitlines()
    assert imported == "[]", "the library imports the command line"
    assert version == f"fastlrp {fastlrp.__version__}"
    assert ends == ["--version 0", "demo 2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights.pth"], "1 missing (0.bias); 1 unexpected (extra)"),
        (["shape.pth"], "1 of another shape (0.bias (5,) for (4,))"),
        (["whole.pt"], "loading those would run code from the file"),
        (["cut.pth"], "is no whole file of torch.save"),
        (["cut.safetensors"], "is no whole safetensors file"),
        (["list.pth"], "holds no state_dict (names and tensors), but list"),
        (["nosuch.pth"], "there is no file"),
        (["a.png"], "'a.png' ends in .png: expected .pt, .pth or .safetensors"),
    ],
)
def test_weights_that_do_not_fit(run, photos, monkeypatch, words, message):
    from tests.cli.models import factory

    monkeypatch.chdir(photos)
    model = factory()
    state = model.state_dict()
    torch.save({**{k: v for k, v in state.items() if k != "0.bias"}, "extra": torch.ones(1)}, "weights.pth")
    torch.save({**state, "0.bias": torch.ones(5)}, "shape.pth")
    torch.save(model[0], "whole.pt")
    torch.save([torch.ones(1)], "list.pth")
    (photos / "cut.pth").write_bytes((photos / "shape.pth").read_bytes()[:300])
    (photos / "cut.safetensors").write_bytes(b"\x10" * 20)
    done = run("explain", MODEL, PHOTO, "--weights", *words, "-o", "out")
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
