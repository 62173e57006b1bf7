"""The tuner: what it tries, what it lets count, what it chooses and writes. Time is made up; products are real."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastlrp.backends import dispatch
from fastlrp.kernels import configs
from fastlrp.kernels.configs import Config
from fastlrp.tune import attention, space
from fastlrp.tune import command as tune
from fastlrp.tune import tuner as tuning
from fastlrp.tune.space import candidates
from fastlrp.tune.tuner import Tried, in_turns
from fastlrp.tune.workloads import Workload
from tests.kernels.tuning import CONV, CPU, LINEAR, A, B, C, Clock, tuner

pytestmark = pytest.mark.usefixtures("own_tables")


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
