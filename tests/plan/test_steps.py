"""Steps have names, which tracebacks and profiles show, and may have several results."""

from __future__ import annotations

import traceback

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.kinds import jacobian


class Net(nn.Module):
    """Two branches that meet in a product of two activations."""

    def __init__(self, times=torch.mul):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.left, self.right, self.head, self.times = nn.Linear(36, 5), nn.Linear(36, 5), nn.Linear(5, 2), times

    def forward(self, x):
        x = self.features(x)
        return self.head(self.times(self.left(x), self.right(x)))


def net(**options):
    torch.manual_seed(0)
    return Net(**options).double().eval()


def image():
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def names(explainer):
    return [step.name for step in explainer.plan.program.backward]


# Names


def test_every_step_says_which_layer_operation_and_rule_it_stands_for():
    explainer = fastlrp.Explainer(net(), "epsilon_plus", example_inputs=image())
    program = explainer.plan.program
    assert names(explainer) == [
        "head (linear, Epsilon)",
        "(model) (mul, Pass)",
        "(model) (mul, Pass)",
        "right (linear, Epsilon)",
        "left (linear, Epsilon)",
        "features.3 (flatten, sum for 2 readers)",
        "features.3 (flatten)",
        "features.2 (max_pool2d, max: winner)",
        "features.0 (conv2d, ZPlus)",
    ]
    assert [step.node.path for step in program.backward if step.node is not None][-1] == "features.0"
    forward = [step.name for step in program.forward]
    assert forward[:2] == ["features.0 (conv2d)", "features.1 (relu)"]
    assert "features.0 (conv2d, ZPlus)" in forward, "its coefficients"
    schedule = explainer.plan.schedule(explainer.plan.explained_inputs())
    assert schedule.steps[-1][0].name == "args_0 (input, relevance)"


@pytest.mark.parametrize("paths", ["dense", "sparse"])
def test_steps_for_alive_neurons_keep_their_names(paths):
    explainer = fastlrp.Explainer(net(), "epsilon_plus", paths=paths)
    with explainer.forward(image()) as record:
        record.relevance([0] * 20)
        (found,) = record._answers.specialized if paths == "sparse" else record.plan.settled
        steps = [step for step, _ in found.steps]
    assert {"right (linear, Epsilon)", "features.0 (conv2d, ZPlus)"} <= {step.name for step in steps}
    assert any("made compact" in step.name for step in steps) == (paths == "sparse")
    assert all(step.name for step in steps)


class Broken(rules.Custom):
    def propagate(self, forward, inputs, output, relevance):
        raise ZeroDivisionError("this rule is broken")


class Halves(rules.Custom):
    def __init__(self):
        self.asked = []

    def propagate(self, forward, inputs, output, relevance):
        self.asked.append(tuple(relevance.shape))
        return tuple(relevance / 2 for _ in inputs)


BROKEN = composites.preset("epsilon_plus").with_entries(("head", Broken()))


@pytest.mark.parametrize("options", [{}, {"max_memory": "1MB"}])
def test_an_error_inside_a_step_says_where_in_the_model(options):
    explainer = fastlrp.Explainer(net(), BROKEN, **options)
    with pytest.raises(ZeroDivisionError, match="this rule is broken") as caught:
        explainer(image(), [0, 1])
    assert caught.value.__notes__ == ["in the way down through head (linear, Broken)"]
    assert "in the way down through head (linear, Broken)" in "".join(traceback.format_exception(caught.value))


def test_a_step_in_smaller_blocks_speaks_once():
    explainer = fastlrp.Explainer(net(), BROKEN, example_inputs=image())
    explainer.plan.block_bytes = 1
    with pytest.raises(ZeroDivisionError) as caught:
        explainer(image(), [0] * 9)
    assert len(caught.value.__notes__) == 1


def test_an_error_in_the_forward_pass_says_where_in_the_model():
    class Wants(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(4, 3), nn.Linear(6, 2)

        def forward(self, x, at):
            return self.head(torch.cat([x, self.embed(at)], 1))

    explainer = fastlrp.Explainer(Wants().eval(), "epsilon_plus")
    x = torch.randn(2, 3)
    explainer((x, torch.tensor([0, 3])), 0)
    with pytest.raises(IndexError) as caught:
        explainer((x, torch.tensor([0, 4])), 0)
    assert caught.value.__notes__ == ["in the forward pass through embed (embedding)"]


def test_a_profile_shows_the_layers_and_nothing_is_recorded_without_one(monkeypatch):
    explainer = fastlrp.Explainer(net(), "epsilon_plus", example_inputs=image())
    expected = explainer(image(), [0, 1])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = explainer(image(), [0, 1])
    assert torch.equal(found, expected)
    shown = {event.key for event in profile.key_averages()}
    assert {f"down: {name}" for name in names(explainer)} <= shown
    assert {"forward: features.0 (conv2d)", "forward: features.0 (conv2d, ZPlus)"} <= shown
    monkeypatch.setattr(torch.autograd.profiler, "record_function", None)
    assert torch.equal(explainer(image(), [0, 1]), expected)


# Several results


@pytest.mark.parametrize("composite", ["gradient", "epsilon_plus"])
def test_a_product_of_two_operands_is_transposed_once_for_both(composite, monkeypatch):
    """Where one of them is broadcast; else its derivatives are factors."""
    calls = []
    vjp = jacobian.vjp
    monkeypatch.setattr(jacobian, "vjp", lambda *args: calls.append(1) or vjp(*args))
    if composite != "gradient":
        chosen = composites.preset(composite).with_entries((composites.operation("mul"), rules.Gradient()))
    else:
        chosen = composites.preset(composite)
    model, x = net(times=lambda a, b: a * b[:, :1]), image()
    explainer = fastlrp.Explainer(model, chosen)
    found = explainer(x, [0, 1])
    (step,) = [step for step in explainer.plan.program.backward if len(step.outs) > 1]
    assert step.name == "(model) (mul, Gradient)"
    assert step.numels == (5, 1)
    assert calls == [1]
    if composite == "gradient":
        leaf = x.clone().requires_grad_()
        scores = model(leaf)
        for k in (0, 1):
            (grad,) = torch.autograd.grad(scores[:, k].sum(), leaf, retain_graph=True)
            expected = grad * scores[:, k].detach().view(-1, 1, 1, 1)
            assert (found[:, k] - expected).norm() <= 1e-14 * expected.norm()


def test_layers_in_between_get_what_they_got_alone():
    model, x = net(), image()
    explainer = fastlrp.Explainer(model, "gradient")
    found = explainer(x, [0, 1], layers=["left", "right"])
    for name in ("left", "right"):
        alone = explainer(x, [0, 1], layers=[name])
        assert torch.equal(alone[name], found[name])
        assert torch.equal(alone["input"], found["input"])


def test_blocks_of_targets_go_through_steps_with_several_results():
    explainer = fastlrp.Explainer(net(), "gradient", example_inputs=image())
    expected = explainer(image(), [i % 2 for i in range(9)])
    explainer.plan.block_bytes = 5 * 2 * 8 * 4  # Four targets of the product's operands.
    found = explainer(image(), [i % 2 for i in range(9)])
    assert (found - expected).norm() <= 1e-14 * expected.norm()


def test_a_custom_rule_is_asked_once_for_all_inputs():
    halves = Halves()
    chosen = composites.preset("epsilon_plus").with_entries((composites.operation("mul"), halves))
    model, x = net(), image()
    found = fastlrp.Explainer(model, chosen)(x, [0, 1], layers=["left", "right"])
    assert halves.asked == [(2, 2, 5)]
    plain = fastlrp.Explainer(model, "epsilon_plus")(x, [0, 1], layers=["left", "right"])
    for name in ("left", "right"):
        assert (found[name] - plain[name]).norm() <= 1e-14 * plain[name].norm()
