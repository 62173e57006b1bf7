"""Hidden neurons as outputs, and relevance through chosen channels: against autograd, on networks without biases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import outputs
from tests.api.models import relative_error


class Residual(nn.Module):
    """A block whose ReLU is one module that is called twice, a parameter of the model itself, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.first, self.second = (nn.Conv2d(3 + 2 * i, 5, 3, padding=1, bias=False) for i in range(2))
        self.relu = nn.ReLU()
        self.pair = nn.Identity()
        self.head = nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x) * self.scale)
        h = self.relu(self.second(h) + h)
        return self.head(self.pair(h).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().double().eval()


X = torch.rand(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_autograd(model: nn.Module, target: int, channel: Tensor) -> Tensor:
    """Input times gradient, the gradient masked at the second call of the ReLU: LRP-0 of a network without biases."""
    x, mask = X.clone().requires_grad_(), nn.functional.one_hot(channel, 5)[..., None, None].to(X)

    def masked(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        args[0].register_hook(lambda g: g * mask)
        return args[0]

    handle = model.get_submodule("pair").register_forward_pre_hook(masked)
    model(x)[:, target].sum().backward()
    handle.remove()
    assert x.grad is not None
    return (x * x.grad).detach()


def test_relevance_through_chosen_channels(model):
    upper = fastlrp.Explainer(model, "lrp0")
    found = upper(X, [1, 3], layers=["relu@1"])
    hidden = found["relu@1"]
    best = hidden.sum((3, 4)).topk(2).indices  # (B, K, P)
    lower = fastlrp.Explainer(outputs.Hidden(model, "relu", call=1), "lrp0")
    passed = lower(X, outputs.through_channels(hidden, best))
    assert passed.shape == (2, 4, 3, 6, 6)
    for place, (k, p) in enumerate((k, p) for k in range(2) for p in range(2)):
        assert relative_error(passed[:, place], by_autograd(model, (1, 3)[k], best[:, k, p])) < 1e-10
    every = lower(X, outputs.through_channels(hidden, range(5)))
    assert relative_error(every.unflatten(1, (2, 5)).sum(2), found["input"]) < 1e-10
    assert lower.verify(X, outputs.through_channels(hidden, best)).ok


def test_a_hidden_neuron_is_explained_as_an_output_is(model):
    x = X.clone().requires_grad_()
    hidden = outputs.Hidden(model, "relu")
    y = hidden(x)
    assert torch.equal(y, (model.first(x) * model.scale).relu())
    y[:, 2, 4, 1].sum().backward()
    found = fastlrp.explain(hidden, X, 2, "lrp0", at=(4, 1))
    assert relative_error(found[:, 0], (x * x.grad).detach()) < 1e-10
    explainer = fastlrp.Explainer(hidden, "lrp0", example_inputs=X)
    assert [line.split()[0] for line in str(explainer.plan).splitlines()[3:-2]] == [
        "relu",
        "(model)",
        "first",
    ]  # The model's own paths.
    assert not any(m._forward_hooks for m in model.modules())


def test_weights_that_are_trained_later_are_seen(model):
    hidden = outputs.Hidden(model, "relu")
    before = hidden(X)
    with torch.no_grad():
        model.scale.mul_(2)
    assert torch.equal(hidden(X), 2 * before)
    with torch.no_grad():
        model.scale.div_(2)


def test_what_hidden_refuses(model):
    with pytest.raises(ValueError, match="no module 'rely': close to it is 'relu'"):
        outputs.Hidden(model, "rely")
    with pytest.raises(TypeError, match=r"path must be the path of a module, .* got 1"):
        outputs.Hidden(model, 1)
    with pytest.raises(ValueError, match="'' is the model itself"):
        outputs.Hidden(model, "")
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        outputs.Hidden("relu", "relu")
    with pytest.raises(RuntimeError, match="the forward pass calls 'relu' 2 times, and call=2 counts from 0"):
        outputs.Hidden(model, "relu", call=2)(X)
    model.unused = nn.ReLU()
    with pytest.raises(RuntimeError, match="the forward pass does not call 'unused'"):
        outputs.Hidden(model, "unused")(X)
    del model.unused


def test_a_convolution_and_the_batch_norm_behind_it_are_one_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    for norm in (model[1], model[3]):
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    model = model.double().eval()
    found = fastlrp.explain(model, X, 1, "epsilon_plus", layers=["1", "2"], at=(0, 0))
    for path in ("1", "2"):
        below = fastlrp.explain(outputs.Hidden(model, path), X, found[path], "epsilon_plus")
        assert relative_error(below, found["input"]) < 1e-10
    with pytest.raises(fastlrp.CaptureError, match=r"the batch norm '1' is part of '0', .* Hidden\(model, '1'\)"):
        fastlrp.explain(outputs.Hidden(model, "0"), X, 1, "epsilon_plus")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class FunctionalNorm(nn.Module):
    """A batch norm that is no module, behind a convolution."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.head, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), norm
        self.mean, self.var = nn.Buffer(torch.randn(4) / 5), nn.Buffer(torch.rand(4) + 0.5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x), self.mean, self.var).relu())


@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.functional.batch_norm,
        lambda x, mean, var: torch.batch_norm(x, None, None, mean, var, False, 0.1, 1e-5, False),
        lambda x, mean, var: torch.nn.functional.batch_norm(running_var=var, running_mean=mean, input=x),
    ],
)
def test_a_batch_norm_need_be_no_module(norm):
    model = FunctionalNorm(norm).double().eval()
    says = r"a batch norm that no module stands for is part of 'conv', .* that of a module behind it"
    with pytest.raises(fastlrp.CaptureError, match=says):
        fastlrp.explain(outputs.Hidden(model, "conv"), X, 1, "epsilon_plus")
    plain = FunctionalNorm(lambda x, mean, var: x).double().eval()
    assert fastlrp.explain(outputs.Hidden(plain, "conv"), X, 1, "epsilon_plus").shape == (len(X), 1, *X.shape[1:])


@pytest.mark.parametrize(
    ("shape", "channels", "error", "message"),
    [
        ((2, 1, 5), [5], IndexError, "channel 5 is out of range: axis 2 has 5 entries, 0 to 4"),
        ((2, 1, 5), [], ValueError, "channels is empty"),
        ((2, 5), [1], ValueError, r"relevance must be \(B, K, C, …\), got \(2, 5\)"),
        (
            (2, 3, 5),
            torch.zeros(3, 2).long(),
            ValueError,
            r"channels must be \(P\), \(2, P\) or \(2, 3, P\), got \(3, 2\)",
        ),
        ((2, 1, 5), [0.5], TypeError, "channels must be integers, got torch.float32"),
    ],
)
def test_what_through_channels_refuses(shape, channels, error, message):
    with pytest.raises(error, match=message):
        outputs.through_channels(torch.rand(shape), channels)


def test_through_channels_along_another_axis():
    tokens = torch.rand(2, 3, 7, 5)  # (B, K, S, D)
    found = outputs.through_channels(tokens, torch.tensor([[4, 0], [1, 1]]), axis=-1)
    assert found.shape == (2, 6, 7, 5)
    assert torch.equal(found[0, 2, :, 4], tokens[0, 1, :, 4])
    assert torch.equal(found[1, 5, :, 1], tokens[1, 2, :, 1])
    assert torch.equal(found.count_nonzero((2, 3)), torch.full((2, 6), 7))
