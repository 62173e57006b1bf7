"""Operations one by one, on the calls that real models make: every backend that can, for one target and for a block.

    python -m pytest benchmarks --benchmark-only
    python -m pytest benchmarks --benchmark-only --ops conv_relevance --ops-models vgg16 --ops-full

The definition (``reference``) is what each result is checked with before it is timed. It is not timed itself: it
computes in float64 and is slow on purpose, so that its time says nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import shapes
from fastlrp.backends import dispatch

TOLERANCE = 1e-5


@pytest.mark.benchmark(min_rounds=3, max_time=0.5)
def test_operation(call: shapes.Call, targets: int, backend: str, benchmark: Any) -> None:
    with torch.no_grad():
        error = shapes.error(call, backend)
        assert error <= TOLERANCE, f"{backend} differs from the definition by {error:.1e}"
        run = dispatch.select(call.op, backend, shapes.CPU, torch.float32).call
        arguments = call.arguments(targets)
        benchmark.group = f"{call.op}: {call}, K = {targets}"
        benchmark.extra_info.update(threads=torch.get_num_threads(), error=error, model=call.model, targets=targets)
        benchmark(run, *arguments)
