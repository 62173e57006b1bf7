"""Convolutions in 16 bits over maps that are shorter than the stride, which oneDNN reads beyond their ends.

PyTorch 2.13 on a CPU with AVX-512: a signal, or numbers from foreign memory. They run in a process of their own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent

# Transposed layers whose output (a last axis of 1 or 2) is shorter than the stride (4): what their relevance goes
# through is a plain convolution of it. kernel, stride, dilation, padding, output_padding, input size, channels, groups.
CASES = {
    "2d": ([3, 1], [2, 4], [3, 3], [2, 2], [1, 1], [4, 2], 16, 1),
    "2d, groups": ([3, 1], [2, 4], [3, 3], [2, 2], [1, 1], [4, 2], 64, 4),
    "3d": ([2, 4, 1], [3, 4, 4], [1, 1, 3], [0, 2, 2], [0, 3, 1], [1, 3, 2], 16, 1),
}
CODE = """
import torch
from fastlrp.aten.conv import conv_relevance
torch.set_num_threads(1)
torch.manual_seed(0)
for name, (kernel, stride, dilation, padding, extra, size, channels, groups) in {cases}.items():
    print(name, flush=True)
    n = len(size)
    memory = torch.channels_last if n == 2 else torch.channels_last_3d
    weight = torch.randn(channels, channels // groups, *kernel).contiguous(memory_format=memory)
    made = torch.convolution(
        torch.zeros(1, channels, *size), weight, None, stride, padding, dilation, True, extra, groups
    ).shape[2:]
    assert any(m < s for m, s in zip(made, stride)), made
    u, relevance = torch.randn(1, channels, *made), torch.randn(1, 3, channels, *made)
    for dtype, bound in ((torch.bfloat16, 0.02), (torch.float16, 0.003)):
        found, expected = (
            conv_relevance(
                relevance.to(dtype).to(t), weight.to(dtype).to(t), u.to(dtype).to(t), None, None, None, size, stride,
                padding, dilation, True, extra, groups, False, False,
            )
            for t in (dtype, torch.float32)
        )
        assert found.dtype == dtype
        assert (found.float() - expected).norm() <= bound * expected.norm(), (dtype, found, expected)
"""


def test_relevance_through_transposed_layers():
    done = subprocess.run([sys.executable, "-c", CODE.format(cases=CASES)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode} in the last of {done.stdout}: {done.stderr[-2000:]}"
    assert done.stdout.splitlines() == list(CASES)
