"""Triton's walk through recurrent layers, interpreted, against the definition; tiles are small."""

from __future__ import annotations

import pytest
import torch

from fastlrp.backends import dispatch
from tests.ops.cases import assert_close, reference, reversed_memory, same, with_gaps
from tests.ops.test_ops_recurrence import FORMS, OP, SHAPES, arguments

pytest.importorskip("triton")
from fastlrp.kernels import recurrence


@pytest.mark.parametrize("form", FORMS)
def test_equals_reference(monkeypatch, form):
    monkeypatch.setattr(recurrence, "_BLOCK", 16)
    monkeypatch.setattr(recurrence, "_TARGETS", 16)
    shapes = [*SHAPES, (1, 17, 2, 5, 17, 1)]
    turn = list(FORMS).index(form)
    for number, shape in enumerate(shapes if form == "lstm_output" else shapes[turn % 2 :: 2]):
        given = arguments(shape, form, torch.float32)
        change = (same, with_gaps, reversed_memory)[number % 3]
        found = recurrence.recurrence_relevance(*(None if t is None else change(t) for t in given))
        assert_close(found, reference(OP)(*given), f"{shape} {form}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits(dtype):
    given = [None if t is None else t.to(dtype) for t in arguments((1, 3, 4, 20, 20, 3), "lstm_output", torch.float32)]
    exact = reference(OP)(*(None if t is None else t.double() for t in given))
    for found, right in zip(recurrence.recurrence_relevance(*given)[:3], exact, strict=False):
        assert found.dtype == dtype
        # One rounding; the interpreter cuts bfloat16 off where a GPU rounds.
        assert (found.double() - right).norm() <= torch.finfo(dtype).eps * right.norm()


def test_float64_has_a_reason():
    cpu = torch.device("cpu")
    assert dispatch.select(OP, "triton", cpu, torch.float32).backend == "triton"
    assert "dtype is torch.float64" in str(dispatch.reason("triton", OP, cpu, torch.float64))
