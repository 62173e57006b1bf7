"""Attention and norms on the GPU: small hostile shapes, and heads of every width that kernels have tiles for."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.cases import BACKENDS, DEVICE, PRODUCTS, bound, cast, check
from tests.ops.attention_cases import CASES, OPS, RELEVANCE, arguments
from tests.ops.test_ops_norm import OP as NORM
from tests.ops.test_ops_norm import SHAPES, gains
from tests.ops.test_ops_recurrence import FORMS
from tests.ops.test_ops_recurrence import OP as RECURRENCE
from tests.ops.test_ops_recurrence import SHAPES as WALKS
from tests.ops.test_ops_recurrence import arguments as walk

pytestmark = pytest.mark.gpu

# Masks that leave rows empty have a log-sum-exp of -inf, which the comparison does not take.
SMALL = [case for case in CASES if case[9] not in ("rows", "bool", "keys") and 0 not in case[:8]]
# B, K, H, G, S, T, D, E; causal, mask, cap, epsilon
LARGE = [
    (2, 5, 4, 4, 197, 197, 64, 64, False, None, 0.0, 0.0),
    (1, 1, 2, 2, 1024, 1024, 64, 64, True, None, 0.0, 0.0),
    (1, 3, 8, 2, 130, 257, 128, 128, True, "bias", 0.0, 0.0),
    (1, 2, 4, 1, 300, 300, 256, 256, True, "window", 50.0, 0.0),
    (2, 4, 3, 3, 129, 65, 80, 48, False, "alibi", 30.0, 0.05),
]
NORMS = [shape for shape in SHAPES if 0 not in shape and shape[3] > 1]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [*SMALL, *LARGE], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_attention(op, case, backend, name):
    if op == RELEVANCE and case[5] == 1:
        pytest.skip("with one key the scores' relevance is rounding alone")
    check(op, backend, name, arguments(case, torch.float32)[op], layouts=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_attend_to_nothing_are_zero(backend):
    case = next(case for case in CASES if case[9] == "rows")
    given = arguments(case, torch.float32)
    here = [cast(given[op], torch.float32, DEVICE) for op in OPS]
    output, log_sum = bound(OPS[0], backend, torch.float32)(*here[0])
    empty = given[RELEVANCE][5].isneginf()
    assert empty.any()
    assert torch.equal(log_sum.isneginf().cpu(), empty)
    assert not output.cpu()[empty].any()
    c_query, *others = bound(RELEVANCE, backend, torch.float32)(*here[1])
    assert not c_query.cpu().movedim(1, 0)[:, empty].any()
    assert all(c.isfinite().all() for c in others)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_the_same_each_time(backend):
    here = cast(arguments(LARGE[2], torch.float32)[RELEVANCE], torch.float32, DEVICE)
    call = bound(RELEVANCE, backend, torch.float32)
    for first, second in zip(call(*here), call(*here), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [*NORMS, (2, 5, (197,), 768), (1, 3, (7,), 8200)], ids=str)
def test_norm(shape, backend, name):
    B, K, L, N = shape
    for gain in gains(B, L, N, torch.float32):
        for centre in (False, True):
            inverse = torch.rand(B, *L, 1) + 0.5
            check(NORM, backend, name, (torch.randn(B, K, *L, N), gain, inverse, centre), layouts=1)


@pytest.mark.parametrize("form", FORMS)
def test_recurrence(form):
    for shape in (*WALKS, (2, 33, 20, 256, 256, 1), (1, 5, 9, 70, 130, 1)):
        check(RECURRENCE, "triton", "float32", tuple(walk(shape, form, torch.float32)), layouts=1)
