"""When a replay refuses: what does not fit it, and what makes it stale."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastlrp.run.replay import Replay
from tests.api.models import relative_error, samples
from tests.api.replays import explainer_of, replay_of
from tests.api.tape import Tape

# What does not fit


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[:1], ValueError, r"x has shape \(1, 4\), this replay was made for \(2, 4\): convert it, or make"),
        (lambda x: x.float(), ValueError, r"x has dtype torch.float32, this replay was made for torch.float64"),
        (lambda x: x.to("meta"), ValueError, r"x has device meta, this replay was made for cpu"),
        (lambda x: (x,), ValueError, r"x is a tuple with the tensors 0; this replay was made for a tensor with 0"),
        (lambda x: x.tolist(), ValueError, r"x has no tensor"),
    ],
)
def test_inputs_that_do_not_fit(change, error, message):
    replay = replay_of(explainer_of("mlp"), samples("mlp"), 2)
    with pytest.raises(error, match=message):
        replay(change(samples("mlp")), [0, 1])


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, 3], IndexError, r"target 3 is out of range: the output \(2, 3\) has 3 classes, 0 to 2"),
        ([0, -1], IndexError, "target -1 is out of range"),
        (0, ValueError, "got 1 targets, this replay was made for 2: make one for that number"),
        ([0, 1, 2], ValueError, "got 3 targets, this replay was made for 2"),
        ("top2", ValueError, "targets 'top2' depends on the output, which a replay does not wait for: name classes"),
        (torch.ones(2, 3).double(), TypeError, "a replay takes classes, not initial relevance"),
        ([0.0, 1.0], TypeError, "targets given as classes must be integers"),
        ([], ValueError, "targets is empty"),
        (torch.zeros(3, 2, dtype=torch.long), ValueError, r"targets per sample must be \(B, K\) = \(2, K\)"),
    ],
)
def test_targets_that_do_not_fit(targets, error, message):
    recording = Tape()
    replay = Replay(explainer_of("mlp")._plans, samples("mlp"), 2, recording=recording)
    with pytest.raises(error, match=message):
        replay(samples("mlp"), targets)
    assert recording.turns == 0


def test_what_it_is_made_with_is_checked():
    explainer, x = explainer_of("mlp"), samples("mlp")
    for count in (0, -1, 1.0, True, "3"):
        with pytest.raises(ValueError, match="targets_count must be a number of targets, at least 1, got"):
            replay_of(explainer, x, count)
    with pytest.raises(ValueError, match="reduce must be None or 'channels', got 'rows'"):
        replay_of(explainer, x, 1, reduce="rows")
    with pytest.raises(ValueError, match="initial must be 'output', 'one' or a callable, got 'two'"):
        replay_of(explainer, x, 1, "two")
    with pytest.raises(ValueError, match=r"initial\(output\) must return a tensor \(2, 3\), got \(2,\)"):
        replay_of(explainer, x, 1, lambda y: y.sum(1))
    with pytest.raises(ValueError, match="x contains 8 NaN or infinite entries"):
        replay_of(explainer, x / 0, 1)
    with pytest.raises(RuntimeError, match=r"a replay is a CUDA graph, and the model is on cpu: move model and input"):
        Replay(explainer._plans, x, 1)
    with pytest.raises(RuntimeError, match="a replay is a CUDA graph"):
        explainer.replay(x, 1)


def test_work_that_waits_for_the_device_cannot_be_recorded():
    explainer, x = explainer_of("mlp"), samples("mlp")
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        replay_of(explainer, x, 1, lambda y: y * float(y.sum()))


# What makes it stale


def test_changed_weights_are_refused_until_a_new_one_is_made():
    explainer, x = explainer_of("mlp"), samples("mlp")
    replay = replay_of(explainer, x, 1)
    before = replay(x, 0)[1]
    with torch.no_grad():
        explainer.model[0].weight.mul_(2)
    for _ in range(2):  # It stays so.
        with pytest.raises(
            RuntimeError, match=r"the model's weights changed since this replay was made: make a new one"
        ):
            replay(x, 0)
    explainer(x, 0)  # The explainer has renewed its plan, which is not the replay's.
    with pytest.raises(RuntimeError, match="weights changed"):
        replay(x, 0)
    again = replay_of(explainer, x, 1)(x, 0)[1]
    assert relative_error(again, explainer(x, 0)) < 1e-12
    assert relative_error(again, before) > 0.01


def test_changed_modules_modes_and_parameters_are_refused():
    def mode(model):
        model.train()

    def module(model):
        model[1] = nn.Tanh()

    def parameter(model):
        model[0].bias = nn.Parameter(torch.zeros(6).double())

    for change in (mode, module, parameter):
        explainer, x = explainer_of("mlp"), samples("mlp")
        replay = replay_of(explainer, x, 1)
        change(explainer.model)
        with pytest.raises(RuntimeError, match="parameters, modes, attributes or hooks changed since"):
            replay(x, 0)


def test_refresh_is_heard():
    explainer, x = explainer_of("mlp"), samples("mlp")
    replay = replay_of(explainer, x, 1)
    explainer.refresh()
    with pytest.raises(RuntimeError, match=r"explainer.refresh\(\) was called since this replay was made"):
        replay(x, 0)
    assert relative_error(replay_of(explainer, x, 1)(x, 0)[1], explainer(x, 0)) < 1e-12


def test_other_shapes_do_not_disturb_it():
    explainer = explainer_of("spatial")
    x = samples("spatial")
    replay = replay_of(explainer, x, 1)
    for size in range(6, 16):  # More than the explainer keeps.
        explainer(torch.rand(1, 3, size, size).double(), 0)
    assert relative_error(replay(x, 0)[1], explainer(x, 0)) < 1e-12


def test_precision_switches_and_autocast(monkeypatch):
    explainer, x = explainer_of("mlp"), samples("mlp")
    replay = replay_of(explainer, x, 1)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", not torch.backends.cudnn.deterministic)
    with pytest.raises(RuntimeError, match=r"torch.backends.cudnn.deterministic was False .* and is True now: set it"):
        replay(x, 0)
    monkeypatch.undo()
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match=r"autocast was False .* and is torch.bfloat16 now"):
        replay(x, 0)
    replay(x, 0)  # Set back: the graph is as good as before.


def test_a_closed_one_says_so():
    explainer, x = explainer_of("mlp"), samples("mlp")
    with replay_of(explainer, x, 1) as replay:
        replay(x, 0)
    with pytest.raises(RuntimeError, match=r"this replay is closed: make a new one with explainer.replay"):
        replay(x, 0)


def test_a_model_that_changes_while_it_is_recorded():
    explainer, x = explainer_of("mlp"), samples("mlp")

    def initial(y):
        with torch.no_grad():
            explainer.model[0].bias.add_(1)
        return y

    with pytest.raises(RuntimeError, match="the model's weights changed since this replay was made"):
        replay_of(explainer, x, 1, initial)
