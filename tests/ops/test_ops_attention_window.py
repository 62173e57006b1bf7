"""Tiles of attention that a sliding window hides cost the C++ kernel a look at the mask, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastlrp import functional
from fastlrp.backends.extension import extension_error

pytestmark = pytest.mark.skipif(extension_error() is not None, reason="the C++ extension is not built")


def case(length: int, window: int, targets: int) -> tuple[Any, ...]:
    query, key, value = torch.randn(3, 1, 1, length, 64)
    i, j = torch.arange(length).unsqueeze(1), torch.arange(length)
    return query, key, value, torch.randn(1, targets, 1, length, 64), (j <= i) & (j > i - window)


@pytest.mark.parametrize("bias", [False, True])
def test_hidden_tiles_are_not_read(bias: bool) -> None:
    """Keys that nobody attends to may hold anything: here NaN, which any product would pass on."""
    query, key, value, g, window = case(1024, 100, 2)
    window = window & (torch.arange(1024) >= 512)  # The first two tiles of keys are hidden to all.
    mask = torch.where(window, torch.randn(1024, 1024), -torch.inf) if bias else window
    output, log_sum = functional.attention_forward(query, key, value, mask, scale=0.1, backend="reference")
    expected = functional.attention_relevance(
        g, query, key, value, output, log_sum, mask, scale=0.1, backend="reference"
    )
    for t in (key, value):
        t[:, :, :512] = torch.nan
    found = functional.attention_relevance(g, query, key, value, output, log_sum, mask, scale=0.1, backend="cpu")
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-4)


def test_a_window_costs_its_width(one_thread: None) -> None:
    """4,096 positions, a window of 128: 31 of 256 tiles. Measured: 0.15 of the processor time of all."""
    query, key, value, g, window = case(4096, 128, 2)
    seconds = []
    for mask in (window, torch.ones_like(window)):
        given = g, query, key, value, value, torch.full((1, 1, 4096), 8.0), mask
        seconds.append(fastest(lambda given=given: functional.attention_relevance(*given, scale=0.125, backend="cpu")))
    assert seconds[0] < seconds[1] / 5, seconds


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fastest(run: Callable[[], Any]) -> float:
    """Processor seconds of this thread, the least of three."""
    found = []
    for _ in range(3):
        begun = time.thread_time()
        run()
        found.append(time.thread_time() - begun)
    return min(found)
