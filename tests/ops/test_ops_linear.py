from __future__ import annotations

import pytest
import torch

from fastlrp import functional
from tests.ops.cases import DTYPES, assert_close, backends, bound, layouts, mixed, reference, signs, terms

OP = "linear_relevance"
SHAPES = [  # B, K, L, O, I
    (2, 3, (), 5, 7),
    (1, 1, (), 1, 1),
    (0, 3, (), 5, 7),
    (2, 0, (), 5, 7),
    (3, 2, (4,), 11, 13),
    (2, 2, (3, 2), 17, 5),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, backend, dtype):
    B, K, L, O, I = shape
    weight, x = mixed(O, I, dtype=dtype), mixed(B, *L, I, dtype=dtype)
    call, definition = bound(OP, backend, dtype), reference(OP)
    for (u, v), (signed, multiply) in ((t, s) for t in terms((B, *L, O), dtype) for s in signs()):
        for prepared in (None, weight.clamp(min=0)):
            arguments = (mixed(B, K, *L, O, dtype=dtype), weight, u, v, x, prepared)
            expected = definition(*arguments, signed, multiply)
            for changed in layouts(arguments, channel_axis=0):
                context = (u is None, v is None, signed, multiply)
                assert_close(call(*changed, signed, multiply), expected, context)


def test_public_function():
    r, w, u = torch.randn(2, 3, 5), torch.randn(5, 7), torch.randn(2, 5)
    expected = reference(OP)(r, w, u, None, None, None, False, False)
    for backend in ("auto", "reference", "torch", "cpu"):
        result = functional.linear_relevance(r.requires_grad_(), w, u, backend=backend)
        assert_close(result, expected)
        assert not result.requires_grad


def test_input_is_not_needed_where_no_term_reads_it():
    r, w, u = torch.randn(2, 3, 5), torch.randn(5, 7), torch.randn(2, 5)
    assert functional.linear_relevance(r, w, u, None, None, None, signed=True).shape == (2, 3, 7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"relevance": torch.zeros(2, 5)},
            ValueError,
            r"relevance must have shape \(B, K, \*L, O\), got \(2, 5\); the",
        ),
        ({"relevance": torch.zeros(2, 3, 4)}, ValueError, r"weight must have shape \(O, I\) = \(4, 7\), got \(5, 7\)"),
        (
            {"relevance": torch.zeros(2, 3, 5).int()},
            TypeError,
            "relevance must have a floating-point dtype, got torch.i",
        ),
        ({"relevance": [1.0]}, TypeError, "relevance must be a tensor, got list"),
        ({"weight": torch.zeros(5)}, ValueError, r"weight must have shape \(O, I\), got \(5,\)"),
        ({"u": torch.zeros(2, 3, 5)}, ValueError, r"u must have shape \(B, \*L, O\) = \(2, 5\), got \(2, 3, 5\)"),
        ({"u": torch.zeros(2, 5).double()}, TypeError, r"u must have dtype torch.float32, got torch.float64; convert"),
        ({"u": torch.zeros(2, 5, device="meta")}, ValueError, r"u must be on cpu, got meta; move it"),
        ({"u": 1.0}, TypeError, "u must be a tensor or None, got float"),
        ({"u": None}, ValueError, "u or v must be given"),
        ({"multiply": True}, ValueError, "input must be given for multiply=True"),
        ({"v": torch.zeros(2, 5), "signed": True}, ValueError, "input must be given for signed=True with v"),
        ({"input": torch.zeros(2, 6)}, ValueError, r"input must have shape \(B, \*L, I\) = \(2, 7\)"),
        ({"backend": "fast"}, ValueError, "backend: expected 'auto' or one of 'reference', .* 'cuda', got 'fast'"),
    ],
)
def test_errors(change, error, message):
    good = {"relevance": torch.zeros(2, 3, 5), "weight": torch.zeros(5, 7), "u": torch.zeros(2, 5)}
    with pytest.raises(error, match=message):
        functional.linear_relevance(**{**good, **change})
