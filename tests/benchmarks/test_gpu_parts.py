"""What the parts of the GPU run compute with, on a CPU: floors, counts, timers, checks that refuse what is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import clock, density, floors, gates, measure, peers, precision, providers, scenarios
from benchmarks.gpu import calls, models, ops, sparse
from benchmarks.gpu.part import FAILED, Part, begin, parser
from benchmarks.gpu.roofline import Peaks
from benchmarks.gpu.timing import Times, in_turns
from benchmarks.models import build
from benchmarks.providers import Provider
from benchmarks.shapes import Call
from fastlrp import dispatch
from tests.torchvision_models import import_models

import_models()
CPU = torch.device("cpu")


def ignore() -> None:
    pass


# Floors


def dense_flops(model, x):
    """Of the products of one map, from the shapes that pass through: 2 x outputs x weights per output."""
    found = []
    hooks = [
        m.register_forward_hook(lambda m, i, y: found.append(2 * density.work(m, y)))
        for m in model.modules()
        if isinstance(m, density.AFFINE)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(found)


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_the_floor_is_the_sum_of_the_dense_products(name):
    model, x = build(name, size=32)
    ready = floors.products(model, x, 3)
    assert sum(p.flops for p in ready) == 3 * dense_flops(model, x)
    with FlopCounterMode(display=False) as counter:
        for product in ready:
            product.run()
    # Counted by PyTorch itself. A strided product as a transposed convolution is counted by what goes in.
    assert counter.get_total_flops() == 3 * dense_flops(model, x)


@pytest.mark.parametrize("way", ["backward of the convolution", "transposed convolution"])
def test_every_way_is_the_transposed_weight(way):
    layer = floors.Layer("", nn.Conv2d(5, 7, 3, stride=2, padding=1), torch.Size((5, 9, 9)), torch.Size((7, 5, 5)))
    operands = floors.Operands(CPU, torch.float32)
    ways = dict(floors._ways(layer, operands, 2))
    flow = operands.map(layer.out, 2)
    expected = torch.nn.grad.conv2d_input((2, 5, 9, 9), layer.module.weight, flow, stride=2, padding=1)
    assert torch.allclose(ways[way](), expected, atol=1e-5)


def test_blocks_of_the_floor_cover_all_maps(monkeypatch):
    monkeypatch.setitem(floors.BLOCK_BYTES, "cpu", 3 * 4 * 100)
    layer = floors.Layer("", nn.Linear(100, 10), torch.Size((100,)), torch.Size((10,)))
    product = floors.fastest(layer, floors.Operands(CPU, torch.float32), 10)
    assert (product.rows, product.calls) == (3, 4)


# Counts


def test_counts_of_a_convolution():
    weight, u = torch.zeros(8, 4, 3, 3), torch.zeros(1, 8, 5, 5)
    rest = (weight, u, u.clone(), torch.zeros(1, 4, 5, 5), None, [5, 5], [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    call = Call("conv_relevance", "m", ((1, 2, 8, 5, 5), (2, 3, 4)), (*rest, False, False))
    one = 2 * 8 * 25 * 4 * 9
    assert calls.flops(call, 16) == 16 * one * 2
    assert calls.flops(replace(call, rest=(*rest, True, False)), 16) == 16 * one * 3
    given = calls.arguments(call, 16, CPU, torch.bfloat16)
    assert given[0].shape == (1, 16, 8, 5, 5)
    assert given[0].movedim(2, -1).is_contiguous()
    assert {t.dtype for t in given if isinstance(t, torch.Tensor)} == {torch.bfloat16}
    result = torch.zeros(1, 16, 4, 5, 5, dtype=torch.bfloat16)
    numbers = 16 * 8 * 25 + weight.numel() + 2 * u.numel() + 100 + result.numel()
    assert calls.moved(call, given, result) == 2 * numbers
    # A tensor that is there twice, or repeated by its strides, is read once.
    assert calls.moved(call, (u, u, u[:, :1].expand(1, 8, 5, 5)), None) == 4 * u.numel()


def test_what_is_heard_has_every_layer():
    found = calls.heard("small", CPU, backends=("torch",))
    weights = {tuple(c.rest[0].shape) for c in found if c.op == "conv_relevance"}
    assert {(32, 16, 3, 3), (64, 32, 3, 3)} <= weights
    assert len({(c.op, str(c)) for c in found}) == len(found)
    for call in found:
        given = calls.arguments(call, 3, CPU, torch.float32)
        run = dispatch.select(call.op, "torch", CPU, torch.float32).call
        assert calls.difference(run(*given), calls.exact(call, given)) < 1e-5


def test_difference():
    a = torch.ones(1, 20, 3)
    worse = a.clone()
    worse[0, 19, 2] = 2
    assert calls.difference(a, a) == 0
    assert calls.difference(worse, a) == pytest.approx(1 / math.sqrt(60))
    assert calls.difference((a, None), (a, None)) == 0
    for wrong in (a[:, :19], a * torch.nan, None):
        assert calls.difference(wrong, a) == math.inf
    assert calls.difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == math.inf


# Timers


class Scripted:
    """A timer that takes from a list, and remembers who ran."""

    def __init__(self, seconds):
        self.rest, self.ran = list(seconds), []

    def take(self, run):
        run()
        return (0.0, self.rest.pop(0))

    def seconds(self, taken):
        return taken[1] - taken[0]


def test_in_turns():
    timer = Scripted([1.0, 3.0, *[1.0, 3.0, 2.0, 5.0, 3.0, 4.0]])
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    found = in_turns(runs, timer, least=3, most=3)
    assert order == list("abababab")
    assert (found["a"].median, found["b"].median) == (2.0, 4.0)
    assert found["a"].spread == 3.0


def test_turns_fit_the_budget():
    timer = Scripted([0.1] * 100)
    assert len(in_turns({"a": lambda: None}, timer, least=2, most=25, budget=0.75)["a"].seconds) == 7
    assert len(in_turns({"a": lambda: None}, timer, least=2, most=25, budget=0.0)["a"].seconds) == 2


def test_clock_of_a_cpu():
    assert clock.Clock(CPU).seconds(lambda: sum(range(1000))) > 0
    assert clock.Clock(CPU).allocations() == 0
    assert clock.peak_in_all(CPU) is None


def test_precisions_are_switched_and_put_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for name, tf32 in (("tf32", True), ("float32", False)):
        with precision.using(name):
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


# Parts


def part(tmp_path=None, **options):
    path = None if tmp_path is None else tmp_path / "rows.jsonl"
    return Part("ops", CPU, {"commit": "abc"}, path, **options)


def test_rows_are_appended_as_they_come(tmp_path):
    one = part(tmp_path)
    one.write([{"a": 1}])
    one.write([])
    one.write([{"a": 2}])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == [{"part": "ops", "commit": "abc", "a": n} for n in (1, 2)]


def test_nothing_begins_when_the_time_is_over(capsys):
    now = [0.0]
    one = part(seconds=10.0, clock=lambda: now[0])
    assert not one.is_late("first")
    now[0] = 10.0
    assert one.is_late("second")
    assert one.left_out == ["second"]
    assert "second: left out, 10 seconds are over" in capsys.readouterr().out
    assert one.code() == 0
    one.wrong.append("this")
    assert one.code() == FAILED
    assert "wrong: this" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_part_needs_its_device(capsys):
    with pytest.raises(SystemExit) as stopped:
        begin("ops", parser("").parse_args([]), [])
    assert stopped.value.code == 2
    assert "ops: not measured, " in capsys.readouterr().err


# Checks of operations


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
    found = form.run(arriving, {0: case.u}, leaving, False)
    assert sparse.check(case, found)[2] is None
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


def test_times():
    assert Times((1.0, 3.0, 2.0)).median == 2.0
