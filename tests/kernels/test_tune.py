"""The tuner: what it tries, what it lets count, what it chooses and writes. Time is made up; products are real."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastlrp.backends import dispatch
from fastlrp.kernels import configs
from fastlrp.kernels.configs import Config, Measured, TableError
from fastlrp.tune import attention, space
from fastlrp.tune import command as tune
from fastlrp.tune import tuner as tuning
from fastlrp.tune.space import candidates
from fastlrp.tune.tuner import Tried, Tuner, in_turns
from fastlrp.tune.workloads import Workload

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
LINEAR = Workload("linear_relevance", 17, 9, terms="uv", batch=2, targets=3)
CONV = Workload("conv_relevance", 4, 5, (5, 4), 3, padding=1, targets=2)
A, B, C = Config(16, 16, 16), Config(32, 16, 16), Config(16, 32, 32)


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLRP_CACHE", str(tmp_path / "cache"))
    configs.reload()
    yield
    configs.reload()


class Clock:
    """Times of configurations, made up; ``order``: of whom it was asked."""

    def __init__(self, seconds, default=1.0):
        self.seconds, self.default, self.order = seconds, default, []

    def __call__(self, run):
        self.order.append(run.keywords["config"])
        return self.seconds.get(self.order[-1], self.default)


def tuner(clock, spaces=(A, B, C), **options):
    lines = []
    made = Tuner(CPU, clock, 1 << 20, 1 << 30, lines.append, True, lambda *asked: list(spaces), **options)
    made.lines = lines
    return made


# Choosing what to try


@pytest.mark.parametrize("kind", configs.KINDS)
@pytest.mark.parametrize("kernel", [k for k in space.KERNELS if k not in attention.KERNELS])
def test_candidates_fit_and_are_no_wider_than_the_result(kernel, kind):
    for shared in (64 << 10, 99 << 10, 227 << 10):
        for columns in (3, 17, 64, 512):
            found = candidates(kernel, kind, shared, columns)
            assert found
            assert len(set(found)) == len(found)
            fused = [c for c in found if c.route == "fused"]
            assert all(space.shared_bytes(c, kind) <= shared for c in fused)
            assert all(c.block_n <= max(16, 2 * columns) for c in fused)
            assert [c.route for c in found].count("library") == (kernel not in space.WITHOUT_LIBRARY)
            rows = [configs._row({**tuning.row(kernel, "*", kind, c, 1.0)}, "row") for c in found]
            assert all(len(row) == 1 for row in rows)
    few, many = (len(candidates(kernel, kind, 64 << 10, 512, quick)) for quick in (True, False))
    assert few < many
    assert len(candidates(kernel, kind, 227 << 10, 512)) > len(candidates(kernel, kind, 4 << 10, 512))


def test_no_candidate_where_nothing_fits():
    assert candidates("conv", "half", 100, 64) == []


def test_targets_are_cut_to_what_is_taken_at_once():
    large = Workload("conv_relevance", 64, 64, (224, 224), 3, padding=1, targets=256)
    fitted = tuning.fitting(large, 4, 80 << 30)
    assert fitted.targets == (1 << 30) // (64 * 224 * 224 * 4) == 83
    assert tuning.fitting(replace(large, targets=16), 4, 80 << 30).targets == 16
    assert tuning.fitting(large, 2, 80 << 30).targets == 167
    assert tuning.fitting(large, 4, 600 << 20).targets == 8
    assert tuning.fitting(large, 4, 1 << 20) is None


# Measuring


def test_slow_candidates_drop_out_after_two_rounds():
    order = []

    def timer(run):
        order.append(run())
        return {"a": 1.0, "b": 1.29, "c": 1.31}[order[-1]]

    found = in_turns({A: lambda: "a", B: lambda: "b", C: lambda: "c"}, timer, 4)
    assert "".join(order) == "abc" + "abc" + "ab" + "ab"
    assert found == {A: 1.0, B: 1.29, C: 1.31}


def test_the_median_counts():
    # A and B in turns, five times; none is slow enough in its best round to drop out.
    times = iter([1.0, 1.2, 9.0, 2.5, 1.1, 1.1, 30.0, 1.3, 1.2, 1.0])
    found = in_turns({A: lambda: None, B: lambda: None}, lambda run: next(times), 5)
    assert found == {A: 1.2, B: 1.2}


def test_the_best_is_best_over_all_shapes():
    one, two = LINEAR, CONV
    tried = Tried(times={one: {A: 1.0, B: 2.0, C: 1.1}, two: {A: 3.0, B: 1.0, C: 1.2}})
    assert tried.best() == C  # 1.1 x 1.2 against 3 and 2.
    assert tried.slowdown(A) == pytest.approx(3**0.5)
    assert tried.seconds(C) == pytest.approx(2.3)
    tried.times[two].pop(C)
    assert tried.best() == B
    tried.times[one] = {}
    with pytest.raises(ValueError, match="no candidate computed every shape"):
        tried.best()


@pytest.mark.parametrize(
    ("workload", "dtype", "kind"),
    [
        (LINEAR, torch.float32, "ieee"),
        (LINEAR, torch.float16, "half"),
        (CONV, torch.float32, "tf32"),
    ],
    ids=lambda value: getattr(value, "op", str(value)),
)
def test_tunes_with_real_products(workload, dtype, kind):
    clock = Clock({A: 3.0, B: 2.0, C: 2.5}, default=9.0)
    found = tuner(clock)
    found.tune([workload, workload], list(space.KERNELS), dtype, kind)
    ((kernel, shape, got),) = found.found
    tried = found.found[kernel, shape, got]
    assert space.KERNELS[kernel] == workload.op
    assert got == kind
    assert not tried.wrong
    assert not tried.refused
    assert set(tried.times) == {workload}
    assert {A, B, C, tried.default} == set(tried.times[workload])
    assert clock.order[:4] == [tried.default, A, B, C]
    assert tried.best() == B
    rows = found.rows()
    assert rows == [tuning.row(kernel, shape, kind, tried.best(), tried.seconds(tried.best()))]
    assert configs.parse({"format": 1, "device": "other", "rows": rows}).rows == {(kernel, shape, kind): tried.best()}


@pytest.mark.slow
def test_both_routes_are_tried():
    library = Config(16, 16, 16, route="library")
    clock = Clock({A: 3.0, library: 0.5})
    found = tuner(clock, (A, library))
    found.tune([CONV], ["conv"], torch.float32, "ieee")
    (tried,) = found.found.values()
    assert tried.best() == library
    assert found.rows()[0]["route"] == "library"


@pytest.mark.slow
def test_only_the_kernels_that_are_asked_for():
    found = tuner(Clock({}))
    found.tune([LINEAR, CONV], ["linear_signed"], torch.float32, "ieee")
    assert not found.found
    signed = replace(LINEAR, signed=True)
    found.tune([signed], ["linear_signed"], torch.float32, "ieee")
    assert {kernel for kernel, *_ in found.found} == {"linear_signed"}


def test_a_wrong_output_does_not_count(monkeypatch, capsys):
    select = dispatch.select

    def wrong(op, backend, device, dtype):
        selected = select(op, backend, device, dtype)
        if backend != "triton":
            return selected

        def call(*arguments):
            result = selected.call(*arguments)
            config = configs.configuration("linear", "few", CPU, dtype)
            return result * (1.001 if config == B else 1)

        return replace(selected, call=call)

    monkeypatch.setattr(dispatch, "select", wrong)
    found = tuner(Clock({B: 0.1, A: 2.0, C: 3.0}))
    found.tune([LINEAR], ["linear"], torch.float32, "ieee")
    (tried,) = found.found.values()
    assert set(tried.wrong) == {B}
    assert "relative error 1.0e-03, allowed 1.0e-05" in tried.wrong[B]
    assert tried.best() != B
    text = tune.chosen(found.found)
    assert f"WRONG  linear ieee {B}: linear_relevance 17->9 uv, B=2, K=3: relative error" in text


def test_a_candidate_that_cannot_run_is_left_out_with_its_reason(monkeypatch):
    select, settled = dispatch.select, []

    def refusing(op, backend, device, dtype):
        selected = select(op, backend, device, dtype)

        def call(*arguments):
            if backend == "triton" and configs.configuration("linear", "few", CPU, dtype) == C:
                raise RuntimeError("first line\nout of resource: shared memory")
            return selected.call(*arguments)

        return replace(selected, call=call)

    monkeypatch.setattr(dispatch, "select", refusing)
    found = tuner(Clock({A: 2.0, C: 0.1}), settle=lambda: settled.append(1))
    found.tune([LINEAR, replace(LINEAR, targets=2)], ["linear"], torch.float32, "ieee")
    (tried,) = found.found.values()
    assert tried.refused == {C: "out of resource: shared memory"}
    assert settled == [1]  # Not tried again for the second shape.
    assert C not in {c for times in tried.times.values() for c in times}


def test_a_shape_that_does_not_fit_is_left_out():
    found = tuner(Clock({}))
    found.memory = 10
    found.tune([LINEAR], ["linear"], torch.float32, "ieee")
    assert not found.found
    assert "left out, it needs more than 0 MiB" in found.lines[0]


def test_precision_switches_are_put_back(monkeypatch):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    seen = []

    def timer(run):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return 1.0

    for kind in ("tf32", "ieee"):
        tuner(timer).tune([LINEAR], ["linear"], torch.float32, kind)
    assert set(seen) == {(True, True), (False, False)}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


GOOD = {"op": "conv_relevance", "inputs": 8, "outputs": 4, "size": [6, 7]}


def shapes(tmp_path, content):
    path = tmp_path / "shapes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


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
