"""Wrong results are not timed, failures lose nothing: the checks of the GPU run, on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import floors, gates, measure, peers, providers, scenarios
from benchmarks.gpu import calls, models, ops, sparse
from benchmarks.gpu.part import FAILED, Part
from benchmarks.gpu.roofline import Peaks
from benchmarks.models import build
from benchmarks.providers import Provider
from fastlrp.backends import dispatch

CPU = torch.device("cpu")


def part():
    return Part("ops", CPU, {"commit": "abc"})


def ignore() -> None:
    pass


@pytest.fixture
def question():
    """A max-pool of the small network."""
    found = next(c for c in calls.heard("small", CPU, backends=("torch",)) if c.op == "pool_max_relevance")
    return ops.Question(found, 5, "float32", CPU)


def backend(monkeypatch, name, call):
    """Adds one, or replaces what it computes."""
    real = dispatch.select

    def select(op, asked, device, dtype):
        return dispatch.Selected(op, asked, call) if asked == name else real(op, asked, device, dtype)

    monkeypatch.setattr(dispatch, "select", select)


def right(question):
    return question.bound("torch")


def test_a_right_backend_is_timed(question, monkeypatch):
    backend(monkeypatch, "ours", right(question))
    one = part()
    rows = ops.measure(one, question, ["ours", "absent"], Peaks({"float32": 1e12}, 1e11), ops.Timer(CPU))
    by_name = {row["backend"]: row for row in rows}
    assert by_name["ours"]["seconds"] > 0
    assert by_name["ours"]["of_peak"] == pytest.approx(by_name["ours"]["least_seconds"] / by_name["ours"]["seconds"])
    assert by_name["ours"]["bound_by"] == "bytes"
    assert by_name["absent"]["unable"]
    assert not one.wrong


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r: r * 1.001, "it is off by 1.0e-03"),
        (lambda r: r * torch.nan, "it is off by inf"),
        (lambda r: r[..., :-1], "it is off by inf"),
        (lambda r: r.double().float() * 0, "it is off by 1.0e+00"),
    ],
)
def test_a_wrong_backend_is_not(question, monkeypatch, spoil, reason):
    run = right(question)
    backend(monkeypatch, "ours", lambda *given: spoil(run(*given)))
    one = part()
    rows = ops.measure(one, question, ["ours"], Peaks({"float32": 1e12}, 1e11), ops.Timer(CPU))
    (row,) = [row for row in rows if row["backend"] == "ours"]
    assert row["seconds"] is None
    assert row["reason"].startswith(reason)
    assert len(one.wrong) == 1


def test_a_block_whose_last_target_is_wrong_is_not_timed(question, monkeypatch):
    run = right(question)

    def broken(relevance, *rest):
        found = run(relevance, *rest)
        if relevance.shape[1] > 1:
            found[:, -1] = 0
        return found

    backend(monkeypatch, "ours", broken)
    found, _ = ops.candidates(question, ["ours"])
    assert "its block of 5 targets is" in (found[-1].reason or "")


def test_a_backend_that_raises_has_a_reason(question, monkeypatch):
    def broken(*given):
        raise RuntimeError("no such\nkernel")

    backend(monkeypatch, "ours", broken)
    found, _ = ops.candidates(question, ["ours"])
    assert found[-1].reason == "RuntimeError: no such"


def test_a_call_that_cannot_be_measured_loses_no_other(question, monkeypatch):
    monkeypatch.setattr(ops, "candidates", lambda *a: 1 / 0)
    one = part()
    code = ops.measured(one, [question, question], ["ours"], Peaks({"float32": 1.0}, 1.0), ops.Timer(CPU))
    assert code == FAILED
    assert len(one.wrong) == 2


def test_sparse_results_are_checked():
    model, x = build("small")
    layer = floors.layers(model, x)[1]
    case = sparse.Case.of(sparse.Question("small", layer, 0.5, 16, "float32", CPU))
    form, arriving, leaving = case.sparse()
    found = form.relevance_at(arriving, {0: case.u}, leaving, False)
    assert sparse.check(case, found)[2] is None
    for module in (layer.module, torch.nn.Linear(12, 7)):
        other = replace(layer, module=module, size=torch.Size((12,)), out=torch.Size((7,)))
        asked = sparse.Question("small", layer if module is layer.module else other, 0.5, 16, "float32", CPU, up=True)
        assert sparse.check(up := sparse.Case.of(asked), up.run()())[2] is None
        assert sparse.dense_product(asked).call().shape[1:] == asked.layer.out
    values = found.values.clone()
    values[:, 15] += 1
    assert "its block of 16 targets" in (sparse.check(case, replace(found, values=values))[2] or "")
    values[:, 0] *= 1.01
    assert "it is off by" in (sparse.check(case, replace(found, values=values))[2] or "")


# Models


def entry(gate, run, classes=8):
    x, asked = torch.ones(1, 1), torch.arange(classes).expand(1, -1)
    provider = Provider("fastlrp auto", lambda x, c, mark: run(c.float().unsqueeze(2) + 1), optional=True)
    return measure.measure([provider], x, asked, 1, gate)[0]


def test_a_wide_gate_lets_nothing_wrong_through():
    expected = (torch.arange(8.0) + 1).view(1, 8, 1).double()
    gate = measure.Gate(expected, 1.0, 1.0)
    assert entry(gate, lambda r: r * 1.2).reason is None
    for wrong in (lambda r: r * 0, lambda r: r * 3, lambda r: r * -1, lambda r: r * torch.nan):
        found = entry(gate, wrong)
        assert not found.seconds
        assert "its output differs by" in (found.reason or "")


def test_last_targets_are_those_asked_alone():
    expected = (torch.arange(8.0) + 1).view(1, 8, 1).double()

    def broken(r):
        return torch.cat([r[:, :-1], r[:, -1:] * 2], 1) if r.shape[1] == 8 else r

    assert "its last targets differ by 1.0e+00" in (entry(measure.Gate(expected), broken).reason or "")


def test_who_fails_while_timed_has_a_reason():
    state = {"calls": 0}

    def tired(r):
        state["calls"] += 1
        if state["calls"] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return r

    found = entry(None, tired, classes=2)
    assert found.reason is None
    found = entry(None, tired, classes=2)
    assert found.reason == "OutOfMemoryError: out of memory"
    assert not found.seconds


def test_the_gate_of_less_than_float32():
    model, x = build("small")
    classes = torch.tensor([[0, 3, 5]])
    assert gates.made((model, x), (model, x), "epsilon_plus", classes, "float32").ours == measure.AGREES
    low = build("small")[0].bfloat16()
    gate = gates.made((model, x), (low, x.bfloat16()), "epsilon_plus", classes, "bfloat16")
    assert gate.expected is not None
    assert gate.expected.shape == (1, 2, 1, 8, 8)
    # Twice what composed operations lose: some 7e-3 each.
    assert 1e-3 < gate.ours < 0.1
    assert gate.others == 1.0


def test_zennit_in_blocks_is_zennit_at_once():
    pytest.importorskip("zennit", reason="zennit is not installed")
    model, x = build("small", batch=2)
    classes = torch.tensor([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]])
    _, whole = peers.zennit(model, "epsilon_plus", "vgg", 8)
    expected = whole.run(x, classes, ignore)
    for size in (1, 2, 3, 5, 7):
        _, blocks = peers.zennit(model, "epsilon_plus", "vgg", 8, size)
        assert measure.disagreement(blocks.run(x, classes, ignore), expected) < 1e-5


def test_the_best_batch_is_found_by_doubling_until_memory_ends(monkeypatch):
    tried = []

    def make(size):
        def run(x, classes, mark):
            tried.append(size)
            if size > 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return torch.zeros(1, classes.shape[1], 1)

        return Provider("zennit expanded", run)

    costs = {1: 4.0, 2: 3.0, 4: 1.0, 8: 2.0}
    monkeypatch.setattr(peers, "seconds", lambda p, x, c: costs[tried[-1]])
    size, lines = peers.best_batch(make, torch.zeros(1, 1), torch.zeros(1, 64, dtype=torch.long))
    assert size == 4
    assert tried == [1, 2, 4, 8, 16]
    assert lines[-1].startswith("16 at once: CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        peers.best_batch(lambda n: make(99), torch.zeros(1, 1), torch.zeros(1, 4, dtype=torch.long))


def test_a_backend_that_fails_loses_no_other():
    def make(name):
        if name == "broken":
            raise RuntimeError("does not compile")
        if name == "absent":
            raise dispatch.BackendError("not built")
        return Provider(f"fastlrp {name}", lambda *a: torch.zeros(1))

    parts, left_out = providers.each(["good", "broken", "absent"], True, make)
    assert [p.name for p in parts] == ["fastlrp good", "fastlrp broken"]
    assert left_out == ["  fastlrp absent     left out: not built"]
    with pytest.raises(RuntimeError, match="does not compile"):
        parts[1].run(None, None, None)
    with pytest.raises(RuntimeError, match="does not compile"):
        providers.each(["broken"], False, make)


def test_models_on_the_cpu(tmp_path, capsys):
    words = ["--device", "cpu", "--tiny", "--models", "small", "--composites", "epsilon_plus", "--repeats", "1"]
    words += ["--precisions", "float32,bfloat16", "--backends", "auto,torch,cuda,sideways", "--others", "floor"]
    output = tmp_path / "rows.jsonl"
    assert models.main([*words, "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(row["provider"], row["precision"]) for row in rows} == {
        (provider, name) for provider in ("fastlrp auto", "fastlrp torch", "floor") for name in ("float32", "bfloat16")
    }
    assert all(row["seconds_per_target"] > 0 for row in rows)
    assert all("fastlrp cuda" in row["notes"][0] for row in rows)
    assert rows[0]["command"] == "python -m benchmarks.gpu.models " + " ".join(words)


def test_a_replay_needs_a_gpu():
    (asked,) = scenarios.replay(scenarios.Options(models=("small",), backends=("torch",), others=(), gpu=True))
    found = {e.provider.name: e for e in measure.measure(asked.parts, asked.x, asked.case.classes, 1, asked.gate)}
    assert found["fastlrp torch"].seconds
    assert (found["fastlrp replayed auto"].reason or "").startswith("UnavailableError")
