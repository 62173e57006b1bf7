"""Wrong arguments for the CUDA functions that make patterns and move rows: errors that name them."""

from __future__ import annotations

import pytest
import torch

from fastlrp.backends.extension import extension
from tests.cuda.emulated import emulated

CPU = extension()
PATTERN = CPU.sparse_pattern([(torch.eye(3).repeat(2, 1, 10)[:, :, :20].view(2, 3, 4, 5), None)])
ROWS = (torch.zeros(40, 16), None, *PATTERN)
INDEX = torch.zeros(2, 3, 4, 5, dtype=torch.long)
RIGHT = {
    "pattern": {"masks": [(torch.ones(2, 3, 4, 5), INDEX)]},
    "from_dense": {"relevance": torch.ones(2, 7, 3, 4, 5), "pattern": PATTERN},
    "to_dense": {"source": ROWS, "batch": 2, "targets": 7, "size": [3, 4, 5]},
    "sum": {"sources": [(*ROWS, None)], "pattern": PATTERN, "batch": 2, "targets": 7},
    "winners": {"index": INDEX, "pooled": PATTERN, "input_size": [8, 10], "kernel_size": [2, 2], "stride": [2, 2],
                "padding": [0, 0], "dilation": [1, 1]},
    "windows": {"wanted": CPU.sparse_pattern([(torch.ones(2, 3, 8, 10), None)]), "pooled": PATTERN, "batch": 2,
                "input_size": [8, 10], "output_size": [4, 5], "kernel_size": [2, 2], "stride": [2, 2],
                "padding": [0, 0]},
    "gather_sum": {"source": ROWS, "starts": torch.arange(41), "rows": torch.arange(40), "targets": 7},
}  # fmt: skip
WRONG = [
    ("pattern", {"masks": []}, ValueError, "no mask given"),
    ("pattern", {"masks": [(torch.ones(3), None)]}, ValueError, r"mask must have shape \(B, C, \*S\), got \[3\]"),
    ("pattern", {"masks": [(torch.ones(2, 3).long(), None)]}, TypeError, "mask must be float16, bfloat16, float32 or"),
    ("pattern", {"masks": [(torch.ones(2, 3).to_sparse(), None)]}, RuntimeError, "mask must be a dense CUDA tensor"),
    ("pattern", {"masks": [(torch.ones(2, 3, device="meta"), None)]}, RuntimeError, "mask must be .* got Strided on m"),
    ("pattern", {"masks": [(torch.ones(2, 3, 4, 5), INDEX.int())]}, TypeError, "index must be int64, got Int"),
    ("pattern", {"masks": [(torch.ones(2, 3, 4, 5), INDEX[0, 0, 0])]}, ValueError, "index must have shape"),
    ("pattern", {"masks": [(torch.ones(2, 3, 4, 5), INDEX[:, :2])]}, ValueError, "masks must have the same shape"),
    (
        "pattern",
        {"masks": [(torch.ones(2, 3), None), (torch.ones(2, 3).half(), None)]},
        TypeError,
        "mask must be Float",
    ),
    ("from_dense", {"relevance": torch.ones(3, 4)}, ValueError, r"relevance must have shape \(B, K, C, \*S\)"),
    ("from_dense", {"relevance": torch.ones(1, 7, 3, 4, 5)}, ValueError, "the pattern has 40 positions, relevance 20"),
    ("from_dense", {"relevance": torch.ones(2, 7, 3, 4, 5).int()}, TypeError, "relevance must be .* got Int"),
    ("from_dense", {"pattern": (PATTERN[0].int(), PATTERN[1])}, TypeError, "int64 offsets and int32 channels, got Int"),
    ("from_dense", {"pattern": (PATTERN[0][::2], PATTERN[1])}, ValueError, "offsets must be contiguous"),
    ("from_dense", {"pattern": (PATTERN[0][:0], PATTERN[1])}, ValueError, "one entry more than there are positions"),
    (
        "from_dense",
        {"pattern": (PATTERN[0], PATTERN[1].to("meta"))},
        RuntimeError,
        "channels must be a dense CUDA tensor, got Strided on meta",
    ),
    ("to_dense", {"targets": 17}, ValueError, r"values must be rows of at least 17 targets, got \[40, 16\]"),
    ("to_dense", {"targets": -7}, ValueError, "batch and targets must not be negative, got 2 and -7"),
    ("to_dense", {"size": []}, ValueError, r"size must be \(C, \*S\), got \(\)"),
    ("to_dense", {"size": [3, 4, 4]}, ValueError, "the pattern has 40 positions, the result 32"),
    ("to_dense", {"source": (ROWS[0].t(), *ROWS[1:])}, ValueError, r"values must be rows .* got \[16, 40\]"),
    ("to_dense", {"source": (ROWS[0][1:], *ROWS[1:])}, ValueError, "values must have 40 rows, got 39"),
    ("to_dense", {"source": (ROWS[0], torch.arange(39), *PATTERN)}, ValueError, "rows must be int64, one per entry"),
    ("sum", {"sources": []}, ValueError, "nothing to add"),
    ("sum", {"targets": -1}, ValueError, "targets must not be negative, got -1"),
    ("sum", {"batch": 7}, ValueError, "40 positions are no whole number for each sample of a batch of 7"),
    ("sum", {"batch": 0}, ValueError, "40 positions are no whole number for each sample of a batch of 0"),
    ("sum", {"sources": [(*ROWS, torch.ones(2, 3, 4, 4))]}, ValueError, r"factor must have shape \(B, C, \*S\), got"),
    ("sum", {"sources": [(*ROWS, torch.ones(2, 3, 4, 5).half())]}, TypeError, "factor must be Float, got Half"),
    ("sum", {"sources": [(ROWS[0], None, PATTERN[0][:-1], PATTERN[1], None)]}, ValueError, "patterns differ in their"),
    ("winners", {"index": INDEX.int()}, TypeError, "index must be int64, got Int"),
    ("winners", {"index": INDEX[:1]}, ValueError, r"the pattern has 40 positions, index has shape \[1, 3, 4, 5\]"),
    ("winners", {"stride": [2, 0]}, ValueError, "stride, dilation and kernel size must be at least 1"),
    ("winners", {"kernel_size": [2]}, ValueError, "must have one entry per spatial axis, at most 3"),
    ("winners", {"input_size": [-8, 10]}, ValueError, "sizes must not be negative, got -8 and 4"),
    ("winners", {"padding": [1 << 31, 0]}, ValueError, "must be below 2\\^31, got sizes"),
    ("winners", {"input_size": [1 << 20, 1 << 12]}, ValueError, "must be below 2\\^31, got sizes"),
    ("windows", {"batch": 1}, ValueError, "patterns have 160 and 40 positions, sizes ask for 80 and 20"),
    ("windows", {"pooled": (PATTERN[0].float(), PATTERN[1])}, TypeError, "int64 offsets and int32 channels, got Float"),
    ("gather_sum", {"starts": torch.arange(41).int()}, ValueError, "starts and rows must be contiguous int64 tensors"),
    ("gather_sum", {"rows": torch.arange(80)[::2]}, ValueError, "starts and rows must be contiguous int64 tensors"),
    (
        "gather_sum",
        {"rows": torch.arange(40).to("meta")},
        RuntimeError,
        "rows must be a dense CUDA tensor, got Strided on meta",
    ),
    ("gather_sum", {"targets": -1}, ValueError, "targets must not be negative, got -1"),
]


@pytest.mark.parametrize(("op", "change", "error", "message"), WRONG)
def test_wrong_arguments(op, change, error, message):
    gpu = emulated()
    getattr(gpu, f"sparse_{op}")(**RIGHT[op])
    with pytest.raises(error, match=f"sparse_{op}: .*{message}"):
        getattr(gpu, f"sparse_{op}")(**{**RIGHT[op], **change})
