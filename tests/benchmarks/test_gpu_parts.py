"""What the parts of the GPU run compute with, on a CPU: floors, counts, timers, rows, the time that is left."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import clock, density, floors, measure, precisions
from benchmarks.gpu import calls
from benchmarks.gpu.part import FAILED, Part, begin, parser
from benchmarks.gpu.timing import in_turns
from benchmarks.models import build
from benchmarks.providers import Provider
from benchmarks.shapes import Call
from fastlrp.backends import dispatch
from fastlrp.tune import attention
from tests.gpu.conftest import spread
from tests.torchvision_models import import_models

import_models()
CPU = torch.device("cpu")


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


def test_counts_of_attention():
    """A causal query sees 1, 2, 3, 4, 4 of four keys; each pair takes scores of 3 numbers, and values of 2."""
    small = attention.Attention("", 3, 2, (5, 4), heads=2, causal=True)
    found = {}
    for op in ("attention_forward", "attention_relevance", "attention_value_relevance"):
        given = replace(small, op=op).arguments(CPU, torch.float32)
        shape = None if op == "attention_forward" else (tuple(given[0].shape), (3, 2, 4))
        call = Call(op, "m", shape, given if shape is None else given[1:])
        found[op] = calls.flops(call, 16)
        if shape is not None:
            halves = calls.arguments(call, 16, CPU, torch.bfloat16)
            assert {t.dtype for t in halves if isinstance(t, torch.Tensor)} == {torch.bfloat16, torch.float32}
            assert halves[0].shape == (1, 16, 2, 5, 2)
            result = dispatch.select(op, "torch", CPU, torch.bfloat16).call(*halves)
            assert calls.difference(result, calls.exact(call, halves)) < 2e-2
    pairs = 2 * 2 * 14
    assert list(found.values()) == [pairs * (3 + 2), pairs * (3 + 16 * 10), pairs * (3 + 16 * 2)]


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
        with precisions.using(name):
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


class FakeEvent:
    """A CUDA event whose times are given; asking for a time before waiting is an error."""

    clock = iter(range(1000))

    def __init__(self, enable_timing):
        assert enable_timing
        self.at, self.waited = None, False

    def record(self, stream):
        self.at = next(FakeEvent.clock)

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, other):
        assert other.waited
        return float(other.at - self.at)


def test_clock_of_a_gpu(monkeypatch):
    settled = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "synchronize", settled.append)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_device_alloc": 3, "num_alloc_retries": 1})
    gpu = torch.device("cuda", 0)
    found = clock.Clock(gpu).seconds(lambda: [next(FakeEvent.clock) for _ in range(4)])
    assert found == 5e-3  # 5 events later, in milliseconds
    assert settled == [gpu]
    assert clock.Clock(gpu).allocations() == 4


def test_a_time_in_which_memory_was_asked_for_is_taken_again(monkeypatch):
    asked = iter([0, 1, 1, 1])  # before and after the first call, before and after the second
    monkeypatch.setattr(clock.Clock, "allocations", lambda self: next(asked))
    ran = []
    provider = Provider("a", lambda x, classes, mark: ran.append(1))
    assert measure.seconds(provider, torch.ones(1, 1), torch.zeros(1, 2, dtype=torch.long)) > 0
    assert len(ran) == 2


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


def test_a_quick_run_takes_cases_of_every_value():
    """Of a grid of 5 shapes, 4 dtypes and 3 backends."""
    grid = [(shape, dtype, backend) for shape in range(5) for dtype in range(4) for backend in range(3)]
    taken = spread(grid, 12)
    assert len(set(taken)) == 12
    assert [len({case[axis] for case in taken}) for axis in range(3)] == [5, 4, 3]
    assert spread(grid[:7], 12) == grid[:7]
    assert spread([], 12) == []
