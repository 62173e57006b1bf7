"""The calls of interprettensor's README, line by line."""

from __future__ import annotations

import pytest
import torch

from fastlrp import io
from fastlrp.nn import Conv2d, Flatten, Linear, ReLU, Sequential, Softmax, Tanh
from fastlrp.nn.options import LOSSES, loss_of


def network(batch_size: int = 50) -> Sequential:
    torch.manual_seed(6)  # With others some of the last ReLUs are dead from the start.
    return Sequential([Linear(input_dim=6, output_dim=16, act='relu', batch_size=batch_size),
                     Linear(12, act ='relu'),
                     Linear(8, act ='relu'),
                     Linear(3, act ='relu'),
                     Softmax()])  # fmt: skip


def data(count: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(count, 6)
    return x, torch.eye(3)[x[:, :3].argmax(1)]


def test_the_readme_line_by_line():
    input_data, ground_truth = data()
    net = network()
    output = net.forward(input_data)
    assert output.shape == (150, 3)
    history = net.fit(
        output, ground_truth, loss='softmax_crossentropy', optimizer='adam', opt_params=[0.01], progress=False
    )  # fmt: skip
    assert history[-1] < history[0]

    output = net.forward(input_data)  # Weights have changed.
    for variant, param in (("simple", 1.0), ("epsilon", 0.01), ("flat", 1.0), ("ww", 1.0), ("alphabeta", 0.5)):
        relevance = net.lrp(output, variant, param)
        assert relevance.shape == input_data.shape
        assert relevance.isfinite().all()
    relevance = net.lrp(output, "simple", 1.0)

    relevance_layerwise = []
    R = output
    for layer in net.modules[::-1]:
        R = net.lrp_layerwise(layer, R, "simple")
        relevance_layerwise.append(R)
    assert [r.shape[1] for r in relevance_layerwise] == [3, 8, 12, 16, 6]
    torch.testing.assert_close(R, relevance, rtol=1e-4, atol=1e-5)


def test_a_layer_with_its_activation_is_the_two_layers():
    torch.manual_seed(0)
    joined = Sequential([Linear(5, 4, act="tanh"), Linear(3, act="relu"), Linear(2)])
    apart = Sequential([Linear(5, 4), Tanh(), Linear(4, 3), ReLU(), Linear(3, 2)])
    apart.load_state_dict(dict(zip(apart.state_dict(), joined.state_dict().values(), strict=True)))
    x = torch.randn(4, 5)
    assert torch.equal(joined.forward(x, lrp_aware=True), apart.forward(x, lrp_aware=True))
    for variant, param in (("simple", None), ("epsilon", 0.1), ("alphabeta", 2.0), ("ww", None)):
        found, expected = (net.lrp(net(x), variant, param) for net in (joined, apart))
        torch.testing.assert_close(found, expected)


def test_a_layer_with_its_activation_is_written_as_two(tmp_path):
    torch.manual_seed(0)
    net = Sequential([Linear(5, 4, act="tanh"), Linear(3, act="relu"), Linear(2)])
    io.write_model(net, tmp_path / "net.txt")
    again, x = io.read_model(tmp_path / "net.txt"), torch.randn(3, 5)
    assert len(again) == 5
    assert torch.equal(again(x), net(x))
    with pytest.raises(TypeError, match="module 0 has act='elu', which the Toolbox does not have"):
        io.write_model(Sequential(Linear(2, 2, act="elu")), tmp_path / "elu.txt")


def test_sizes_of_a_linear():
    for layer in (Linear(4, 3), Linear(3, input_dim=4), Linear(input_dim=4, output_dim=3), Linear(4, 3, True)):
        assert (layer.in_features, layer.out_features, layer.weight.shape) == (4, 3, (3, 4))
    assert Linear(in_features=4, out_features=3, bias=False).bias is None
    assert repr(Linear(4, 3, act="relu")) == "Linear(in_features=4, out_features=3, bias=True, act='relu')"
    net = Sequential(Linear(5, 4), ReLU(), Linear(3))
    assert net[2].weight.shape == (3, 4)
    assert net[2].weight.std() > 0
    for options in ({}, {"input_dim": 3}, {"out_features": 3}, {"in_features": 3, "output_dim": 2}):
        with pytest.raises(TypeError, match="Linear takes the numbers of its inputs and outputs"):
            Linear(**options)
    with pytest.raises(ValueError, match="unknown act 'softplus': expected one of linear, relu, tanh, elu"):
        Linear(2, 3, act="softplus")
    with pytest.raises(ValueError, match=r"layer '0', Linear\(3\), needs its number of inputs"):
        Sequential(Linear(3))
    with pytest.raises(ValueError, match=r"layer '2', Linear\(3\), needs .* Linear\(m, 3\)"):
        Sequential(Conv2d(1, 2, 3), Flatten(), Linear(3))
    with pytest.raises(RuntimeError, match=r"Linear\(3\) does not know its number of inputs"):
        Linear(3)(torch.rand(2, 3))


def test_modules_are_a_list_and_a_method():
    net = network()
    assert list(net.modules) == list(net) == list(net.children())
    assert net.modules[0] is net[0]
    assert net.modules[1:3] == [net[1], net[2]]
    assert len(net.modules) == 5
    assert list(net.modules()) == [net, *net]
    assert not net.eval().modules[0].training
    for module in net.modules:
        module.set_lrp_parameters("epsilon", 0.1)
    net.set_lrp_parameters("epsilon", 0.1)


VALUES = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
TARGET = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("softmax_crossentropy", (torch.log1p(torch.tensor(-3.0).exp()) + torch.log1p(torch.tensor(-2.5).exp())) / 2),
        ("sigmoid_crossentropy", torch.tensor([-1.0, -2.0, 0.5, -3.0]).exp().log1p().mean()),
        ("MSE", torch.tensor((0 + 4 + 0.25 + 4) / 4).sqrt()),
        ("mse", torch.tensor((0 + 4 + 0.25 + 4) / 4)),
        ("L1", torch.tensor((0 + 2 + 0.5 + 2) / 4)),
    ],
)
def test_losses_by_their_names(name, expected):
    torch.testing.assert_close(LOSSES[name](VALUES, TARGET), expected.double(), rtol=1e-6, atol=0)


def test_a_loss_of_zero_has_a_gradient():
    x = VALUES.clone().requires_grad_()
    loss_of("MSE")(x, VALUES).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    classes = torch.tensor([0, 1])
    torch.testing.assert_close(
        loss_of("sigmoid_crossentropy")(VALUES, classes), LOSSES["sigmoid_crossentropy"](VALUES, TARGET)
    )


@pytest.mark.parametrize("loss", ["softmax_crossentropy", "sigmoid_crossentropy", "MSE", "L1"])
@pytest.mark.parametrize("optimizer", ["adam", "Adam", "rmsprop", "grad_descent", "adagrad", "adadelta"])
def test_every_loss_with_every_optimizer(loss, optimizer):
    (x, y), net = data(60), network()
    rate = 1.0 if optimizer == "adadelta" else 0.05 if optimizer == "grad_descent" else 0.005
    history = net.fit(x, y, loss=loss, optimizer=optimizer, opt_params=[rate], epochs=4, progress=False)
    assert history[-1] < history[0]


def test_the_same_as_by_our_own_names():
    (x, y), theirs, ours = data(60), network(), network()
    torch.manual_seed(5)
    a = theirs.fit(output=x, ground_truth=y, loss="softmax_crossentropy", opt_params=[0.01], epochs=2, progress=False)
    torch.manual_seed(5)
    b = ours.fit(x, y, lr=0.01, epochs=2, progress=False)
    assert a == b


def test_some_parameters_only():
    (x, y), net = data(60), network()
    before = [p.clone() for p in net.parameters()]
    net.fit(x, y, opt_params=[0.01, net[3].parameters()], epochs=1, progress=False)
    changed = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert changed == [False] * 6 + [True] * 2


def test_an_output_stands_for_its_input_only_while_it_is_the_latest():
    x, net = data(60)[0], Sequential(Linear(6, 3))
    for aware in (False, True):
        output = net.forward(x, lrp_aware=aware)
        assert net._input_of(output) is not output
        assert torch.equal(net._input_of(output), x)
    assert net._input_of(x) is x
    assert net._input_of(output.clone()).shape == (60, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "hinge"}, ValueError, "unknown loss 'hinge'.*softmax_crossentropy, sigmoid_crossentropy, MSE, L1"),
        ({"loss": torch.ones(3)}, TypeError, "loss is a tensor, which was computed once"),
        ({"opt_params": []}, ValueError, r"opt_params must be \[learning rate\] or \[learning rate, parameters\]"),
        ({"opt_params": ["0.1"]}, ValueError, "opt_params must be"),
        ({"opt_params": [0.1], "lr": 0.1}, ValueError, "lr and opt_params both say the learning rate"),
        ({"opt_params": [0.1], "optimizer": torch.optim.Adam}, ValueError, "opt_params are for an optimizer given"),
        ({"output": torch.ones(2)}, TypeError, "fit got x and output, which are the same"),
    ],
)  # fmt: skip
def test_what_fit_refuses(options, error, message):
    (x, y), net = data(20), network()
    with pytest.raises(error, match=message):
        net.fit(x, y, progress=False, **options)


def test_fit_without_data():
    with pytest.raises(TypeError, match=r"fit needs y \(or ground_truth\), a tensor, got NoneType"):
        network().fit(torch.ones(2, 6))
