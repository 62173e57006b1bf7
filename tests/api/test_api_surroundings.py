"""What surrounds a capture: Ctrl-C, PyTorch's cache of parametrized weights, the default dtype, options set later."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from fastlrp import Explainer, composites
from fastlrp.capture import fingerprint
from fastlrp.capture.export import EXPORTING
from fastlrp.capture.fingerprint import Fingerprint
from fastlrp.capture.trace import forks
from tests.api.models import make, relative_error, samples, shared

# Measured: 0.
TIGHT = 1e-12


class Interrupting(nn.Module):
    """Sends so many Ctrl-C while it is traced."""

    def __init__(self, signals: list[int], passed: list[bool]) -> None:
        super().__init__()
        self.inner = make("mlp")
        self.send = lambda: [signal.raise_signal(signals.pop()) for _ in signals.copy()]
        self.end = lambda: passed.append(True)  # Functions: what attributes hold is put back after a trace.

    def forward(self, x):
        self.send()
        self.end()
        return self.inner(x)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_the_end_of_a_trace_and_the_second_does_not(times):
    passed: list[bool] = []
    model, x = Interrupting([signal.SIGINT] * times, passed).eval(), samples("mlp")
    explainer, handler = Explainer(model), signal.getsignal(signal.SIGINT)
    parameters, look_up = dict(model.named_parameters()), nn.Module.__getattr__
    with pytest.raises(KeyboardInterrupt):
        explainer(x, 0)
    assert passed == [True] * (2 - times)
    assert signal.getsignal(signal.SIGINT) is handler
    assert nn.Module.__getattr__ is look_up
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert torch.equal(explainer(x, "all"), shared("mlp")(x, "all"))


def test_a_handler_of_the_programs_own_is_called_at_once():
    called = []
    before = signal.signal(signal.SIGINT, lambda number, frame: called.append(number))
    try:
        Explainer(Interrupting([signal.SIGINT] * 3, []).eval())(samples("mlp"), 0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert called == [signal.SIGINT] * 3


def test_capture_in_another_thread_leaves_signals_alone():
    found = []
    thread = threading.Thread(target=lambda: found.append(Explainer(make("mlp"))(samples("mlp"), 0)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], shared("mlp")(samples("mlp"), 0))


@pytest.mark.parametrize("compiled", [True, False])
def test_ctrl_c_while_new_numbers_are_remembered(compiled, monkeypatch):
    """Other memory: the old one, whose bits are still remembered, shows no change."""
    if not compiled:
        monkeypatch.setattr(fingerprint, "loaded", lambda: "not built")
    weight = nn.Parameter(torch.randn(40))
    seen = Fingerprint([weight])
    weight.data = torch.randn(40)
    with monkeypatch.context() as patch:
        patch.setattr(Fingerprint, "_kept", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            seen.changed()
    assert seen.changed()
    assert not seen.changed()


def test_within_the_cache_of_parametrized_weights():
    model, x = make("mlp"), samples("mlp")
    first = next(m for m in model.modules() if isinstance(m, nn.Linear))
    parametrizations.weight_norm(first)
    expected, output = Explainer(copy.deepcopy(model), "gamma")(x, "all"), model(x)
    found = []
    for filled in (True, False):
        with parametrize.cached():
            if filled:
                model(x)
            found.append(Explainer(model, "gamma"))
            assert relative_error(found[-1](x, "all"), expected) <= TIGHT
            assert torch.equal(model(x), output), "what the trace made is left in the cache"
    with torch.no_grad():
        first.parametrizations.weight.original0.mul_(2)
    expected = Explainer(copy.deepcopy(model), "gamma")(x, "all")
    for explainer in found:
        assert relative_error(explainer(x, "all"), expected) <= TIGHT


def test_another_default_dtype():
    class Third(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make("mlp")

        def forward(self, x):
            return self.inner(x) * torch.full((3,), 1 / 3)

    model, x = Third().eval(), samples("mlp")
    explainer = Explainer(model)
    before = explainer.forward(x).scores
    torch.set_default_dtype(torch.float64)
    try:
        found, expected = explainer.forward(x).scores, model(x).detach()
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.equal(before, expected)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("option", ["model", "composite", "backend", "precision", "max_memory", "labels"])
def test_options_are_read_when_an_explainer_is_made(option):
    explainer = Explainer(make("mlp"), "epsilon")
    with pytest.raises(AttributeError, match=rf"keeps the {option} that it was made with.*Explainer\(…, {option}=…\)"):
        setattr(explainer, option, composites.resolve("gamma") if option == "composite" else None)
    again = copy.copy(explainer)
    assert getattr(again, option) is getattr(explainer, option)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_waits_for_another_threads_capture():
    """The child would find PyTorch half replaced, by a thread that it does not have."""
    begun, ended = threading.Event(), []

    def trace():
        with EXPORTING:
            begun.set()
            time.sleep(0.1)
            ended.append(True)

    thread = threading.Thread(target=trace)
    thread.start()
    begun.wait()
    child = os.fork()
    if not child:
        os._exit(0 if ended and EXPORTING.acquire(timeout=10) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_does_not_wait_for_a_capture_that_waits_for_it(monkeypatch):
    """A forward pass may start a thread that forks, and join it."""
    monkeypatch.setattr(forks, "LONGEST", 0.1)
    codes = []

    def fork():
        child = os.fork()
        if not child:
            os._exit(0 if EXPORTING.acquire(timeout=10) else 1)
        codes.append(os.waitpid(child, 0)[1])

    with EXPORTING:
        thread = threading.Thread(target=fork, daemon=True)
        thread.start()
        thread.join(20)
    assert codes == [0]
    free = []
    thread = threading.Thread(target=lambda: free.append(EXPORTING.acquire(timeout=10) and EXPORTING.release() is None))
    thread.start()
    thread.join()
    assert free == [True]
