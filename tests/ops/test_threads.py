"""Kernels on PyTorch's threads: results do not depend on how many, nor on who else calls."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from fastlrp.backends.cpu import cpu_ops
from tests.ops.cases import bound, channels_last, relayouts


def work() -> list[tuple[str, tuple[object, ...]]]:
    """Arguments large enough for every kernel to use several threads."""
    torch.manual_seed(0)
    r, scale = torch.randn(2, 5, 70, 17, 16), torch.rand(2, 70, 17, 16)
    index = torch.randint(0, 34 * 33, scale.shape)
    x = torch.randint(-2, 2, (2, 70, 34, 33)).float()
    size, geometry = [34, 33], ([2, 2], [2, 2], [0, 0])
    pools = [
        ("pool_max_relevance", (r, index, scale, size)),
        ("pool_ties_relevance", (r, x, F.max_pool2d(x, 2), scale, *geometry, [1, 1])),
        ("pool_avg_relevance", (r, scale, size, *geometry, False, True, None)),
        ("pool_adaptive_avg_relevance", (r, scale, size)),
    ]
    z = torch.randn(3, 50, 41, 37)
    g, q, k = torch.randn(1, 5, 2, 150, 8), torch.randn(1, 2, 150, 8), torch.randn(1, 1, 170, 8)
    scores = (None, True, 0.3, 0.0)
    output, log_sum = bound("attention_forward", "torch", torch.float32)(q, k, k, *scores)
    steps, entry, weight = torch.randn(2, 31, 5, 40), torch.randn(2, 5, 40), torch.randn(40, 40) / 6
    return [
        *pools,
        *[(op, relayouts(given, channels_last(2), channels_last(1))) for op, given in pools],
        *[
            ("elementwise_coefficients", (z, z.clamp(min=0), z.clamp(max=0), z.clamp(min=0), rule, 2.0, 1e-6))
            for rule in ("epsilon", "zplus", "gamma")
        ],
        # Two query heads with one key head: each thread has some of the targets.
        ("attention_relevance", (g, q, k, k, output, log_sum, *scores, 0.25, 0.25, 0.5, 0.0)),
        ("attention_value_relevance", (g, q, k, log_sum, *scores)),
        ("norm_relevance", (torch.randn(2, 5, 150, 96), torch.rand(96), torch.rand(2, 150, 1), True)),
        ("recurrence_relevance", (steps, None, weight, entry, entry, entry, entry.unsqueeze(2), *[None] * 6)),
    ]


def results(work: list[tuple[str, tuple[object, ...]]]) -> list[torch.Tensor]:
    made = []
    for op, arguments in work:
        result = bound(op, "cpu", torch.float32)(*arguments)
        made += [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]
    return made


def identical(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_kernel_is_here():
    assert {op for op, _ in work()} == set(cpu_ops())


@pytest.mark.usefixtures("threads")
def test_bit_identical_for_any_number_of_threads():
    arguments = work()
    torch.set_num_threads(1)
    expected = results(arguments)
    for number in (2, 3, 8):
        torch.set_num_threads(number)
        assert identical(results(arguments), expected)


def test_several_callers_at_once():
    arguments = work()
    expected = results(arguments)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: results(arguments), range(8)):
            assert identical(got, expected)


@pytest.mark.usefixtures("threads")
def test_an_error_in_another_thread_arrives():
    torch.set_num_threads(2)
    r, index = torch.ones(1, 64, 64, 16, 16), torch.zeros(1, 64, 16, 16, dtype=torch.int64)
    index[0, 63, 15, 15] = 1024
    for _ in range(3):
        with pytest.raises(IndexError, match="got 1024"):
            bound("pool_max_relevance", "cpu", torch.float32)(r, index, None, [32, 32])
    index[0, 63, 15, 15] = 1023
    assert bound("pool_max_relevance", "cpu", torch.float32)(r, index, None, [32, 32]).sum() == r.numel()
