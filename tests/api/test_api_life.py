"""Threads, exceptions, and what a record holds on to."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import Explainer, composites, rules
from tests.api.models import make, relative_error, samples, shared

# Float64; threads give PyTorch buffers of other alignment, so not bit for bit. Measured: 3e-16.
TIGHT = 1e-12


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


# Threads


@pytest.mark.parametrize("lrp_aware", [True, False])
def test_threads_on_one_record(lrp_aware):
    explainer, x = Explainer(make("convnet"), "gamma"), samples("convnet")
    expected = shared("convnet", "gamma")(x, "all", layers="all")
    questions = [[0], [1, 2], [4, 3, 2], "all", [2, 2]] * 6
    barrier = threading.Barrier(6)

    def ask(part):
        barrier.wait()
        return [(q, record.relevance(q, layers=layers)) for q, layers in part]

    with explainer.forward(x, lrp_aware=lrp_aware) as record, ThreadPoolExecutor(6) as pool:
        work = [(q, None if i % 3 else ["0", "3"]) for i, q in enumerate(questions)]
        for answers in pool.map(ask, [work[i::6] for i in range(6)]):
            for question, found in answers:
                classes = list(range(5)) if question == "all" else question
                named = found if isinstance(found, dict) else {"input": found}
                for layer, relevance in named.items():
                    assert relative_error(relevance, expected[layer][:, classes]) <= TIGHT, layer


def test_threads_on_one_explainer(counts):
    explainer = Explainer(make("convnet"))
    inputs = [samples("convnet", 1 + i % 3, seed=i) for i in range(12)]
    serial = [shared("convnet")(x, "top2") for x in inputs]
    counts.captured = 0
    barrier = threading.Barrier(6)

    def ask(part):
        barrier.wait()
        return [explainer(x, "top2") for x in part]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, [inputs[i::6] for i in range(6)]))
    for i, answers in enumerate(found):
        for answer, expected in zip(answers, serial[i::6], strict=True):
            assert relative_error(answer, expected) <= TIGHT
    assert counts.captured == 1, "the others wait for the one that captures"


def test_threads_that_capture_at_the_same_time():
    """torch.export changes global state while it traces; several models at once must not meet there."""
    names = ["convnet", "residual", "mlp", "spatial"] * 2
    models = [make(name) for name in names]
    barrier = threading.Barrier(len(names))

    def ask(item):
        barrier.wait()
        name, model = item
        return fastlrp.explain(model, samples(name), [1, 0])

    with ThreadPoolExecutor(len(names)) as pool:
        for name, found in zip(names, pool.map(ask, zip(names, models, strict=True)), strict=True):
            assert relative_error(found, shared(name)(samples(name), [1, 0])) <= TIGHT


# Exceptions


class Failing(rules.Custom):
    """Epsilon, until it is told to fail."""

    def __init__(self) -> None:
        self.fails = False

    def propagate(self, forward, inputs, output, relevance):
        if self.fails:
            raise ZeroDivisionError("a rule of the user's")
        with torch.enable_grad():
            x = inputs[0].detach().requires_grad_()
            z = forward(x)
            parts = [torch.autograd.grad(z, x, relevance[:, k] / z.detach(), retain_graph=True)[0] * x.detach()
                     for k in range(relevance.shape[1])]  # fmt: skip
        return (torch.stack(parts, 1),)


@pytest.fixture
def failing():
    rule = Failing()
    composite = composites.epsilon_plus().with_entries((composites.first(), rule))
    return rule, Explainer(make("convnet"), composite, example_inputs=samples("convnet"))


@pytest.mark.slow
@pytest.mark.parametrize("lrp_aware", [True, False])
def test_an_exception_leaves_nothing_behind_and_the_record_works(failing, lrp_aware):
    rule, explainer = failing
    x = samples("convnet")
    expected = explainer(x, "all")
    with explainer.forward(x, lrp_aware=lrp_aware) as record:
        record.relevance("all")
        before, size = live_tensors(), record.cached_bytes
        rule.fails = True
        failed = 0
        for layers in (None, "all"):
            try:  # pytest.raises would keep the traceback, and with it every frame's tensors.
                record.relevance("all", layers=layers)
            except ZeroDivisionError:
                failed += 1
        assert failed == 2
        assert live_tensors() <= before
        assert record.cached_bytes == size
        rule.fails = False
        assert torch.equal(record.relevance("all"), expected)


@pytest.mark.slow
def test_an_exception_inside_a_call_closes_its_record(failing):
    rule, explainer = failing
    x = samples("convnet")
    explainer(x, "all")
    before = live_tensors()
    rule.fails = True
    failed = 0
    for question in ({}, {"out": np.zeros((2, 5, 3, 8, 8))}, {"layers": "all"}, {"out": np.zeros(3)}, {"reduce": "x"}):
        try:
            explainer(x, "all", **question)
        except (ZeroDivisionError, ValueError):
            failed += 1
    assert failed == 5
    assert live_tensors() <= before


def test_an_exception_inside_with_closes():
    with pytest.raises(KeyError), shared("convnet").forward(samples("convnet")) as record:
        raise KeyError("the user's own")
    with pytest.raises(RuntimeError, match="this record is closed"):
        record.relevance(0)


def test_an_error_in_one_thread_is_not_anothers(failing):
    _, explainer = failing
    x = samples("convnet")
    expected = explainer(x, "all")
    results = []
    with explainer.forward(x) as record:

        def bad():
            for _ in range(20):
                try:
                    record.relevance(99)
                except IndexError:
                    results.append("refused")

        def good():
            for _ in range(20):
                results.append(relative_error(record.relevance("all"), expected) <= TIGHT)

        threads = [threading.Thread(target=f) for f in (bad, good, bad, good)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results.count("refused") == 40
    assert results.count(True) == 40


# Life of a record


@pytest.mark.slow
def test_close_frees():
    explainer, x = shared("convnet"), samples("convnet", 3)
    explainer(x, 0)
    before = live_tensors()
    record = explainer.forward(x)
    held = live_tensors() - before
    assert held > 5
    assert record.cached_bytes > x.nbytes + record.output.nbytes
    record.close()
    # The record's own: its inputs, the output and the scores, which are one tensor here.
    assert live_tensors() - before <= 3
    output = record.output
    assert relative_error(output, make("convnet")(x).detach()) <= TIGHT
    record.close()
    for use in (
        lambda: record.relevance(0),
        lambda: next(record.stream("all")),
        lambda: record.cached_bytes,
    ):
        with pytest.raises(RuntimeError, match=r"this record is closed: call explainer.forward\(x\) again"):
            use()


def test_a_dropped_record_is_freed():
    record = shared("convnet").forward(samples("convnet"))
    record.relevance([0, 1])
    gone = weakref.ref(record)
    del record
    gc.collect()
    assert gone() is None


def test_a_closed_stream_stops():
    with shared("convnet").forward(samples("convnet")) as record:
        stream = record.stream("all", block=2)
        next(stream)
    with pytest.raises(RuntimeError, match="this record is closed"):
        next(stream)


def test_a_dropped_explainer_is_freed():
    model = make("convnet")
    explainer = Explainer(model, example_inputs=samples("convnet"))
    explainer(samples("convnet"), 0)
    gone = weakref.ref(explainer), weakref.ref(model)
    del explainer, model
    gc.collect()
    assert gone[0]() is None
    assert gone[1]() is None


def test_cached_bytes_counts_what_is_cached():
    """A linear layer of 1000 by 1000, batch 10: input, output and one coefficient of float64, each 80 kB."""
    explainer = Explainer(nn.Sequential(nn.Linear(1000, 1000)).double().eval(), "epsilon")
    x = torch.randn(10, 1000, dtype=torch.float64)
    with explainer.forward(x) as aware, explainer.forward(x, lrp_aware=False) as plain:
        assert aware.cached_bytes == 3 * 80_000
        assert plain.cached_bytes == 2 * 80_000


@pytest.mark.slow
def test_repeated_calls_do_not_grow():
    explainer, x = Explainer(make("residual"), "gamma"), samples("residual")
    with explainer.forward(x) as record:
        for _ in range(2):
            record.relevance("all", layers="all")
            explainer(x, [1], reduce="channels")
        before = live_tensors()
        for _ in range(5):
            record.relevance("all", layers="all")
            explainer(x, [1], reduce="channels")
            list(record.stream("all", block=1))
        assert live_tensors() <= before
