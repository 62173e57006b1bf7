"""Tensors of more than 2^31 elements: the last targets are those that they are when asked alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.gpu.cases import DEVICE, bound

pytestmark = pytest.mark.gpu

LIMIT = 1 << 31
HALF = torch.bfloat16
LAST = 3


@pytest.fixture(autouse=True)
def alone(poisoned, tmp_path_factory) -> Iterator[None]:
    """One at a time, whoever else runs tests on this device; and filling gigabytes with NaN is not what is tested."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    path = tmp_path_factory.getbasetemp().parent / "fastlrp-large.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()


def needs(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes:g} GB of free device memory, there are {free / 1e9:.1f}")


def noise(*shape: int) -> Tensor:
    """In the dtype at once: a float32 copy of these would be twice as large."""
    return torch.empty(shape, dtype=HALF, device=DEVICE).uniform_(-1, 1)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(2, -1).contiguous().movedim(-1, 2)


def same_at_both_ends(whole: Tensor, first: Tensor, last: Tensor) -> None:
    """Another number of targets may sum up in another order: one rounding of the result."""
    for part, alone in ((whole[:, :LAST], first), (whole[:, -LAST:], last)):
        assert part.isfinite().all()
        error = (part.double() - alone.double()).norm() / alone.double().norm()
        assert error <= 2.0**-8
    assert whole.numel() >= LIMIT


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_max_pool(backend, last):
    needs(16)
    K, C = 700, 64
    call = bound("pool_max_relevance", backend, HALF)
    _, index = F.max_pool2d(noise(1, C, 224, 224), 2, return_indices=True)
    relevance = noise(1, K, C, 112, 112)
    relevance = channels_last(relevance) if last else relevance
    parts = [call(r.clone(), index, None, [224, 224]) for r in (relevance[:, :LAST], relevance[:, -LAST:])]
    same_at_both_ends(call(relevance, index, None, [224, 224]), *parts)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_average_pool(backend):
    needs(16)
    K, C = 700, 64
    call = bound("pool_avg_relevance", backend, HALF)
    rest = (None, [224, 224], [2, 2], [2, 2], [0, 0], False, True, None)
    relevance = noise(1, K, C, 112, 112)
    parts = [call(r.clone(), *rest) for r in (relevance[:, :LAST], relevance[:, -LAST:])]
    same_at_both_ends(call(relevance, *rest), *parts)


def test_conv():
    needs(24)
    K, C = 700, 64
    call = bound("conv_relevance", "triton", HALF)
    weight, u = noise(C, C, 3, 3), noise(1, C, 224, 224)
    rest = (weight, u, None, None, None, [224, 224], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, False, False)
    relevance = noise(1, K, 224, 224, C).movedim(-1, 2)
    parts = [call(r.clone(), *rest) for r in (relevance[:, :LAST], relevance[:, -LAST:])]
    same_at_both_ends(call(relevance, *rest), *parts)


def test_linear():
    needs(12)
    K, O, I = 530_000, 16, 4096
    call = bound("linear_relevance", "triton", HALF)
    weight, u, relevance = noise(O, I), noise(1, O), noise(1, K, O)
    rest = (weight, u, None, None, None, False, False)
    parts = [call(r.clone(), *rest) for r in (relevance[:, :LAST], relevance[:, -LAST:])]
    same_at_both_ends(call(relevance, *rest), *parts)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_coefficients(backend):
    needs(20)
    call = bound("elementwise_coefficients", backend, HALF)
    z = noise(LIMIT + 4099)
    rest = (None, None, None, "epsilon", 1.0, 0.5)
    whole = call(z, *rest)[0]
    for part in (slice(0, 5000), slice(-5000, None)):
        assert torch.equal(whole[part], call(z[part].clone(), *rest)[0])


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_unpooling_at_the_input(backend):
    """A reduced map is small; what it is computed from is not."""
    needs(16)
    K, C = 700, 64
    call = bound("input_relevance", backend, HALF)
    weight, u = noise(C, 3, 3, 3), noise(1, C, 224, 224)
    rest = ([weight], [u], [None], [224, 224], [1, 1], [1, 1], [1, 1], 1, True)
    relevance = noise(1, K, 224, 224, C).movedim(-1, 2)
    whole = call(relevance, *rest)
    for part in (slice(0, LAST), slice(K - LAST, K)):
        alone = call(relevance[:, part].clone(), *rest)
        assert (whole[:, part].double() - alone.double()).norm() <= 2.0**-8 * alone.double().norm()
    assert relevance.numel() >= LIMIT
