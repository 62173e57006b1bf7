"""The short training loop."""

from __future__ import annotations

import builtins

import pytest
import torch

from fastlrp import nn


def xor(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.rand(count, 2) * 2 - 1
    return x, (x[:, 0] * x[:, 1] > 0).long()


def network(softmax: bool = False) -> nn.Sequential:
    layers = [nn.Linear(2, 15), nn.Tanh(), nn.Linear(15, 15), nn.Tanh(), nn.Linear(15, 2)]
    return nn.Sequential(*layers, *([nn.Softmax()] if softmax else []))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("one_hot", [True, False])
def test_learns_xor(softmax, one_hot):
    (x, y), net = xor(), network(softmax)
    history = net.fit(x, torch.eye(2)[y] if one_hot else y, lr=0.02, epochs=25, progress=False)
    assert len(history) == 25
    assert history[-1] < history[0] / 3
    assert (net(x).argmax(1) == y).float().mean() > 0.95
    scores = net.forward(x, lrp_aware=True)
    assert net.lrp(scores, "epsilon", 0.01).shape == x.shape


@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "adamw", lambda parameters: torch.optim.RMSprop(parameters, 0.01)],
)
def test_optimizers_and_losses(optimizer):
    (x, y), net = xor(), network()
    lr = None if callable(optimizer) else 0.1 if optimizer == "sgd" else 0.01
    history = net.fit(x, torch.eye(2)[y], loss="mse", optimizer=optimizer, lr=lr, epochs=8, progress=False)
    assert history[-1] < history[0]
    own = torch.optim.SGD(net.parameters(), lr=0.01)
    assert len(net.fit(x, torch.eye(2)[y], torch.nn.functional.smooth_l1_loss, own, epochs=2, progress=False)) == 2


def test_progress_is_shown(capsys):
    pytest.importorskip("tqdm")
    (x, y), net = xor(40), network()
    net.fit(x, y, epochs=3)
    assert "3/3" in capsys.readouterr().err
    net.fit(x, y, epochs=3, progress=False)
    assert capsys.readouterr().err == ""


def test_without_tqdm(monkeypatch):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.split(".")[0] == "tqdm":
            raise ImportError("No module named 'tqdm'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    (x, y), net = xor(40), network()
    with pytest.raises(ImportError, match=r'pip install "fastlrp\[nn\]", or progress=False'):
        net.fit(x, y, epochs=1)
    assert len(net.fit(x, y, epochs=2, progress=False)) == 2


def test_mode_is_put_back():
    (x, y), net = xor(40), network().eval()
    net.fit(x, y, epochs=1, progress=False)
    assert not net.training


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"loss": "hinge"},
            ValueError,
            "unknown loss 'hinge': expected one of cross_entropy, .*or a function",
        ),
        ({"optimizer": "lbfgs"}, ValueError, "unknown optimizer 'lbfgs': expected one of sgd, adam, adamw"),
        ({"epochs": 0}, ValueError, "epochs and batch_size must be at least 1, got 0 and 32"),
        ({"optimizer": "sgd", "lr": 1e30, "loss": "mse"}, FloatingPointError, "the loss is .* use a smaller lr"),
    ],
)
def test_errors(options, error, message):
    (x, y), net = xor(40), network()
    y = torch.eye(2)[y] if options.get("loss") == "mse" else y
    with pytest.raises(error, match=message):
        net.fit(x, y, progress=False, **options)


def test_sizes_must_fit():
    x, y = xor(40)
    with pytest.raises(ValueError, match="same number of samples, at least one; got 40 and 39"):
        network().fit(x, y[1:], progress=False)
