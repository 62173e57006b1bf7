"""What the public operations of attention refuse."""

import math

import pytest
import torch

from fastlrp import functional
from tests.ops.attention_cases import FORWARD, VALUE

GOOD = {
    "relevance": torch.zeros(2, 3, 4, 5, 7), "query": torch.zeros(2, 4, 5, 8), "key": torch.zeros(2, 2, 6, 8),
    "value": torch.zeros(2, 2, 6, 7), "output": torch.zeros(2, 4, 5, 7), "log_sum": torch.zeros(2, 4, 5),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relevance": torch.zeros(2, 4, 5, 7)}, ValueError, r"relevance must have shape \(B, K, H, S, E\), got"),
        ({"relevance": torch.zeros(2, 3, 4, 5, 8)}, ValueError, r"relevance must have shape .* = \(2, 3, 4, 5, 7\)"),
        ({"query": torch.zeros(4, 5, 8)}, ValueError, r"query must have shape \(B, H, S, D\), got \(4, 5, 8\)"),
        ({"query": torch.zeros(2, 4, 5, 8).int()}, TypeError, "query must have a floating-point dtype"),
        ({"key": torch.zeros(2, 3, 6, 8)}, ValueError, "heads of query must be a multiple of that of key, got 4 and 3"),
        ({"key": torch.zeros(2, 2, 6, 9)}, ValueError, r"key must have shape \(B, G, T, D\) = \(2, 2, 6, 8\)"),
        ({"value": torch.zeros(2, 2, 5, 7)}, ValueError, r"value must have shape \(B, G, T, E\) = \(2, 2, 6, 7\)"),
        ({"value": torch.zeros(2, 2, 6, 7).double()}, TypeError, "value must have dtype torch.float32"),
        ({"output": None}, TypeError, "output must be a tensor, got None; attention_forward makes it"),
        ({"output": torch.zeros(2, 4, 5, 8)}, ValueError, r"output must have shape \(B, H, S, E\) = \(2, 4, 5, 7\)"),
        ({"log_sum": torch.zeros(2, 4, 6)}, ValueError, r"log_sum must have shape \(B, H, S\) = \(2, 4, 5\)"),
        ({"log_sum": torch.zeros(2, 4, 5).double()}, TypeError, "log_sum must have dtype torch.float32"),
        ({"mask": torch.zeros(2, 6)}, ValueError, r"mask must broadcast to \(B, H, S, T\) = .*, got \(2, 6\)"),
        ({"mask": torch.zeros(5, 6).long()}, TypeError, "mask must be bool .* got torch.int64"),
        ({"mask": [True]}, TypeError, "mask must be a tensor or None, got list"),
        ({"mask": torch.zeros(5, 6, device="meta")}, ValueError, "mask must be on cpu, got meta; move it"),
        ({"cap": -1.0}, ValueError, r"cap must be at least 0 \(0 is none\), got -1.0"),
        ({"epsilon": math.nan}, ValueError, "epsilon must be at least 0"),
        ({"backend": "fast"}, ValueError, "backend: expected 'auto' or one of"),
    ],
)  # fmt: skip
def test_errors(change, error, message):
    with pytest.raises(error, match=message):
        functional.attention_relevance(**{**GOOD, **change})
    for op, names in ((FORWARD, ("query", "key", "value")), (VALUE, ("relevance", "query", "key", "log_sum"))):
        shared = next(iter(change)) in (*names, "mask", "cap", "backend")
        if shared and not (op == VALUE and "relevance" in change and change["relevance"].dim() == 5):
            with pytest.raises(error, match=message):
                getattr(functional, op)(**{**{name: GOOD[name] for name in names}, **change})
