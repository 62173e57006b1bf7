from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fastlrp import info
from fastlrp.backends import cpu, cuda, dispatch, extension

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_extension(monkeypatch):
    """As if the extension had not been built."""
    monkeypatch.setattr(extension, "loaded", lambda: "no such file")
    dispatch._select.cache_clear()
    yield
    dispatch._select.cache_clear()


@pytest.mark.parametrize("op", dispatch.OPS)
def test_automatic_choice(op):
    for dtype in (torch.float32, torch.float64):
        expected = "cpu" if op in cpu.cpu_ops() else "torch"
        assert dispatch.select(op, "auto", CPU, dtype).backend == expected
    narrow = "cpu" if op in cpu.WIDENED and op in cpu.cpu_ops() else "torch"
    assert dispatch.select(op, "auto", CPU, torch.bfloat16).backend == narrow


def test_explicit_cpu_is_a_set_of_kernels_that_need_not_be_complete():
    assert {op for op, stem in dispatch.STEMS.items() if stem == "pool"} <= set(cpu.cpu_ops())
    assert "elementwise_coefficients" in cpu.cpu_ops()
    for op in dispatch.OPS:
        selected = dispatch.select(op, "cpu", CPU, torch.float32)
        assert selected.backend == ("cpu" if op in cpu.cpu_ops() else "torch")
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
    monkeypatch.setattr(cpu, "cpu_ops", lambda: ("pool_max_relevance",))
    assert dispatch.reason("cpu", "pool_avg_relevance", CPU, torch.float32) == "it has no kernel for this operation"


def test_unknown_names():
    names = "'reference', 'torch', 'cpu', 'triton', 'cuda'"
    with pytest.raises(ValueError, match=f"backend: expected 'auto' or one of {names}, got 'metal'"):
        dispatch.select("conv_relevance", "metal", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"op: expected one of 'linear_relevance', .* got 'conv'"):
        dispatch.select("conv", "auto", CPU, torch.float32)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if fastlrp._C had CUDA kernels for a pool, and Triton one for convolutions."""
    kernels = SimpleNamespace(pool_max_relevance=lambda: "cuda", sparse_conv_relevance=None)
    monkeypatch.setattr(cuda, "kernels", lambda: kernels)
    triton = SimpleNamespace(conv_relevance=lambda: "triton", pool_max_relevance=lambda: "triton")
    monkeypatch.setattr(dispatch.BACKEND["triton"], "load", lambda op: triton)
    monkeypatch.setattr("fastlrp.backends.triton._missing", lambda: None)
    dispatch._select.cache_clear()
    yield kernels
    dispatch._select.cache_clear()


def test_on_a_gpu_the_first_kernel_is_taken(on_a_gpu):
    def taken(op, backend, dtype):
        return dispatch.select(op, backend, CUDA, dtype).backend

    assert taken("pool_max_relevance", "auto", torch.float32) == "cuda"
    assert taken("pool_max_relevance", "auto", torch.float64) == "cuda"
    assert taken("pool_max_relevance", "triton", torch.bfloat16) == "triton"
    assert taken("conv_relevance", "auto", torch.float16) == "triton"
    assert taken("conv_relevance", "auto", torch.float64) == "torch"
    assert taken("conv_relevance", "cuda", torch.float32) == "triton"
    assert taken("conv_relevance", "cuda", torch.float64) == "torch"
    assert taken("linear_relevance", "triton", torch.float32) == "torch"
    assert dispatch.sparse_kernels(CUDA) is on_a_gpu
    with pytest.raises(dispatch.BackendError, match=r"dtype is torch\.float64, kernels are for float32, float16 and"):
        dispatch.select("conv_relevance", "triton", CUDA, torch.float64)
    with pytest.raises(dispatch.BackendError, match="tensors are on cpu"):
        dispatch.select("pool_max_relevance", "cuda", CPU, torch.float32)


def test_without_cuda_or_triton_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(
        "fastlrp.backends.triton._missing", lambda: "Triton is not installed; pip install 'triton>=3.6'"
    )
    assert "pip install" in str(dispatch.reason("triton", "conv_relevance", CUDA, torch.float32))
    if torch.version.cuda is None:
        reason = dispatch.reason("cuda", "pool_max_relevance", CUDA, torch.float32)
        assert str(reason).startswith("csrc/cuda is not built: this PyTorch")
        assert dispatch.sparse_kernels(CUDA) is None
    assert dispatch.sparse_kernels(torch.device("meta")) is None


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension():
    assert dispatch.sparse_kernels(CPU) is None
    assert cpu.cpu_ops() == ()
    assert dispatch.select("pool_max_relevance", "auto", CPU, torch.float32).backend == "torch"
    for op in dispatch.OPS:
        with pytest.raises(
            dispatch.BackendError, match=r"does not load \(no such file\); build it with 'make install'"
        ):
            dispatch.select(op, "cpu", CPU, torch.float32)
    assert "does not load: no such file" in info.text()


@pytest.mark.slow
def test_info():
    environment = {**os.environ, "FASTLRP_ISA": "portable"}
    command = [sys.executable, "-m", "fastlrp.info"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    for word in (torch.__version__, "_C compiler", "instruction set in use  portable", *dispatch.OPS, "torch*", "cpu*"):
        assert word in text
