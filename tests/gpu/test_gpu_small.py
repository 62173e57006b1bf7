"""One or more small calls of every operation by every backend of ours: what compute-sanitizer watches.

The definition computes on the CPU, so that few kernels but ours run on the GPU.
"""

from __future__ import annotations

import pytest
import torch

from tests.gpu import smoke_sparse
from tests.gpu.cases import DEVICE, OWN, bound, cast, relative, samples
from tests.ops.cases import reference

pytestmark = pytest.mark.gpu

SAMPLES = samples()
# One rounding of the result, and what a few dozen products of rounded numbers lose.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("number", range(len(SAMPLES)), ids=lambda n: f"{n}-{SAMPLES[n][0]}")
def test_small(number, backend, dtype):
    op, arguments = SAMPLES[number]
    given = cast(arguments, dtype)
    call = bound(op, backend, dtype)
    expected = reference(op)(*cast(given, torch.float64))
    got = call(*cast(given, dtype, DEVICE))
    assert relative(got, expected) <= LIMITS[dtype]


@pytest.mark.parametrize(
    ("name", "run"), list(smoke_sparse.cases()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_small_sparse(name, run):
    """Living neurons only: patterns, rows, sums, products of every tile."""
    run()
