"""Every backend is there: a build without its kernels is not a run of the GPU tests."""

from __future__ import annotations

import pytest
import torch

from fastlrp import info
from fastlrp.backends import dispatch
from tests.gpu.cases import DEVICE, DTYPES, samples

pytestmark = pytest.mark.gpu

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("op", [op for op in dispatch.OPS if op != "elementwise_pooled_coefficients"])
def test_triton_has_every_operation(op, dtype):
    """But for coefficients and the pool behind them in one sweep, which CUDA's kernels do alone."""
    assert dispatch.reason("triton", op, DEVICE, dtype) is None


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("op", [op for op, stem in dispatch.STEMS.items() if stem in ("pool", "elementwise")])
def test_cuda_has_pools_and_coefficients(op, dtype):
    assert dispatch.reason("cuda", op, DEVICE, dtype) is None


def test_cuda_has_shared_sparsity():
    assert dispatch.sparse_kernels(DEVICE) is not None


@pytest.mark.parametrize("op", dispatch.OPS)
def test_auto_takes_a_kernel_of_ours(op):
    for dtype in (torch.float32, *HALVES):
        assert dispatch.select(op, "auto", DEVICE, dtype).backend in ("triton", "cuda")
    assert dispatch.select(op, "auto", DEVICE, torch.float64).backend in ("torch", "cuda")


def test_kernels_refuse_what_they_cannot():
    for op in dispatch.OPS:
        with pytest.raises(dispatch.BackendError, match="float64"):
            dispatch.select(op, "triton", DEVICE, torch.float64)
    with pytest.raises(dispatch.BackendError, match="tensors are on cpu"):
        dispatch.select("pool_max_relevance", "cuda", torch.device("cpu"), torch.float32)


def test_every_operation_has_a_sample():
    assert {op for op, _ in samples()} == set(dispatch.OPS)


def test_info_names_the_backends_on_the_gpu():
    text = info.text()
    assert "backends on cuda" in text
    for name in ("triton", "cuda"):
        assert f"{name}*" in text
