"""Ways down that are taken as a plain loop give the same bits as step by step, and notice the same things."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch import nn

import fastlrp
from benchmarks.models import lenet, small_network
from fastlrp.capture import fingerprint
from fastlrp.kinds.jacobian import vjp
from fastlrp.run import finite, settled
from fastlrp.run.answers import Answers
from tests.plan.test_point import Bottlenecks


class Averages(nn.Module):
    """A mean over positions, as many models end with."""

    def __init__(self, keeps: bool = False) -> None:
        super().__init__()
        self.first, self.head, self.keeps = nn.Conv1d(3, 8, 3), nn.Linear(8, 5), keeps

    def forward(self, x):
        h = self.first(x).relu().mean(2, self.keeps)
        return self.head(h.flatten(1))


class Last(nn.Module):
    """The last position of a sequence alone: registers that hold some positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu()[:, -1])


class Reshaped(nn.Module):
    """Scores that a copy gives another axis: one-hot targets become targets at positions."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x).flatten(1)


MODELS = {
    "small": (small_network, (1, 8, 8)), "lenet": (lenet, (1, 28, 28)), "mean": (Averages, (3, 9)),
    "mean kept": (lambda: Averages(True), (3, 9)), "last": (Last, (6, 3)), "reshaped": (Reshaped, (6, 4)),
    "lstm": (lambda: nn.Sequential(nn.LSTM(3, 4, batch_first=True), Picks(), nn.Linear(4, 3)), (5, 3)),
}  # fmt: skip


class Picks(nn.Module):
    def forward(self, out):
        return out[0][:, -1]


BOX = fastlrp.composites.epsilon_gamma_box(-5.0, 5.0)


def made(name: str, batch: int, composite="epsilon_plus"):
    torch.manual_seed(1)
    make, sizes = MODELS[name]
    model = make().eval()
    return fastlrp.Explainer(model, composite), torch.randn(batch, *sizes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("composite", ["epsilon_plus", BOX], ids=["plus", "box"])
def test_the_same_bits_as_step_by_step(name, composite, monkeypatch):
    explainer, x = made(name, 2, composite)
    asked = [0, [2, 1], "all", torch.tensor([[1], [0]]), "top1", {0: 1.0, 1: -1.0}]
    at_once = [explainer(x, t) for t in asked]
    known = [found for found in explainer.plan.settled if found is not None]
    assert known, "no way down was settled: nothing is tested"
    assert any(found.straight for found in known) == (name not in ("last", "lstm"))
    monkeypatch.setattr(Answers, "may_settle", False)
    for targets, found in zip(asked, at_once, strict=True):
        assert torch.equal(explainer(x, targets), found), targets


@pytest.mark.filterwarnings("ignore:.*bf16")  # Of a processor that gains nothing by it.
def test_registers_of_bfloat16_are_widened_where_a_step_wants_that(monkeypatch):
    torch.manual_seed(1)
    explainer, x = fastlrp.Explainer(Bottlenecks().eval(), "epsilon_plus", precision="bf16"), torch.randn(2, 3, 32, 32)
    read = mock.Mock(side_effect=settled.widened)
    monkeypatch.setattr(settled, "widened", read)
    at_once = [explainer(x, t) for t in (0, [2, 1], "top1")]
    assert all(found.straight for found in explainer.plan.settled), "no plain loop: nothing is tested"
    registers = [call.args[0] for call in read.call_args_list]
    assert any(isinstance(t, torch.Tensor) and t.dtype == torch.bfloat16 for t in registers)
    monkeypatch.setattr(Answers, "may_settle", False)
    for targets, found in zip((0, [2, 1], "top1"), at_once, strict=True):
        assert torch.equal(explainer(x, targets), found), targets


@pytest.mark.parametrize("reduce", [None, "channels"])
def test_samples_alone_and_results_by_channel(reduce):
    explainer, x = made("small", 3)
    together = explainer(x, [1, 2], reduce=reduce)
    alone = torch.cat([explainer(x[i : i + 1], [1, 2], reduce=reduce) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-7)
    assert explainer.verify(x, [1, 2]).ok


def test_what_changes_a_way_down_is_noticed():
    explainer, x = made("small", 2)
    whole = explainer(x, "all")
    explainer.plan.block_bytes = 4096  # Two maps of one target: targets go down one after the other.
    assert torch.allclose(explainer(x, "all"), whole, rtol=1e-4, atol=1e-7)
    limited = fastlrp.Explainer(explainer.model, "epsilon_plus", max_memory="80KB")
    assert torch.allclose(limited(x, "all"), whole, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        explainer.model[0].weight.mul_(-1)
    fresh = fastlrp.Explainer(explainer.model, "epsilon_plus")(x, "all")
    assert not torch.equal(fresh, whole)
    assert torch.equal(explainer(x, "all"), fresh)


def test_relevance_that_is_not_finite_is_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[1].weight.fill_(2.0)
    explainer = fastlrp.Explainer(model, "epsilon", example_inputs=torch.ones(1, 3))
    explainer(torch.ones(1, 3), 0)
    with pytest.raises(fastlrp.NotFiniteError):
        explainer(torch.full((1, 3), 3e38), 0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        explainer(torch.tensor([[1.0, math.nan, 0.0]]), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compiled", [True, False])
def test_whether_numbers_are_finite(dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(finite, "_compiled", lambda: lambda x: None)
    largest = torch.finfo(dtype).max
    assert finite.all_finite(torch.full((3, 40), largest, dtype=dtype))
    assert finite.all_finite(torch.empty(0, 3, dtype=dtype))
    for number in (math.inf, -math.inf, math.nan):
        for place in (0, 77, 119):
            x = torch.zeros(120, dtype=dtype)
            x[place] = number
            assert not finite.all_finite(x)
            assert not finite.all_finite(x.view(3, 40).t())
            assert not finite.all_finite(x.expand(2, 120))
            assert finite.all_finite(torch.cat([x[:place], x[place + 1 :]]).view(7, 17)[:, ::2])


@pytest.mark.parametrize("sizes", [(12, 5), (4, 3, 6)])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_mean_goes_down_as_autograd_has_it(sizes, keeps):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(axes, keeps)

    gradient = fastlrp.composites.preset("epsilon_plus").with_entries(
        (fastlrp.composites.operation("mean"), fastlrp.rules.Gradient())
    )
    for axes in ([1], [-1], [2, 1], list(range(1, len(sizes) + 1))):
        x, zero = torch.randn(2, *sizes), torch.zeros(1, *sizes)
        with fastlrp.Explainer(Mean().eval(), gradient).forward(x) as record:
            initial = torch.randn(2, 3, *record.scores.shape[1:])
            found = record.relevance(initial)
        assert torch.equal(found, vjp(lambda x, a=axes: x.mean(a, keeps), (zero,), initial)[0])


@pytest.mark.parametrize("targets", [4, -1, [0, 4], [-1], 10**30])
def test_classes_out_of_range(targets):
    small = fastlrp.Explainer(nn.Linear(4, 3).eval(), "epsilon")
    with pytest.raises((IndexError, TypeError), match=r"out of range|must be"):
        small(torch.randn(2, 4), targets)
    with pytest.raises(ValueError, match="empty"):
        small(torch.randn(2, 4), [])
    with pytest.raises(TypeError):
        small(torch.randn(2, 4), [True, False])


def test_looks_with_the_extension_and_without_see_the_same(monkeypatch):
    monkeypatch.setattr(fingerprint, "_WINDOW", 16 << 10)
    monkeypatch.setattr(fingerprint, "_LARGEST", 16 << 10)

    def tensors():
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(n, generator=generator) for n in (3, 700, 9_000, 100_003)]

    with_it, ours = fingerprint.Fingerprint(tensors_of_one := tensors()), tensors()
    monkeypatch.setattr(fingerprint, "loaded", lambda: "not built")
    without = fingerprint.Fingerprint(ours)
    assert with_it._compiled is not None
    assert without._compiled is None
    for number, place in [(0, 2), (1, 699), (2, 0), (2, 8_999), (3, 0), (3, 50_001), (3, 99_999), (3, 100_002)]:
        for several in (tensors_of_one, ours):
            several[number].numpy()[place] += 1.0
        looks = [next(n for n in range(1, 100) if seen.changed()) for seen in (with_it, without)]
        assert looks[0] == looks[1] <= 32
    for several, seen in ((tensors_of_one, with_it), (ours, without)):
        several[1].mul_(1)  # A write that changes nothing is one as PyTorch counts.
        assert seen.changed()
        assert not seen.changed()
        several[2].data = several[2].data.clone()
        assert seen.changed()
