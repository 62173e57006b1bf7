"""Other threads run modules while a model is captured: both get what they would get alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastlrp import CaptureError, Explainer, explain
from tests.api.models import make, relative_error, samples, shared


class ByHand(nn.Module):
    """Reads its parameters and buffers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.rows = nn.Parameter(torch.randn(3, 4)), nn.ParameterList([torch.randn(3)])
        self.register_buffer("shift", torch.randn(4))
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return ((x + self.shift) @ self.weight.T + self.rows[0]).relu() * self.gain


def by_hand() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ByHand().double().eval()


def beside(work: Callable[[], Tensor], expected: Tensor, run: Callable[[], None]) -> int:
    """How often another thread did ``work`` while ``run`` ran; it never got anything else than ``expected``."""
    stop, wrong, times = threading.Event(), [], [0]

    def serve() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    found = work()
                if type(found) is not Tensor or not torch.equal(found, expected):
                    wrong.append(found)
            except BaseException as error:
                wrong.append(error)
            times[0] += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        run()
    finally:
        stop.set()
        thread.join()
    assert not wrong, f"{len(wrong)} of {times[0]}: {wrong[0]!r}"
    return times[0]


@pytest.mark.parametrize("name", ["residual", "by hand", "another"])
def test_a_thread_that_runs_modules_is_not_disturbed(name):
    captured = by_hand() if name == "by hand" else make("residual")
    x = samples("mlp" if name == "by hand" else "residual")
    served = nn.LSTM(4, 3).double() if name == "another" else captured
    y = samples("mlp", 5) if name == "another" else x
    composite = "gradient" if name == "by hand" else "epsilon_plus"

    def work() -> Tensor:
        return served(y)[0] if name == "another" else served(y)

    expected = work().detach()
    alone = explain(captured, x, "all", composite, initial="one")

    def run() -> None:
        for _ in range(3):
            assert relative_error(Explainer(captured, composite)(x, "all", initial="one"), alone) <= 1e-12

    assert beside(work, expected, run) > 3


def test_a_thread_that_stands_in_a_look_up_is_waited_for():
    """It was given a tensor without data where it had begun to look up a parameter before the capture did."""
    captured, x = by_hand(), samples("mlp")
    expected, code = captured(x).detach(), nn.Module.__getattr__.__code__
    inside, found, shift = threading.Event(), [], captured.shift

    def stay(frame, event, argument):
        if event == "line" and frame.f_code is code and not inside.is_set():
            inside.set()
            end = time.monotonic() + 0.3
            while captured.__dict__["_buffers"].get("shift") is shift and time.monotonic() < end:
                time.sleep(0.001)
        return stay

    def serve() -> None:
        sys.settrace(stay)
        try:
            with torch.no_grad():
                found.append(captured(x))
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=serve)
    thread.start()
    assert inside.wait(5)
    alone = explain(captured, x, "all", "gradient", initial="one")
    thread.join()
    assert type(found[0]) is Tensor
    assert torch.equal(found[0], expected)
    assert alone.shape == (len(x), 3, 4)


def test_after_a_capture_modules_are_what_they_were():
    before = nn.Module.__call__, nn.Module.__getattr__
    explain(make("mlp"), samples("mlp"), 0)
    assert (nn.Module.__call__, nn.Module.__getattr__) == before
    with pytest.raises(CaptureError):
        explain(nn.Sequential(nn.Linear(3, 3)).double().eval(), samples("mlp"), 0)
    assert (nn.Module.__call__, nn.Module.__getattr__) == before


def test_an_explainer_of_the_same_model_in_another_thread():
    """It is captured already, and its model looks changed until the other thread's capture is over."""
    model, x = make("residual"), samples("residual")
    explainer = Explainer(model)
    expected = shared("residual")(x, "top2")
    plan = (explainer(x, 0), explainer.plan)[1]
    beside(lambda: explainer(x, "top2"), expected, lambda: [Explainer(model)(x, 0) for _ in range(3)])
    assert explainer.plan is plan
