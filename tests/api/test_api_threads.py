"""Small calls take one thread, and leave the caller's number as it was."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp.run import runner, threads

pytestmark = pytest.mark.skipif(threads._set_threads() is None, reason="no compiled kernels with OpenMP")


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def seen(monkeypatch):
    """How many threads the forward pass and the way down are computed with, as they come."""
    found = []
    for name in ("forward", "registers_with"):
        inner = getattr(runner, name)
        monkeypatch.setattr(runner, name, lambda *a, _f=inner: found.append(torch.get_num_threads()) or _f(*a))
    return found


def test_small_calls_take_one_thread_and_large_ones_all(monkeypatch):
    found, model, x = seen(monkeypatch), nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(2, 4)
    explainer = fastlrp.Explainer(model, "epsilon")
    once = explainer(x, "all")
    assert found == [1, 1]
    assert torch.get_num_threads() == 3
    monkeypatch.setattr(threads, "SMALL_WORK", 1)
    assert torch.equal(explainer(x, "all"), once)
    assert found == [1, 1, 3, 3]
    assert torch.get_num_threads() == 3


def test_an_error_gives_the_threads_back():
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(fastlrp.NotFiniteError):
        fastlrp.explain(model, torch.randn(1, 4), 0)
    assert torch.get_num_threads() == 3


def test_a_new_thread_keeps_the_programs_number():
    model, x, found = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(1, 4), []
    explainer = fastlrp.Explainer(model, "epsilon", example_inputs=x)

    def ask():
        explainer(x, 0)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [3]
