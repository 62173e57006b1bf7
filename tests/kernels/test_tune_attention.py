"""Tuning of attention: its shapes, the tiles that are tried, and a call that runs several kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastlrp.backends import dispatch
from fastlrp.kernels import configs
from fastlrp.tune import attention, space
from fastlrp.tune import tuner as tuning
from fastlrp.tune.attention import Attention, candidates
from fastlrp.tune.check import Check
from fastlrp.tune.tuner import Tuner

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreted")

CPU = torch.device("cpu")
SMALL = Attention("attention_relevance", 4, 5, (6, 7), heads=2, sharing=2, causal=True, batch=2, targets=3)


@pytest.mark.parametrize("kind", configs.KINDS)
@pytest.mark.parametrize("kernel", attention.KERNELS)
def test_candidates_fit(kernel, kind):
    for shared in (99 << 10, 227 << 10):
        found = candidates(kernel, kind, shared, 64)
        assert len(set(found)) == len(found) > len(candidates(kernel, kind, shared, 64, quick=True)) > 1
        assert [c.route for c in found].count("library") == (kernel not in space.WITHOUT_LIBRARY)
        for c in found:
            assert attention.shared_bytes(kernel, c, kind, 64) <= shared
            held = c.block_n if kernel in ("attention_key", "attention_value") else c.block_m
            assert kind == "ieee" or held == 16 * c.num_warps
            assert configs._row(tuning.row(kernel, "*", kind, c, 1.0), "row")
    assert found == space.candidates(kernel, kind, shared, 64)
    assert candidates(kernel, kind, 1 << 10, 64) == []


@pytest.mark.parametrize("quick", [False, True])
def test_standard_shapes(quick):
    found = attention.standard(quick)
    assert {w.op for w in found} == set(attention.KERNELS.values())
    assert len(set(found)) == len(found)
    assert {w.inputs for w in found} == {64, 128, 256}
    assert str(found[-1]).startswith("attention_up 16 heads of 256 sharing=2, 512 queries, 512 keys causal")


@pytest.mark.parametrize("op", dict.fromkeys(attention.KERNELS.values()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arguments_fit_their_operation(op, dtype):
    given = replace(SMALL, op=op).arguments(CPU, dtype)
    found = dispatch.select(op, "torch", CPU, dtype).call(*given)
    shapes = {
        "attention_forward": [(2, 2, 6, 5), (2, 2, 6)],
        "attention_relevance": [(2, 3, 2, 6, 4), (2, 3, 1, 7, 4), (2, 3, 1, 7, 5)],
        "attention_value_relevance": [(2, 3, 1, 7, 5)],
        "attention_up": [(2, 3, 2, 6, 5)],
    }
    assert [tuple(t.shape) for t in (found if isinstance(found, tuple) else (found,))] == shapes[op]
    assert given[0].stride(-2) == 2 * given[0].shape[-1]


@pytest.mark.parametrize(
    ("op", "kernels"),
    [
        ("attention_forward", ["forward"]),
        ("attention_relevance", ["key", "query"]),
        ("attention_value_relevance", ["value"]),
        ("attention_up", ["up"]),
    ],
)
def test_every_kernel_that_a_call_runs_is_tuned(op, kernels):
    small = configs.Config(16, 16, 1, 1, 1)
    library = replace(small, route="library")
    lines: list[str] = []

    def timer(run):
        run()
        return 1.0

    found = Tuner(CPU, timer, 1 << 20, 1 << 30, lines.append, True, lambda *asked: [small, library])
    work = replace(SMALL, op=op, size=(3, 4), batch=1, targets=2, heads=1, sharing=1)
    found.tune([work], list(space.KERNELS), torch.float32, "ieee")
    assert sorted(key.removeprefix("attention_") for key, *_ in found.found) == kernels
    for tried in found.found.values():
        assert not tried.wrong
        assert not tried.refused
        assert small in tried.times[work]
        assert tried.default == configs.Config(16, 16, 2, 1, 1)


def test_a_wrong_result_is_found():
    given = SMALL.arguments(CPU, torch.float32)
    right = dispatch.select(SMALL.op, "torch", CPU, torch.float32).call(*given)
    check = Check(SMALL.op, given, "ieee")
    assert check(right) == ""
    assert "relative error 1.0e-02" in check((right[0], right[1] * 1.01, right[2]))
    forward = replace(SMALL, op="attention_forward").arguments(CPU, torch.float32)
    output, log_sum = dispatch.select("attention_forward", "torch", CPU, torch.float32).call(*forward)
    check = Check("attention_forward", forward, "tf32")
    assert check((output, log_sum)) == ""
    assert "relative error" in check((output, log_sum + 1))
