"""Pools: any geometry, one to three axes, every dtype."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.gpu.cases import BACKENDS, DEVICE, NAMES, bound, cast, check, relative
from tests.ops.cases import mixed
from tests.ops.pools import ALL, AVERAGES, MAX, POOLS, Pool, arguments

pytestmark = pytest.mark.gpu

FLOAT = torch.float32
# Rows beyond a block of threads, channels that are no multiple of a vector, many targets.
MORE = [
    Pool((28, 28), C=64, K=33, B=1), Pool((35, 33), kernel=3, stride=2, padding=1, C=65, K=7),
    Pool((2, 2), C=513, K=3), Pool((8, 8), C=8, K=260, B=1), Pool((301,), kernel=3, stride=2, padding=1, C=5),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [*POOLS, *MORE], ids=str)
@pytest.mark.parametrize("op", ALL[:2])
def test_winners_and_ties(op, p, backend, name):
    r, *rest = arguments(op, p, FLOAT)
    check(op, backend, name, (r, *rest), layouts=None)
    without = [None if i == len(rest) - 1 - _after_scale(op) else item for i, item in enumerate(rest)]
    check(op, backend, name, (r, *without))


def _after_scale(op: str) -> int:
    """Arguments behind the scale."""
    return 1 if op == MAX else 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("p", "include", "divisor"), AVERAGES, ids=str)
def test_averages(p, include, divisor, backend, name):
    kernel, stride, padding, _ = p.lists()
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(p.S)]
    shape = pool(torch.zeros(1, 1, *p.S), kernel, stride, padding, p.ceil_mode).shape[2:]
    r = mixed(p.B, p.K, p.C, *shape, dtype=FLOAT)
    rest = (list(p.S), kernel, stride, padding, p.ceil_mode, include, divisor)
    for scale in (None, mixed(p.B, p.C, *shape, dtype=FLOAT)):
        check("pool_avg_relevance", backend, name, (r, scale, *rest), layouts=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("out", "S"),
    [((1, 1), (7, 5)), ((3, 2), (7, 5)), ((7, 5), (7, 5)), ((4, 4), (3, 2)), ((3,), (7,)), ((1, 2, 3), (2, 5, 4))],
)
def test_adaptive(out, S, backend, name):
    for B, K, C in ((2, 3, 3), (1, 1, 1), (0, 2, 3), (2, 0, 3), (1, 40, 70)):
        r = mixed(B, K, C, *out, dtype=FLOAT)
        for scale in (None, mixed(B, C, *out, dtype=FLOAT)):
            check("pool_adaptive_avg_relevance", backend, name, (r, scale, list(S)), layouts=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ALL)
def test_strided_first_axes(op, backend):
    r, *rest = cast(arguments(op, Pool((6, 8), C=5), FLOAT), FLOAT, DEVICE)
    one = r[:, :1].expand(-1, 4, -1, -1, -1)
    call = bound(op, backend, FLOAT)
    for flow in (r[:, ::2], r[:, 1:], one, r.transpose(0, 1).contiguous().transpose(0, 1)):
        expected = call(flow.contiguous(), *rest)
        assert relative(call(flow, *rest), expected.double().cpu()) <= 1e-6


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("op", ALL)
def test_the_same_every_time(op, backend):
    """No result depends on which thread came first."""
    given = cast(arguments(op, Pool((33, 31), kernel=3, stride=1, padding=1, C=67, K=9), FLOAT), FLOAT, DEVICE)
    call = bound(op, backend, FLOAT)
    first = call(*given)
    assert all(torch.equal(call(*given), first) for _ in range(5))
