"""Wrong arguments of every kind for the CPU's kernels of pools, coefficients and attention."""

from __future__ import annotations

import pytest
import torch

from fastlrp.backends.extension import extension
from tests import hostile

RELEVANCE, MAP, INPUT = torch.ones(2, 3, 4, 3, 5), torch.ones(2, 4, 3, 5), torch.ones(2, 4, 6, 10)
WINDOWS = {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0]}
QUERY, KEY, ROWS = torch.ones(2, 4, 5, 3), torch.ones(2, 2, 6, 3), torch.ones(2, 4, 5)
SCORES = {
    "relevance": torch.ones(2, 3, 4, 5, 3), "query": QUERY, "key": KEY, "log_sum": ROWS,
    "mask": torch.ones(5, 6, dtype=torch.bool), "causal": True, "scale": 0.5, "cap": 2.0,
}  # fmt: skip
RIGHT = {
    "pool_max_relevance": {
        "relevance": RELEVANCE, "index": torch.zeros(2, 4, 3, 5, dtype=torch.long), "scale": MAP, "input_size": [6, 10],
    },
    "pool_ties_relevance": {
        "relevance": RELEVANCE, "input": INPUT, "output": MAP, "scale": MAP, **WINDOWS, "dilation": [1, 1],
    },
    "pool_avg_relevance": {
        "relevance": RELEVANCE, "scale": MAP, "input_size": [6, 10], **WINDOWS, "ceil_mode": False,
        "count_include_pad": True, "divisor_override": 4,
    },
    "pool_adaptive_avg_relevance": {"relevance": RELEVANCE, "scale": MAP, "input_size": [7, 10]},
    "elementwise_coefficients": {
        "z": MAP, "positive": MAP, "negative": MAP, "factor": MAP, "rule": "gamma", "alpha": 0.25, "epsilon": 1e-6,
    },
    "attention_relevance": {
        **SCORES, "value": KEY, "output": QUERY, "share_query": 0.25, "share_key": 0.25, "share_value": 0.5,
        "epsilon": 0.1,
    },
    "attention_value_relevance": SCORES,
}  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("op", RIGHT)
def test_wrong_arguments_are_refused_or_do_no_harm(op, layout):
    right = dict(RIGHT[op])
    for key in ("relevance", "z"):
        if key in right and layout == torch.channels_last:
            right[key] = right[key].movedim(-3, -1).contiguous().movedim(-1, -3)
    assert hostile.survived(getattr(extension(), op), op, right) > 10


@pytest.mark.parametrize("index", [-1, 60, 2**62])
def test_an_index_outside(index):
    wrong = {**RIGHT["pool_max_relevance"], "index": torch.full((2, 4, 3, 5), index)}
    with pytest.raises(IndexError, match="index"):
        extension().pool_max_relevance(**wrong)


def test_nothing_to_do_needs_no_tables():
    """A map of no samples has no memory, however large the numbers are that describe it."""
    for relevance in (torch.empty(0, 3, 4, 2**31 - 1), torch.empty(2, 0, 4, 2**31 - 1)):
        found = extension().pool_avg_relevance(relevance, None, [2**31 - 1], [2], [1], [0], False, True, None)
        assert found.shape == (*relevance.shape[:3], 2**31 - 1)


def test_the_instruction_set():
    for name in ("", "mmx", "x" * 10**6):
        with pytest.raises(ValueError, match=r"isa: expected .auto. or one that this machine has"):
            extension().set_isa(name)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        extension().set_isa(3)
