"""The thin modules: what they compute, what they remember, what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

import fastlrp
from fastlrp import nn
from tests.reference.cases import relative_error

TIGHT = 1e-12


def network(pool=nn.SumPool2d, flatten="chw") -> nn.Sequential:
    return nn.Sequential(
        nn.Convolution((3, 3, 2, 6), (1, 1)), nn.Rect(), pool((2, 2), (2, 2)), nn.Conv2d(6, 4, 2), nn.Tanh(),
        nn.Flatten(flatten), nn.Linear(16, 5), nn.Softmax(),
    ).double()  # fmt: skip


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, dtype=torch.float64)


# Forward


def test_modules_compute_what_torch_does():
    net, x = network(), images()
    h = F.relu(F.conv2d(x, net[0].weight, net[0].bias))
    h = F.avg_pool2d(h, 2) * 4 / 2  # sum / sqrt(4)
    h = torch.tanh(F.conv2d(h, net[3].weight, net[3].bias)).flatten(1)
    expected = F.softmax(F.linear(h, net[6].weight, net[6].bias), 1)
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net.forward(x, lrp_aware=True), expected)
    assert isinstance(net[0], torch.nn.Conv2d)
    assert isinstance(net[6], torch.nn.Linear)
    assert isinstance(net, torch.nn.Sequential)


def test_flatten_in_the_toolboxs_order():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(nn.Flatten("hwc")(x), x.permute(0, 2, 3, 1).reshape(2, -1))
    assert torch.equal(nn.Flatten()(x), x.flatten(1))
    R = torch.randn(2, 60)
    layer = nn.Flatten("hwc")
    layer.forward(x, lrp_aware=True)
    assert torch.equal(layer.lrp(R), R.view(2, 4, 5, 3).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("pool", "factor"), [(nn.SumPool2d, 6 / 6**0.5), (nn.AvgPool2d, 1.0)])
def test_pools_with_other_windows(pool, factor):
    x = torch.randn(2, 3, 7, 9)
    torch.testing.assert_close(pool((2, 3), (1, 2))(x), F.avg_pool2d(x, (2, 3), (1, 2)) * factor)
    assert pool(2).stride == (2, 2)


# LRP


def shares(x: torch.Tensor, R: torch.Tensor, epsilon: float) -> torch.Tensor:
    """A 2x2 pool by the Toolbox: x / (sum + epsilon sgn(sum)) R."""
    patches = F.unfold(x, 2, stride=2).view(*x.shape[:2], 4, -1)
    total = patches.sum(2, keepdim=True)
    total = torch.where(total < 0, total - epsilon, total + epsilon)
    return F.fold((patches / total * R.flatten(2).unsqueeze(2)).flatten(1, 2), x.shape[2:], 2, stride=2)


@pytest.mark.parametrize("pool", [nn.SumPool2d, nn.AvgPool2d])
def test_pools_weigh_the_plain_sum(pool):
    x, layer = images(), pool()
    y = layer.forward(x, lrp_aware=True)
    R = torch.randn_like(y)
    assert relative_error(layer.lrp(R, "epsilon", 0.3), shares(x, R, 0.3)) < TIGHT
    assert relative_error(layer.lrp(R), shares(x, R, 1e-12)) < TIGHT
    equal = F.interpolate(R, scale_factor=2) / 4
    assert relative_error(layer.lrp(R, "flat"), equal) < TIGHT
    assert relative_error(layer.lrp(R, "ww"), equal) < TIGHT


def test_equal_winners_of_a_max_pool_share():
    x = torch.tensor([[[[1.0, 5.0, 2.0, 2.0], [5.0, 0.0, 2.0, 2.0]]]])
    layer = nn.MaxPool2d()
    layer.forward(x, lrp_aware=True)
    R = torch.tensor([[[[8.0, 12.0]]]])
    for variant in (("simple",), ("epsilon", 0.1), ("alphabeta", 2)):
        assert layer.lrp(R, *variant).tolist() == [[[[0.0, 4.0, 3.0, 3.0], [4.0, 0.0, 3.0, 3.0]]]]
    for variant in ("flat", "ww"):
        assert layer.lrp(R, variant).tolist() == [[[[2.0, 2.0, 3.0, 3.0], [2.0, 2.0, 3.0, 3.0]]]]


def test_linear_by_hand():
    layer = nn.Linear(2, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -1.0]]))
        layer.bias.fill_(1.0)
    layer.forward(torch.tensor([[2.0, 4.0]], dtype=torch.float64), lrp_aware=True)  # 6, -4, 1
    R = torch.tensor([[6.0]], dtype=torch.float64)
    expected = {
        ("simple", None): [12.0, -8.0],
        ("epsilon", 1.0): [9.0, -6.0],
        ("alphabeta", 1): [36 / 7, 0.0],
        ("alphabeta", 2): [72 / 7, -6.0],
        ("alphabeta", 0.5): [18 / 7, 3.0],
        ("alphabeta", 0): [0.0, 6.0],
        ("flat", None): [3.0, 3.0],
        ("ww", None): [5.4, 0.6],
    }
    for variant, relevance in expected.items():
        torch.testing.assert_close(layer.lrp(R, *variant).tolist(), [relevance])


@pytest.mark.parametrize("lrp_aware", [True, False])
def test_many_targets_are_the_single_ones(lrp_aware):
    net, x = network(), images()
    scores = net.forward(x, lrp_aware=lrp_aware)
    every = net.lrp(torch.diag_embed(scores), "alphabeta", 2)
    assert every.shape == (3, 5, 2, 8, 8)
    for k in range(5):
        R = torch.zeros_like(scores)
        R[:, k] = scores[:, k]
        assert relative_error(net.lrp(R, "alphabeta", 2), every[:, k]) < TIGHT


def test_variants_and_aliases_agree_with_the_reference():
    net, x = network(nn.MaxPool2d), images()
    scores = net.forward(x, lrp_aware=True)
    for names, param in [
        ((None, "none", "simple", "SIMPLE"), None), (("epsilon", "eps"), 0.05), (("alphabeta", "alpha"), 1.5),
        (("flat",), None), (("ww", "w^2"), None),
    ]:  # fmt: skip
        first = net.lrp(scores, f"{names[-1]}_slow", param)
        for name in names:
            assert relative_error(net.lrp(scores, name, param), first) < TIGHT


def test_softmax_is_dropped():
    net, x = network(), images()
    probabilities = net(x)
    net.drop_softmax_output_layer()
    net.drop_softmax_output_layer()
    assert len(net) == 7
    scores = net.forward(x, lrp_aware=True)
    torch.testing.assert_close(scores.softmax(1), probabilities)
    assert net.lrp(scores).shape == x.shape


def test_parameters_are_set_for_one_layer_or_all():
    net, x = network(), images()
    net.drop_softmax_output_layer()
    scores = net.forward(x, lrp_aware=True)
    simple = net.lrp(scores)
    net.set_lrp_parameters("epsilon", 0.5)
    assert all((m.lrp_var, m.lrp_param) == ("epsilon", 0.5) for m in net)
    damped = net.lrp(scores)
    assert torch.equal(damped, net.lrp(scores, "eps", 0.5))
    net[0].set_lrp_parameters("flat")
    mixed = net.lrp(scores)
    at_the_bottom = net.lrp_layerwise(1, relevance_above(net, scores))
    assert relative_error(net.lrp_layerwise(0, at_the_bottom, "flat"), mixed) < TIGHT
    assert torch.equal(net.lrp(scores, "simple"), simple)
    net.set_lrp_parameters()
    assert torch.equal(net.lrp(scores), simple)


def relevance_above(net: nn.Sequential, R: torch.Tensor) -> torch.Tensor:
    for position in range(len(net) - 1, 1, -1):
        R = net.lrp_layerwise(position, R)
    return R


def test_layers_by_position_name_and_module():
    net, x = network(), images()
    net.drop_softmax_output_layer()
    scores = net.forward(x, lrp_aware=True)
    by = [net.lrp_layerwise(layer, scores, "epsilon", 0.1) for layer in (-1, 6, "6", net[6])]
    assert by[0].shape == (3, 16)
    assert all(torch.equal(by[0], other) for other in by[1:])
    with pytest.raises(KeyError, match="this network has no layer 9: its layers are 0, 1, 2"):
        net.lrp_layerwise(9, scores)
    mixed = nn.Sequential(torch.nn.Linear(2, 2), nn.Tanh())
    y = mixed.forward(torch.randn(1, 2), lrp_aware=True)
    assert mixed.lrp(y, "epsilon", 0.1).shape == (1, 2)
    with pytest.raises(TypeError, match=r"layer '0' is a Linear, not one of fastlrp\.nn"):
        mixed.lrp_layerwise(0, y)


def test_layerwise_follows_a_new_forward_pass():
    net = network()
    for _ in range(2):
        x = images()
        scores = net.forward(x, lrp_aware=True)
        R = scores
        for position in reversed(range(len(net))):
            R = net.lrp_layerwise(position, R, "epsilon", 0.1)
        assert relative_error(R, net.lrp(scores, "epsilon", 0.1)) < TIGHT


def test_networks_in_networks():
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    net, x = nn.Sequential(inner, nn.Linear(6, 3)).double(), torch.randn(2, 4, dtype=torch.float64)
    flat = nn.Sequential(inner[0], inner[1], net[1])
    inner.set_lrp_parameters("alphabeta", 2)
    scores = net.forward(x, lrp_aware=True)
    found = net.lrp(scores)
    flat.forward(x, lrp_aware=True)
    assert relative_error(found, flat.lrp(scores)) < TIGHT


# What is remembered


def test_a_sweep_computes_no_layer_twice(monkeypatch):
    net, x = network(), images()
    net.forward(x, lrp_aware=True)
    scores = net(x)
    net.forward(x, lrp_aware=True)
    for alpha in (1.0, 2.0):
        net.lrp(scores, "alphabeta", alpha)
    calls = []
    real = torch.convolution
    monkeypatch.setattr(torch, "convolution", lambda *args: calls.append(args) or real(*args))
    for alpha in (1.25, 1.5, 3.0):
        net.lrp(scores, "alphabeta", alpha)
    for epsilon in (0.1, 0.2):
        net.lrp(scores, "epsilon", epsilon)
    # Only the way down of five calls through two convolutions: alpha-beta takes two products each, epsilon one.
    assert len(calls) <= 3 * 4 + 2 * 2
    before = net.lrp(scores, "epsilon", 0.2)
    assert torch.equal(before, net.lrp(scores, "epsilon", 0.2))


def test_training_and_new_weights_are_noticed():
    net, x = network(), images()
    scores = net.forward(x, lrp_aware=True)
    first = net.lrp(scores)
    with torch.no_grad():
        net[0].weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="weights have changed"):
        net.lrp(scores)
    scores = net.forward(x, lrp_aware=True)
    assert relative_error(net.lrp(scores), first) > 1e-3


def test_copies_and_pickles_remember_no_forward_pass():
    net, x = network(), images()
    scores = net.forward(x, lrp_aware=True)
    relevance = net.lrp(scores)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with pytest.raises(RuntimeError, match=r"lrp comes after a forward pass: call forward\(x, lrp_aware=True\)"):
            other.lrp(scores)
        assert relative_error(other.lrp(other.forward(x, lrp_aware=True)), relevance) < TIGHT
    assert list(net.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]


def test_gradients_flow_through_an_ordinary_forward():
    net, x = network(), images().requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None
    assert net[0].weight.grad is not None
    assert not net.forward(x, lrp_aware=True).requires_grad


def test_an_explainer_takes_thin_modules():
    net, x = network(nn.MaxPool2d), images()
    found = fastlrp.Explainer(net, "epsilon_plus")(x, "all", layers=["2", "6"])
    assert found["2"].shape == (3, 5, 6, 3, 3)
    assert fastlrp.Explainer(net, "lrp0", profile="toolbox").verify(x, "all").ok


# What makes no sense


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gamma", 0.1), ValueError, "unknown lrp_var 'gamma': expected None or 'simple', 'epsilon' or 'eps'"),
        ((3,), TypeError, "lrp_var must be None or 'simple'.*got 3"),
        (("epsilon",), TypeError, "'epsilon' needs param = epsilon, a number >= 0, got None"),
        (("epsilon", -1), ValueError, "'epsilon' needs param = epsilon, a number >= 0, got -1"),
        (("alphabeta", "2"), TypeError, "'alphabeta' needs param = alpha, a number >= 0 .*got '2'"),
        (("alphabeta", float("nan")), ValueError, "'alphabeta' needs param = alpha"),
        (("epsilon", True), TypeError, "got True"),
    ],
)
def test_bad_parameters(arguments, error, message):
    net, x = network(), images()
    scores = net.forward(x, lrp_aware=True)
    with pytest.raises(error, match=message):
        net.lrp(scores, *arguments)
    with pytest.raises(error, match=message):
        net.set_lrp_parameters(*arguments)


def test_bad_relevance():
    net, x = network(), images()
    with pytest.raises(RuntimeError, match="lrp comes after a forward pass"):
        net.lrp(torch.zeros(3, 5))
    net.forward(x, lrp_aware=True)
    with pytest.raises(
        ValueError, match=r"R must be the relevance of the output, \(3, 5\) or \(3, K, 5\), got \(3, 4\)"
    ):
        net.lrp(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="R must be a tensor, got list"):
        net.lrp([[1.0]])
    with pytest.raises(ValueError, match="NaN or infinity"):
        net.lrp(torch.full((3, 5), float("nan")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Convolution((3, 3, 2)), r"filtersize must be \(height, width, input channels, output channels\)"),
        (lambda: nn.Convolution((3, 3, 2, 0)), "filtersize must be"),
        (
            lambda: nn.Convolution((3, 3, 2, 2), (0, 1)),
            r"stride must be a positive integer or two of them, got \(0, 1\)",
        ),
        (lambda: nn.SumPool2d((2, 2, 2)), "pool must be a positive integer or two of them"),
        (lambda: nn.Flatten("whc"), "order must be 'chw' or 'hwc', got 'whc'"),
    ],
)
def test_bad_constructors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
