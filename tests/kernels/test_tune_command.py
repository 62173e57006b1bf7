"""The command that tunes: the table it writes, its options, and a whole run with made-up times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastlrp.kernels import configs
from fastlrp.kernels.configs import Config, Measured, TableError
from fastlrp.tune import command as tune
from fastlrp.tune import tuner as tuning
from fastlrp.tune.tuner import Tuner
from tests.kernels.tuning import CPU, A, B, C, Clock, shapes

pytestmark = pytest.mark.usefixtures("own_tables")

ROOT = Path(__file__).parent.parent.parent


GOOD = {"op": "conv_relevance", "inputs": 8, "outputs": 4, "size": [6, 7]}


# Writing

MEASURED = Measured("NVIDIA H100", "3.7.1", "2026-01-31")


def test_rows_that_were_not_measured_again_stay(tmp_path):
    path = tmp_path / "new" / "table.json"
    first = [tuning.row("linear", "few", "half", A, 1e-4), tuning.row("linear", "many", "half", A, 2e-4)]
    tune.write(path, "sm90", MEASURED, first)
    tune.write(path, "sm90", MEASURED, [tuning.row("linear", "many", "half", B, 1e-4)])
    found = configs.read(path)
    assert found.measured == MEASURED
    assert found.device == "sm90"
    assert found.rows == {("linear", "few", "half"): A, ("linear", "many", "half"): B}
    rows = json.loads(path.read_text())["rows"]
    assert [row["microseconds"] for row in rows] == [100.0, 100.0]
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_what_cannot_be_written_leaves_the_file_alone(tmp_path):
    path = tmp_path / "table.json"
    tune.write(path, "sm90", MEASURED, [tuning.row("linear", "few", "half", A, 1e-4)])
    before = path.read_text()
    with pytest.raises(TableError, match="'block_m' must be a power of two"):
        tune.write(path, "sm90", MEASURED, [tuning.row("linear", "few", "half", Config(48, 16, 16), 1e-4)])
    assert path.read_text() == before
    path.write_text("{")
    with pytest.raises(TableError, match=r"table.json: it cannot be read: .* delete the file"):
        tune.write(path, "sm90", MEASURED, [])
    assert path.read_text() == "{"


def test_a_table_may_be_empty(tmp_path):
    tune.write(tmp_path / "table.json", "other", MEASURED, [])
    assert configs.read(tmp_path / "table.json").rows == {}


# The command


def run(*arguments):
    command = [sys.executable, "-m", "fastlrp.tune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    found = run("--quick")
    assert found.returncode == 2
    assert "there is no GPU to measure on (PyTorch" in found.stderr
    assert "--dry-run needs none" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_dry_run_lists_shapes_and_candidates(tmp_path, capsys):
    path = shapes(tmp_path, [GOOD])
    assert tune.main(["--dry-run", "--shapes", str(path), "--dtype", "bfloat16", "--kernel", "conv"]) == 0
    text = capsys.readouterr().out
    assert "1 shapes:\n  conv_relevance 8->4 1x1 of 6x7 v, B=1, K=16" in text
    assert "conv, half: " in text
    assert "128x16x32w4s3" in text
    assert "library." in text
    assert "tf32" not in text
    assert "x64x" not in text.split("conv, half")[1].split("library")[0]  # Eight channels need no wider tile.
    assert tune.main(["--dry-run", "--quick", "--kernel", "linear_signed", "--shapes", str(path)]) == 0
    assert "linear_signed: no shape calls linear_relevance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "pool"], "argument --kernel: invalid choice: 'pool'"),
        (["--device", "gpu"], "Expected one of cpu, cuda"),
        (["--device", "cpu"], "--device must be a CUDA device, got cpu"),
        (["--shapes", "nowhere.json"], "nowhere.json: cannot be read as JSON"),
        (["--dtype", "float64"], "argument --dtype: invalid choice: 'float64'"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert message in capsys.readouterr().err


def gpu(monkeypatch, made):
    """A GPU that is the interpreter."""
    monkeypatch.setattr(tune, "no_gpu", lambda device: None)
    monkeypatch.setattr(tune, "CudaTimer", lambda device: Clock({A: 3.0, B: 2.0, C: 0.7}, 1.4))

    def small(device, timer, shared, memory, say, quick, settle):
        made.append(Tuner(CPU, timer, shared, memory, say, quick, lambda *asked: [A, B, C]))
        return made[-1]

    monkeypatch.setattr(tune, "Tuner", small)
    properties = type("Properties", (), {"shared_memory_per_block_optin": 232448})
    for name, value in {
        "current_device": lambda: 0,
        "get_device_name": lambda device: "NVIDIA H100",
        "get_device_properties": lambda device: properties,
        "mem_get_info": lambda device: (80 << 30, 80 << 30),
        "get_device_capability": lambda index: (9, 0),
        "device": lambda device: torch.no_grad(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


def test_a_broken_table_is_told_before_anything_is_measured(monkeypatch, capsys):
    import triton

    made = []
    gpu(monkeypatch, made)
    own = configs.own_path("NVIDIA H100", triton.__version__)
    own.parent.mkdir(parents=True)
    own.write_text("{")
    with pytest.raises(SystemExit):
        tune.main(["--quick"])
    assert f"{own}: it cannot be read: " in capsys.readouterr().err
    assert not made
    assert own.read_text() == "{"


def test_a_whole_run_writes_a_table(tmp_path, monkeypatch, capsys):
    """All of the command but the GPU: the interpreter computes, a clock is made up."""
    gpu(monkeypatch, [])
    path = shapes(tmp_path, [{"op": "linear_relevance", "inputs": 17, "outputs": 9, "targets": 3}])
    assert tune.main(["--shapes", str(path), "--dtype", "float16"]) == 0
    import triton

    text, own = capsys.readouterr().out, configs.own_path("NVIDIA H100", triton.__version__)
    assert f"written: {own}" in text
    assert f"linear               few              half  {C}" in text
    assert "times as long" in text
    found = configs.read(own)
    assert found.rows == {("linear", "few", "half"): C}
    assert found.measured is not None
    assert (found.measured.device, found.measured.triton) == ("NVIDIA H100", triton.__version__)
