"""Where and when kernels run: the current stream and device, in CUDA graphs, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as tree

from tests.gpu.cases import BACKENDS, DEVICE, OWN, bound, cast, home, relative, samples

pytestmark = pytest.mark.gpu

FLOAT = torch.float32
SAMPLES = samples()
LATE = 50_000_000
"""Clock ticks that a stream sleeps before it fills an operation's arguments: some 30 ms."""

each_sample = pytest.mark.parametrize("number", range(len(SAMPLES)), ids=lambda n: f"{n}-{SAMPLES[n][0]}")


def blank(given: Any) -> Any:
    """Memory for the arguments with nothing right in it: NaN, or index 0."""
    return tree.tree_map(
        lambda t: torch.full_like(t, torch.nan if t.is_floating_point() else 0) if isinstance(t, Tensor) else t, given
    )


def fill(places: Any, given: Any) -> None:
    for place, source in zip(tree.tree_leaves(places), tree.tree_leaves(given), strict=True):
        if isinstance(place, Tensor):
            place.copy_(source, non_blocking=True)


def expected_of(call: Any, given: Any) -> Any:
    found = call(*given)
    torch.cuda.synchronize()
    return home(found)


@pytest.mark.parametrize("backend", BACKENDS)
@each_sample
def test_the_current_stream(number, backend):
    """Arguments that become right late on a side stream: who launches elsewhere reads NaN."""
    op, arguments = SAMPLES[number]
    given = cast(arguments, FLOAT, DEVICE)
    call = bound(op, backend, FLOAT)
    expected = expected_of(call, given)
    places, side = blank(given), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LATE)
        fill(places, given)
        got = call(*places)
    side.synchronize()
    assert relative(got, expected) <= 1e-6


@pytest.mark.parametrize("backend", OWN)
@each_sample
def test_two_streams_at_once(number, backend):
    op, arguments = SAMPLES[number]
    call = bound(op, backend, FLOAT)
    first = cast(arguments, FLOAT, DEVICE)
    second = tree.tree_map(lambda t: t * 2 if isinstance(t, Tensor) and t.is_floating_point() else t, first)
    expected = [expected_of(call, given) for given in (first, second)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    got: list[list[Any]] = [[], []]
    for _ in range(20):
        for which, (stream, given) in enumerate(zip(streams, (first, second), strict=True)):
            with torch.cuda.stream(stream):
                got[which].append(call(*given))
    torch.cuda.synchronize()
    for which in range(2):
        assert max(relative(result, expected[which]) for result in got[which]) <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@each_sample
def test_a_device_that_is_not_the_current_one(number, backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device; this needs two")
    op, arguments = SAMPLES[number]
    call = bound(op, backend, FLOAT)
    expected = expected_of(call, cast(arguments, FLOAT, DEVICE))
    other = torch.device("cuda", 1)
    given = cast(arguments, FLOAT, other)
    with torch.cuda.device(0):
        got = call(*given)
        assert torch.cuda.current_device() == 0
    assert all(t.device == other for t in tree.tree_leaves(got) if isinstance(t, Tensor))
    assert relative(got, expected) <= 1e-6


@pytest.mark.parametrize("backend", OWN)
@each_sample
def test_graph_capture(number, backend):
    """Recorded once, right for other numbers in the same memory."""
    op, arguments = SAMPLES[number]
    call = bound(op, backend, FLOAT)
    given = cast(arguments, FLOAT, DEVICE)
    places = tree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, given)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call(*places)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(*places)
    changed = tree.tree_map(lambda t: t * 0.5 if isinstance(t, Tensor) and t.is_floating_point() else t, given)
    expected = expected_of(call, changed)
    fill(places, changed)
    graph.replay()
    torch.cuda.synchronize()
    assert relative(got, expected) <= 1e-6


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whoever waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", OWN)
@each_sample
def test_nobody_waits(number, backend, dtype):
    op, arguments = SAMPLES[number]
    call = bound(op, backend, dtype)
    given = cast(arguments, dtype, DEVICE)
    call(*given)  # compiles, or loads
    with no_waiting():
        call(*given)


def test_waiting_would_be_noticed():
    x = torch.ones(3, device=DEVICE)
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


def in_one_graph(number: int, compiler: str) -> None:
    op, arguments = SAMPLES[number]
    given = cast(arguments, FLOAT, DEVICE)
    call = getattr(torch.ops.fastlrp, op)

    def run(*given: Any) -> Any:
        found = call(*given)
        return [part * 2 for part in found] if isinstance(found, (tuple, list)) else found * 2

    expected = home(run(*given))
    torch._dynamo.reset()
    assert relative(torch.compile(run, fullgraph=True, backend=compiler)(*given), expected) <= 1e-6


@each_sample
def test_compiled_in_one_graph(number):
    """torch.compile takes an operation as it is, between others: its fake says what it returns."""
    in_one_graph(number, "aot_eager")


@pytest.mark.parametrize("op", ["linear_relevance", "conv_relevance", "pool_max_relevance", "elementwise_coefficients"])
def test_compiled_by_inductor(op):
    in_one_graph(next(n for n, (name, _) in enumerate(SAMPLES) if name == op), "inductor")
