"""Rates of a device: measuring them with a clock of the test's own, and the file that keeps them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastlrp.plan.paths import rates as files
from fastlrp.plan.paths.rates import Rates, RatesError, own_path, rates_of, read, write
from fastlrp.tune import sparse as measuring
from fastlrp.tune.sparse import Sample, Shape, main, measure

CPU = torch.device("cpu")
SMALL = Shape(channels=16, size=6, targets=16)


def test_rates_from_a_clock_that_is_known(monkeypatch):
    """A dense product takes a second and the sparse one half of it: the rates are the operations of both."""
    runs = []

    def timer(run):
        runs.append(run)
        run()
        name = getattr(run, "__name__", "")
        return {"dense": 1.0, "sparse": 0.5}.get(name, 0.25)

    found = measure(CPU, torch.float32, timer, SMALL, rounds=2)
    dense = 2 * 9 * 16 * 16 * 36 * 16
    assert found.dense == pytest.approx(dense)
    samples = [Sample(SMALL, alive, CPU, torch.float32) for alive in (0.5, 0.25)]
    expected = sum(2 * dense * s.above.density * s.below.density for s in samples) / 2
    assert found.sparse == pytest.approx(expected)
    assert found.memory == pytest.approx(2 * 4 * 16 * 36 * 16 / 0.25)
    assert len(runs) == 2 * 5
    assert runs[0].__name__ != runs[1].__name__, "the ways take turns"


def test_what_is_wrong_is_not_measured(monkeypatch):
    monkeypatch.setattr(Sample, "dense", lambda self: torch.zeros(1, 16, 16, 6, 6))
    with pytest.raises(RuntimeError, match="the sparse way differs from the dense one by"):
        measure(CPU, torch.float32, lambda run: 1.0, SMALL)


def test_a_cpu_has_rates_and_a_gpu_none_before_they_are_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTLRP_CACHE", str(tmp_path))
    files._rates_of.cache_clear()
    assert rates_of(CPU) == Rates()
    narrow = rates_of(CPU, reduced=True)
    assert replace(narrow, reduced=1.0, sparse_reduced=1e6, half_reduced=1e6) == Rates()
    measured = Rates(sparse=2e11, sparse_reduced=3e11, reduced=5.0)
    write(own_path(files.cpu_name(files.bf16_unit())), measured, {"date": "today"})
    assert rates_of(CPU, reduced=True) == measured
    assert rates_of(CPU) == Rates(), "what is in float32 is chosen alike on all machines"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "Big GPU (80 GB)")
    assert rates_of(torch.device("cuda", 0)) is None
    mine = Rates(dense=3e14, sparse=1e14, lanes=64)
    write(own_path("Big GPU (80 GB)"), mine, {"date": "today"})
    assert own_path("Big GPU (80 GB)").name == "Big-GPU-80-GB.json"
    assert rates_of(torch.device("cuda", 0)) == mine
    files._rates_of.cache_clear()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2, "rates": {}}', '{"format": 1, "rates": {"dense": -1}}',
             '{"format": 1, "rates": {"speed": 1}}', '{"format": 1, "rates": {"dense": "fast"}}',
             '{"format": 1, "rates": {"dense": Infinity}}', '{"format": 1, "rates": {"lanes": 7.5}}',
             f'{{"format": 1, "rates": {{"dense": {10**400}}}}}', "[" * 100_000],
    ids=lambda text: text[:50],
)  # fmt: skip
def test_a_broken_file_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(RatesError, match=r"rates\.json holds no rates that can be used .* delete it, or measure again"):
        read(path)


def test_a_file_can_be_read_again(tmp_path):
    write(tmp_path / "deep" / "rates.json", Rates(dense=1.0), {"device": "x"})
    assert read(tmp_path / "deep" / "rates.json") == Rates(dense=1.0)
    assert json.loads((tmp_path / "deep" / "rates.json").read_text())["measured"] == {"device": "x"}


def test_without_a_gpu_the_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "nothing can be measured on cuda: PyTorch sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(files, "bf16_unit", lambda: "software")
    monkeypatch.setattr(measuring, "bf16_unit", lambda: "software")
    assert main(["--device", "cpu"]) == 2
    assert "nothing can be measured on cpu: it has neither AMX nor AVX512-BF16" in capsys.readouterr().err


def test_the_command_measures_and_writes(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTLRP_CACHE", str(tmp_path))
    monkeypatch.setattr(measuring, "why_not", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tiny")
    monkeypatch.setattr(measuring, "measure", lambda *arguments: Rates(lanes=64))
    assert main(["--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    assert main([]) == 0
    assert read(own_path("Tiny")) == Rates(lanes=64)
    assert "written to" in capsys.readouterr().out


def test_a_cpu_is_measured_in_float32_and_bfloat16(monkeypatch):
    """Known seconds for each way; bfloat16 takes half of them."""
    seconds = {"dense": 1.0, "sparse": 0.5, "narrow_dense": 0.5, "narrow_sparse": 0.25, "half": 0.5, "narrow_half": 0.4}

    def timer(run):
        run()
        return seconds.get(getattr(run, "__name__", ""), 0.25)

    found = measuring.measure_cpu(timer, SMALL, rounds=1)
    plain = measure(CPU, torch.float32, timer, SMALL, rounds=1)
    assert (found.dense, found.sparse, found.memory) == (plain.dense, plain.sparse, plain.memory)
    assert found.reduced == pytest.approx(2.0)
    assert found.sparse_reduced == pytest.approx(2 * found.sparse)
    assert found.half_reduced == pytest.approx(found.half_filled * 0.5 / 0.4)
    assert found.lanes == Rates.lanes
    assert found.call == Rates.call


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("model name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: 17\n\nmodel\t\t: 1", "AMD EPYC (family 25, model 17)"),
        ("model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\n", "AMD EPYC (family 26, model 2)"),
        ("model name\t: Some CPU\n", "Some CPU"),
    ],
)
def test_processors_of_one_name_are_told_apart(tmp_path, monkeypatch, told, name):
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(files, "Path", lambda path: tmp_path / "cpuinfo")
    assert files.processor.__wrapped__() == name
    monkeypatch.undo()
    assert files.processor() in files.cpu_name("software")
