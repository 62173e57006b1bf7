from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fastlrp import dispatch, info

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_extension(monkeypatch):
    """As if the extension had not been built."""
    monkeypatch.setattr(dispatch, "_extension", lambda: "no such file")
    dispatch._select.cache_clear()
    yield
    dispatch._select.cache_clear()


@pytest.mark.parametrize("op", dispatch.OPS)
def test_automatic_choice(op):
    for dtype in (torch.float32, torch.float64):
        expected = "cpu" if op in dispatch.cpu_ops() else "torch"
        assert dispatch.select(op, "auto", CPU, dtype).backend == expected
        assert dispatch.select(op, "auto", CUDA, dtype).backend == "torch"
    assert dispatch.select(op, "auto", CPU, torch.bfloat16).backend == "torch"


def test_explicit_cpu_is_a_set_of_kernels_that_need_not_be_complete():
    assert {op for op, stem in dispatch.STEMS.items() if stem in ("pool", "elementwise")} <= set(dispatch.cpu_ops())
    for op in dispatch.OPS:
        selected = dispatch.select(op, "cpu", CPU, torch.float32)
        assert selected.backend == ("cpu" if op in dispatch.cpu_ops() else "torch")
        assert selected.op == op


@pytest.mark.parametrize(
    ("op", "backend", "device", "dtype", "message"),
    [
        ("pool_max_relevance", "cpu", CUDA, torch.float32, "tensors are on cuda"),
        (
            "pool_max_relevance",
            "cpu",
            CPU,
            torch.float16,
            "dtype is torch.float16, kernels are for float32 and float64",
        ),
        ("pool_max_relevance", "torch", CPU, torch.int64, "relevance needs a floating-point one"),
        ("pool_max_relevance", "auto", CPU, torch.int64, r"no backend can run on cpu with torch.int64 \(cpu: dtype is"),
    ],
)
def test_an_explicit_choice_that_cannot_run_raises_the_reason(op, backend, device, dtype, message):
    with pytest.raises(dispatch.BackendError, match=message):
        dispatch.select(op, backend, device, dtype)


def test_no_kernel_is_a_reason(monkeypatch):
    monkeypatch.setattr(dispatch, "cpu_ops", lambda: ("pool_max_relevance",))
    assert dispatch.reason("cpu", "pool_avg_relevance", CPU, torch.float32) == "it has no kernel for this operation"


def test_unknown_names():
    with pytest.raises(ValueError, match="backend: expected 'auto' or one of 'reference', 'torch', 'cpu', got 'cuda'"):
        dispatch.select("conv_relevance", "cuda", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"op: expected one of 'linear_relevance', .* got 'conv'"):
        dispatch.select("conv", "auto", CPU, torch.float32)


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension():
    assert dispatch.cpu_ops() == ()
    assert dispatch.select("pool_max_relevance", "auto", CPU, torch.float32).backend == "torch"
    for op in dispatch.OPS:
        with pytest.raises(
            dispatch.BackendError, match=r"does not load \(no such file\); build it with 'make install'"
        ):
            dispatch.select(op, "cpu", CPU, torch.float32)
    assert "does not load: no such file" in info.report()


def test_info():
    environment = {**os.environ, "FASTLRP_ISA": "portable"}
    command = [sys.executable, "-m", "fastlrp.info"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    for word in (torch.__version__, "_C compiler", "instruction set in use  portable", *dispatch.OPS, "torch*", "cpu*"):
        assert word in text
