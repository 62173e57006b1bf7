"""Biases shifted so that a given share of the neurons is alive."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import density
from benchmarks.models import build
from tests.torchvision_models import import_models

import_models()


@pytest.mark.parametrize("share", [0.25, 0.6])
@pytest.mark.parametrize(("name", "batch"), [("resnet18", 1), ("resnet18", 3), ("vgg11", 1)])
def test_the_share_asked_for_is_alive(name, batch, share):
    model, x = build(name, size=64, batch=batch)
    assert density.shift(model, x, share) is model
    found = density.measure(model, x)
    # Measured: 0.004 off. A map of few values per channel cannot have any share.
    assert abs(found.alive - share) < 0.01
    assert 0 < found.reached <= found.alive


def test_every_relu_is_at_the_share():
    model, x = build("resnet18", size=64)
    density.shift(model, x, 0.25)
    shares = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, i, y: shares.append(float((y > 0).double().mean())))
    model(x)
    assert len(shares) == 17
    assert max(abs(share - 0.25) for share in shares) < 0.01


def test_measured_by_the_layers_work():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    model[0].weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    model[0].bias.data.zero_()
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]]).view(1, 1, 2, 2)
    found = density.measure(model.eval(), x)
    # Work: 8 and 6. Of the first layer's 8 outputs 4 are alive, of which two are winners; the last layer has no ReLU.
    assert found.alive == pytest.approx((8 * 0.5 + 6) / 14)
    assert found.reached == pytest.approx((8 * 0.25 + 6) / 14)


def test_refused():
    model, x = build("small")
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        density.shift(model, x, 1.0)
    with pytest.raises(ValueError, match="no layer has a bias"):
        density.shift(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU()), x, 0.5)
