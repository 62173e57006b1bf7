"""The batch axis may leave axis 0: relevance is that of each sample alone, the gradient autograd's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import UnsupportedOperationError, composites, rules
from fastlrp.capture.graph import Value
from fastlrp.capture.lift import check as lift_check
from fastlrp.capture.lift import graphs as lift
from fastlrp.capture.lift.lifter import Lifter
from tests.models.cases import Written, linear, prepared
from tests.models.oracle import relative_error
from tests.models.random_travels import random_travel
from tests.models.travelling import MODELS

EXACT = 1e-12
"""Measured: at most 3e-14."""

GRADIENTS = (composites.kind("unknown"), rules.Gradient())


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    return prepared(model, x), x.double()


def gradients(model: nn.Module, x: Tensor, targets: list[int]) -> Tensor:
    point = x.clone().requires_grad_()
    output = copy.deepcopy(model)(point)
    return torch.stack([torch.autograd.grad(output[:, t].sum(), point, retain_graph=True)[0] for t in targets], 1)


def lrp() -> composites.Composite:
    return composites.resolve("epsilon_plus").with_entries(
        (composites.kind("product"), rules.Uniform()),
        (composites.operation("softmax"), rules.Gradient()),
        GRADIENTS,
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_autograds(name: str) -> None:
    model, x = made(name)
    composite = composites.resolve("gradient").with_entries(GRADIENTS)
    explainer = fastlrp.Explainer(model, composite)
    assert relative_error(explainer(x, [0, 2], initial="one"), gradients(model, x, [0, 2])) <= EXACT


@pytest.mark.parametrize("name", MODELS)
def test_each_sample_has_what_it_has_alone(name: str) -> None:
    model, x = made(name)
    explainer = fastlrp.Explainer(model, lrp())
    together = explainer(x, [0, 2])
    with torch.no_grad():
        assert torch.allclose(explainer.forward(x).scores, model(x), rtol=1e-12, atol=1e-12)
    assert relative_error(torch.cat([explainer(x[i : i + 1], [0, 2]) for i in range(3)]), together) <= EXACT
    assert relative_error(explainer(x[:2], [0, 2]), together[:2]) <= EXACT
    order = torch.tensor([2, 0, 1])
    assert relative_error(explainer(x[order], [0, 2]), together[order]) <= EXACT
    if name != "signals":  # PyTorch's instance norm takes no empty batch.
        assert explainer(x[:0], [0, 2]).shape == (0, 2, *x.shape[1:])
    report = explainer.verify(x, [0, 2])
    assert report.ok, str(report)


@pytest.mark.parametrize("seed", range(24))
def test_random_models(seed: int) -> None:
    model, x = random_travel(seed)
    composite = composites.resolve("gradient").with_entries(GRADIENTS)
    explainer = fastlrp.Explainer(model, composite)
    together = explainer(x, [0, 2], initial="one")
    expected = gradients(model, x, [0, 2])
    size = expected.abs().max()
    assert float((together - expected).abs().max()) <= EXACT * float(size)
    alone = torch.cat([explainer(x[i : i + 1], [0, 2], initial="one") for i in range(3)])
    assert float((alone - together).abs().max()) <= EXACT * float(size)
    assert explainer.verify(x, [0, 2]).ok


MIXES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "attention": ("bmm .*mixes samples", lambda h: torch.bmm(torch.bmm(h, h.mT).softmax(-1), h)),
    "over_the_batch": ("softmax .*works along axis 1", lambda h: h.softmax(1)),
    "mean": ("mean .*works along axis 1", lambda h: h - h.mean(1, keepdim=True)),
    "tokens": ("mixes samples", lambda h: h.reshape(-1, 8).softmax(0).view(h.shape)),
    "neighbour": ("roll .*works along axis 1", lambda h: h.roll(1, 1)),
    "wrong_view": ("mixes samples", lambda h: h.reshape(h.shape[1], -1, 8).transpose(0, 1)),
    "first_rows": (
        "slice .*axis 0, where 4 entries of each sample .*the first samples.*unflatten",
        lambda h: h + h.transpose(0, 1).flatten(0, 1)[: h.shape[1]],
    ),
    "batch_norm": ("mixes samples", lambda h: h / (1 + h.square().mean((0, 1)))),
}


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_samples_is_an_error_wherever_the_batch_is(name: str) -> None:
    message, body = MIXES[name]
    model = Written(lambda m, x: m.b(body(m.a(x).transpose(0, 1)).mean(0)), a=nn.Linear(5, 8), b=linear(8)).double()
    with pytest.raises(UnsupportedOperationError, match=message) as error:
        fastlrp.explain(model.eval(), torch.randn(3, 4, 5, dtype=torch.float64), [0], lrp())
    assert "in module '(the model itself)'" in str(error.value)


def test_a_form_that_differs_from_the_model_is_not_taken() -> None:
    model, x = made("time_first")
    wrong = {**lift._FORMS, "softmax": lambda lifter: lifter.tree(lifter.node.args)[0]}
    with mock.patch.object(lift, "_FORMS", wrong), pytest.raises(UnsupportedOperationError) as error:
        fastlrp.explain(model, x, [0], lrp())
    assert "could not be written for each sample alone" in str(error.value)


@pytest.mark.parametrize("name", MODELS)
def test_what_the_forms_prove_holds_when_tried(name: str) -> None:
    model, x = made(name)
    usual = [node.operation for node in fastlrp.Explainer(model, lrp(), example_inputs=x).plan.graph.nodes]
    with mock.patch.object(lift_check, "is_proved", return_value=False):
        graph = fastlrp.Explainer(model, lrp(), example_inputs=x).plan.graph
    assert [node.operation for node in graph.nodes] == usual
    assert not graph.not_lifted


@pytest.mark.parametrize(
    ("operation", "wrong"),
    [
        ("permute", lambda lifter: lifter.reshape(lifter.tree(lifter.node.args)[0], lifter.shape)),
        ("transpose", lambda lifter: lifter.reshape(lifter.tree(lifter.node.args)[0], lifter.shape)),
        ("linear", lambda lifter: lifter.emit("linear", torch.ops.aten.linear.default, (
            lifter.tree(lifter.node.args)[0], lifter.node.args[1]), lifter.shape)),
        ("select", lambda lifter: lifter.emit("select", torch.ops.aten.select.int, (
            lifter.tree(lifter.node.args)[0], 1, 0), lifter.shape)),
    ],
)  # fmt: skip
def test_a_wrong_form_is_not_proved(operation: str, wrong: Callable[[Lifter], Value]) -> None:
    """Layers are as wide as the sequence is long, so that no shape shows the mistake."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = m.a(x.transpose(0, 1)).permute(2, 1, 0)
        return m.head(h.relu().transpose(0, 2).cos().select(0, 2))

    torch.manual_seed(0)
    model = Written(body, a=nn.Linear(5, 5), head=nn.Linear(5, 4)).double().eval()
    x = torch.randn(3, 5, 5, dtype=torch.float64)
    assert fastlrp.explain(model, x, [0], lrp()).shape == (3, 1, 5, 5)
    forms = mock.patch.object(lift, "_FORMS", {**lift._FORMS, operation: wrong})
    with forms, pytest.raises(UnsupportedOperationError) as error:
        fastlrp.explain(model, x, [0], lrp())
    assert "could not be written for each sample alone" in str(error.value)


def test_an_operation_that_has_no_form_is_named() -> None:
    body = lambda m, x: m.head(torch.lstm_cell(x.transpose(0, 1)[0], m.state(x), m.w, m.v)[0])  # noqa: E731
    model = Written(body, state=State(), head=linear(6)).double().eval()
    model.w, model.v = nn.Parameter(torch.randn(24, 5).double()), nn.Parameter(torch.randn(24, 6).double())
    explainer = fastlrp.Explainer(model, composites.resolve("gradient").with_entries(GRADIENTS))
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    assert relative_error(explainer(x, [0], initial="one"), gradients(model, x, [0])) <= EXACT


class State(nn.Module):
    """Two states of zeros."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(x.shape[0], 6), x.new_zeros(x.shape[0], 6)


def test_weights_that_are_trained_later_are_seen() -> None:
    model, x = made("signals")
    explainer = fastlrp.Explainer(model, lrp())
    before = explainer(x, [0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
    after = explainer(x, [0])
    assert relative_error(before, after) > 1e-3
    assert relative_error(fastlrp.explain(model, x, [0], lrp()), after) <= EXACT


def test_relevance_of_layers_has_the_shape_of_one_sample_behind_the_batch() -> None:
    model, x = made("sequence_first")
    found = fastlrp.Explainer(model, lrp())(x, [0, 2], layers=["qkv", "head"])
    assert found["qkv"].shape == (3, 2, 5, 1, 24)
    assert found["head"].shape == (3, 2, 4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_model_that_takes_one_batch_size_alone(count: int) -> None:
    """Its graph for one sample is lifted, and compared with that for the batch."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = m.a(x).view(count, 4, 6).transpose(0, 1)
        return m.head((h.softmax(0) * h).sum(0))

    model = Written(body, a=nn.Linear(5, 6), head=linear(6)).double().eval()
    mixed = Written(lambda m, x: m.head(m.a(x).view(count, 24).t().softmax(1).sum(0)[:, None]), a=nn.Linear(5, 6),
                    head=nn.Linear(1, 4)).double().eval()  # fmt: skip
    x = torch.randn(count, 4, 5, dtype=torch.float64)
    if count > 1:
        with pytest.raises(UnsupportedOperationError):
            fastlrp.explain(mixed, x, [0], lrp())
        with pytest.raises(UnsupportedOperationError):
            fastlrp.explain(model, x, [0], lrp())  # For one sample it does not run.
        return
    explainer = fastlrp.Explainer(model, composites.resolve("gradient").with_entries(GRADIENTS))
    assert relative_error(explainer(x, [0], initial="one"), gradients(model, x, [0])) <= EXACT


@pytest.mark.each_value
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("composite", ["attnlrp", "gradient"])
def test_multihead_attention(batch_first: bool, composite: str) -> None:
    """PyTorch's own puts the batch second either way, and folds it with the heads."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = x if batch_first else x.transpose(0, 1)
        return m.head(m.a(h, h, h, need_weights=False)[0].mean(1 if batch_first else 0))

    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    model, x = Written(body, a=attention, head=linear(8)).double().eval(), torch.randn(3, 5, 8, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, composite)
    assert [n.kind for n in explainer.forward(x).plan.graph.nodes if "attention" in n.operation] == ["attention"]
    together = explainer(x, [0, 2], initial="one")
    alone = torch.cat([explainer(x[i : i + 1], [0, 2], initial="one") for i in range(3)])
    assert relative_error(alone, together) <= EXACT
    assert explainer.verify(x, [0, 2]).ok
    if composite == "gradient":
        assert relative_error(together, gradients(model, x, [0, 2])) <= EXACT


@pytest.mark.usefixtures("captured_once")
def test_samples_of_a_grid_from_channels_folded_into_the_batch() -> None:
    """As optical flow looks up correlations: one image per place, sampled at constant places and at chosen ones."""
    places = torch.linspace(-0.9, 0.9, 2 * 2 * 3).double().view(1, 2, 3, 2)

    def body(m: Written, x: Tensor) -> Tensor:
        h = x.flatten(0, 1).unsqueeze(1)  # (B * C, 1, H, W)
        fixed = F.grid_sample(h, m.places.expand(len(h), -1, -1, -1), align_corners=False)
        moved = F.grid_sample(h, h[:, 0, :2, :2].unsqueeze(1).tanh(), align_corners=False)
        return m.head(torch.cat([fixed.view(len(x), -1), moved.reshape(len(x), -1)], 1))

    torch.manual_seed(0)
    model = Written(body, places=nn.Parameter(places), head=nn.Linear(3 * (6 + 2), 4)).double().eval()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = fastlrp.Explainer(model, "gradient")(x, [0, 3], initial="one")
    torch.testing.assert_close(found, gradients(model, x, [0, 3]), rtol=1e-10, atol=1e-12)
    explainer = fastlrp.Explainer(model, "epsilon_plus")
    torch.testing.assert_close(explainer(x[1:], [0, 3]), explainer(x, [0, 3])[1:], rtol=1e-10, atol=1e-12)
    assert explainer.verify(x, [0, 3]).ok


class Frames(nn.Module):
    """Frames are folded into the batch, and beside the scores it returns the features of each."""

    def __init__(self, layers: nn.Module, both: bool, any_batch: bool) -> None:
        super().__init__()
        self.layers, self.both, self.any_batch = layers, both, any_batch

    def forward(self, x: Tensor) -> Any:
        h = self.layers(x.flatten(0, 1))
        frames = h.view(-1, 4, *h.shape[1:]) if self.any_batch else h.unflatten(0, (len(x), -1))
        scores = frames.flatten(2).mean(1)
        return {"scores": scores, "frames": h} if self.both else scores


@pytest.mark.parametrize("any_batch", [True, False])
@pytest.mark.parametrize("layer", ["conv", "batch_norm", "linear", "adaptive_max_pool"])
def test_a_result_with_frames_in_the_batch_that_nobody_explains(layer: str, any_batch: bool) -> None:
    torch.manual_seed(0)
    parts = {"conv": [], "batch_norm": [nn.BatchNorm2d(5), nn.ReLU()], "linear": [nn.Flatten(), nn.Linear(180, 4)],
             "adaptive_max_pool": [nn.AdaptiveMaxPool2d(2)]}  # fmt: skip
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), *parts[layer]).double().eval()
    x = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    found = fastlrp.explain(Frames(layers, True, any_batch).eval(), x, [0, 2], "epsilon_plus", output="scores")
    torch.testing.assert_close(
        found, fastlrp.explain(Frames(layers, False, any_batch).eval(), x, [0, 2], "epsilon_plus")
    )
    with pytest.raises(UnsupportedOperationError, match="does not keep the batch as axis 0"):
        fastlrp.explain(Frames(layers, True, any_batch).eval(), x, [0, 2], "epsilon_plus", output="frames")
