"""Wrong arguments of every kind for the CUDA functions, and when they look at a pattern."""

from __future__ import annotations

import pytest
import torch

from fastlrp.backends.extension import extension
from tests import hostile
from tests.cuda.emulated import emulated
from tests.cuda.test_cuda_sparse_pattern_errors import INDEX, PATTERN, RIGHT, ROWS
from tests.ops.test_hostile_arguments import MAP, RELEVANCE, WINDOWS
from tests.ops.test_hostile_arguments import RIGHT as POOLS

INPUT = {"input_size": [4, 6], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "reduce": False}
OTHERS = {
    "elementwise_pooled_coefficients": {
        "z": MAP, "positive": MAP, "negative": MAP, "rule": "gamma", "alpha": 0.25, "epsilon": 1e-6, **WINDOWS,
        "dilation": [1, 1], "ceil_mode": True,
    },
    "input_relevance": {
        "relevance": RELEVANCE, "weights": [torch.ones(4, 3, 2, 2)], "coefficients": [MAP],
        "multipliers": [torch.ones(2, 3, 4, 6)], "groups": 1, **INPUT,
    },
    "input_flat_relevance": {"relevance": RELEVANCE, "u": MAP, "channels": 3, "kernel_size": [2, 2], **INPUT},
}  # fmt: skip
CONV = {
    "arriving": (ROWS[0], torch.arange(40), *PATTERN), "batch": 2, "targets": 7,
    "coefficients": [torch.ones(2, 3, 4, 5)], "weights": [torch.ones(1, 9, 3, 4)], "channels_per_group": [3, 4],
    "leaving": extension().sparse_pattern([(torch.ones(2, 4, 4, 5), None)]), "input_size": [4, 5],
    "output_size": [4, 5], "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
    "transposed": False, "channels": None, "factors": [], "initial": [], "other": None,
}  # fmt: skip
SPARSE = {f"sparse_{name}": arguments for name, arguments in RIGHT.items()}
# Attention and recurrence have C++ kernels for CPUs alone.
SHARED = {name: arguments for name, arguments in POOLS.items() if not name.startswith(("attention", "recurrence"))}
ALL = {**SHARED, **OTHERS, **SPARSE, "sparse_conv_relevance": CONV, "sparse_pack": {"weight": torch.ones(1, 3, 4, 9)}}


@pytest.mark.parametrize("op", ALL)
def test_wrong_arguments_are_refused_or_do_no_harm(op):
    assert hostile.survived(getattr(emulated(), op), op, ALL[op]) > 10


def test_a_pattern_from_elsewhere_is_looked_at_once():
    gpu = emulated()
    offsets, channels = PATTERN[0].clone(), PATTERN[1].clone()
    values = torch.ones(40, 16)

    def waits():
        before = gpu.reads_on_host()
        gpu.sparse_to_dense((values, None, offsets, channels), 2, 7, [3, 4, 5])
        return gpu.reads_on_host() - before

    assert waits() > 0
    assert waits() == 0
    channels[3] += 0  # What is written is looked at again.
    assert waits() > 0
    channels[3] = 3
    with pytest.raises(ValueError, match=r"source cannot be followed: channels must be in \[0, 3\), got 3 at entry 3"):
        waits()
    with torch.inference_mode():  # No counter says whether it was written.
        offsets, channels = PATTERN[0].clone(), PATTERN[1].clone()
    assert waits() > 0
    assert waits() > 0


def test_a_pattern_of_ours_is_known():
    gpu = emulated()
    for mode in (False, True):
        with torch.inference_mode(mode):
            pattern = gpu.sparse_pattern([(torch.ones(2, 3, 4, 5), None)])
            before = gpu.reads_on_host()
            rows = gpu.sparse_from_dense(torch.ones(2, 7, 3, 4, 5), pattern)
            gpu.sparse_to_dense((rows, None, *pattern), 2, 7, [3, 4, 5])
            assert gpu.reads_on_host() == before


def test_what_an_index_names_outside_is_dead():
    values = torch.ones(2, 3, 4, 5)
    for index in (-1, 20, 2**62):
        offsets, channels = emulated().sparse_pattern([(values, torch.full_like(INDEX, index))])
        assert channels.numel() == 0
        assert not offsets.any()
