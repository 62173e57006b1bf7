"""What the command line does when something around it is not as it should be."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastlrp.cli import weights
from fastlrp.cli.errors import Failure, printable
from fastlrp.cli.pipe import Pipe
from fastlrp.cli.places import check_folder
from fastlrp.cli.screen import Screen, Tally
from tests.cli.conftest import MODEL

ROOT = Path(__file__).parents[2]


def test_a_closed_pipe_takes_everything():
    reads, writes = os.pipe()
    with os.fdopen(writes, "w") as stream:
        pipe = Pipe(stream)
        os.close(reads)
        for _ in range(3):
            assert pipe.write("x" * 100_000) == 100_000
            pipe.flush()
        assert not pipe.isatty()


@pytest.mark.slow
def test_head_and_a_closed_output(photos, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    program = f"{sys.executable} -m fastlrp explain {MODEL} {photos} -t 0 --json"
    script = f"set -o pipefail; {program} -o {tmp_path / 'a'} | head -1; {program} -o {tmp_path / 'b'} >&-"
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
    for folder in ("a", "b"):
        assert len(list((tmp_path / folder).rglob("*.png"))) == 6


def test_the_output_folder_is_looked_at_first(tmp_path):
    (tmp_path / "file").write_text("")
    check_folder(tmp_path / "new" / "newer")
    assert not (tmp_path / "new").exists()
    with pytest.raises(Failure, match=r"--out: cannot write to .*file/deep.*is a file, no folder"):
        check_folder(tmp_path / "file" / "deep")


def test_reports_look_before_they_compute(run, photos, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("report", "nosuch:model", photos, "-o", tmp_path / "file" / "report.html")
    assert done.code == 2
    assert "is a file, no folder" in done.err


def test_control_characters_are_shown():
    assert printable("a\x1b[31mb\rü\n") == "a\\x1b[31mb\\rü\n"


def test_checkpoints(tmp_path):
    state = nn.Linear(2, 3).state_dict()
    path = tmp_path / "a.pth"
    torch.save({"epoch": 3, "net": state, "best": 0.5}, path)
    assert weights.read(path).keys() == state.keys()
    torch.save({"epoch": 3, "net": state, "ema": state, "optimizer": {"lr": 0.1}}, path)
    says = r"holds no state_dict.*dict with epoch \(int\), net \(2 tensors\), ema \(2 tensors\), optimizer \(dict\)"
    with pytest.raises(Failure, match=says):
        weights.read(path)


def test_torchscript_is_named(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)), path)
    with pytest.raises(Failure, match=r"a.pt is a TorchScript program \(torch.jit.save\).*torch.export.save"):
        weights.read(path)


def test_labels_of_the_wrong_length(run, photos, tmp_path):
    path, table = tmp_path / "names.txt", tmp_path / "names.json"
    path.write_text("a\nb\n")
    done = run("explain", MODEL, photos / "a.png", "-o", tmp_path / "out", "--labels", path)
    assert done.code == 2
    assert f"--labels: {path} has 2 names, and the model has 10 classes" in done.err
    table.write_text('{"12": "a"}')
    done = run("explain", MODEL, photos / "a.png", "-o", tmp_path / "out", "--labels", table)
    assert "names class 12, and the model has 10 classes, 0 to 9" in done.err


def test_a_module_in_the_place_of_a_factory(run, photos, tmp_path):
    path = tmp_path / "model.py"
    path.write_text(
        "from torch import nn\nmodel = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))\n"
    )
    done = run("explain", f"{path}:model", photos / "a.png", "-o", tmp_path / "out", "-c", "epsilon")
    assert done.code == 0, done.err


def test_a_small_score_is_pointed_out_once(capsys):
    tally = Tally(Screen(False, False), 30)
    for score in (1.0, 2e-7, 3e-7):
        target = {"class": 3, "name": "3", "score": score}
        tally({"status": "done", "input": "a.png", "sample": None, "targets": [target], "files": [], "error": None})
    said = capsys.readouterr().err
    assert said.count("is near the epsilon") == 1
    assert "the score 2e-07 of class 3 (a.png)" in said


def test_devices(run, photos):
    done = run("explain", MODEL, photos, "--device", "foo")
    assert done.code == 2
    assert done.err == "error: --device foo: there is no device of that name, expected cpu, cuda or cuda:1\n"


SEGMENTS = """
import torch
from torch import nn

def make():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([0.0, 50.0, -50.0]))  # Class 1 wins everywhere, then 0.
    return model

def two_classes():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
"""


@pytest.mark.slow
def test_a_segmentation_by_class_over_its_picture(run, photos, tmp_path):
    (tmp_path / "net.py").write_text(SEGMENTS)
    spec, out = f"{tmp_path / 'net.py'}:make", tmp_path / "out"
    done = run("explain", spec, photos / "a.png", "-t", "top2", "-o", out, "--json")
    assert done.code == 0, done.err
    assert [target["class"] for target in done.lines[0]["targets"]] == [1, 0]
    assert sorted(done.lines[0]["files"]) == ["a.png_segments.png", "a.png_top1_1.png", "a.png_top2_0.png"]
    from PIL import Image

    picture, figure = Image.open(photos / "a.png"), Image.open(out / "a.png_top2_0.png").convert("L")
    # Over the picture: many greys; a map alone would have the colours of its scale only.
    assert figure.crop((20, 60, figure.width - 20, 200)).entropy() > 4
    assert Image.open(out / "a.png_segments.png").width > picture.width
    refused = run("explain", spec, photos / "a.png", "-t", "top4", "-o", tmp_path / "more")
    assert refused.code == 2
    if run("report", spec, photos / "a.png", "-o", tmp_path / "r.html").code != 0:
        pytest.fail("the default of five targets is more than there are")


def test_torchscript_as_a_model_is_named(run, photos, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.rand(1, 2)), tmp_path / "m.pt")
    done = run("explain", tmp_path / "m.pt", photos / "a.png", "-o", tmp_path / "out")
    assert (done.code, "that is a TorchScript program" in done.err) == (2, True)


def test_arguments_come_first_in_the_usage(run):
    for command, start in (("explain", "MODEL [INPUTS]... [OPTIONS]"), ("verify", "MODEL INPUT [OPTIONS]")):
        assert run(command, "--help").out.startswith(f"Usage: fastlrp {command} {start}")


def test_verify_names_the_layer_that_makes_nan(run, photos, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Bad(nn.Module):\n    def forward(self, x):\n        return x * float('nan')\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(1440, 3), Bad())\n"
    )
    done = run("verify", f"{tmp_path / 'net.py'}:make", photos / "a.png")
    assert done.code == 1
    assert "a.png: the model's output is NaN or infinite" in done.err
    assert "mul (2)" in done.err


def test_a_signal_is_drawn_as_curves(run, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(224, 3))\n"
    )
    np.save(tmp_path / "ecg.npy", np.random.default_rng(0).normal(size=(2, 2, 60)).astype(np.float32))
    words = ["explain", f"{tmp_path / 'net.py'}:make", tmp_path / "ecg.npy", "--sample-shape", "2,60", "-t", 1]
    for more, wide in (([], True), (["--plain"], False)):
        out = tmp_path / f"out{len(more)}"
        done = run(*words, "-o", out, *more)
        assert done.code == 0, done.err
        from PIL import Image

        _, height = Image.open(out / "ecg.npy_0_1.png").size
        assert (height > 100) == wide  # A map of two rows otherwise.
