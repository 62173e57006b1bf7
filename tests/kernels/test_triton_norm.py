"""Triton's norms, interpreted, against the definition; tiles are small, so that there are several."""

from __future__ import annotations

import pytest
import torch

from fastlrp.backends import dispatch
from tests.ops.cases import assert_close, reference, reversed_memory, same, with_gaps
from tests.ops.test_ops_norm import OP, SHAPES, gains

pytest.importorskip("triton")
from fastlrp.kernels import norm

MORE = [(1, 5, (3,), 32), (1, 2, (2,), 200)]  # Several positions in a tile; several tiles in a row.


@pytest.mark.parametrize("shape", [*SHAPES[:-1], *MORE], ids=str)
def test_equals_reference(monkeypatch, shape):
    monkeypatch.setattr(norm, "_TILE", 128)
    B, K, L, N = shape
    inverse = torch.rand(B, *L, 1) + 0.5
    for number, gain in enumerate(gains(B, L, N, torch.float32)):
        for centre in (False, True):
            r = torch.randn(B, K, *L, N)
            change = (same, with_gaps, reversed_memory)[(number + centre) % 3]
            given = change(r), None if gain is None else change(gain), change(inverse), centre
            found = norm.norm_relevance(*given)
            if N > 1 or not centre:
                assert_close(found, reference(OP)(*given))
            else:
                assert found.abs().max() <= 1e-6  # A single number less its mean.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("centre", [False, True])
def test_in_16_bits(dtype, centre):
    r, gain, inverse = torch.randn(2, 3, 4, 33).to(dtype), torch.randn(33).to(dtype), torch.rand(2, 4, 1) + 0.5
    exact = reference(OP)(r.double(), gain.double(), inverse.double(), centre)
    found = norm.norm_relevance(r, gain, inverse, centre)
    assert found.dtype == dtype
    # One rounding; the interpreter cuts bfloat16 off where a GPU rounds.
    assert (found.double() - exact).norm() <= torch.finfo(dtype).eps * exact.norm()


def test_float64_has_a_reason():
    cpu = torch.device("cpu")
    assert dispatch.select(OP, "triton", cpu, torch.float32).backend == "triton"
    assert "dtype is torch.float64" in str(dispatch.reason("triton", OP, cpu, torch.float64))
