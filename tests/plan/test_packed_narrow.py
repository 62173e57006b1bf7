"""Weights of bfloat16 that are laid out beforehand: the numbers of those as they are."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites
from fastlrp.plan.products import packed, point
from tests.reference.cases import relative_error

pytestmark = pytest.mark.skipif(packed._operations() is None, reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def _by_onednn(monkeypatch):
    """Kernels of one pixel have a way of their own on some processors, tests/plan/test_point.py."""
    monkeypatch.setattr(point, "pays", lambda *_: False)


LAYERS = {
    "one pixel": nn.Conv2d(64, 96, 1),
    "stride": nn.Conv2d(64, 64, 3, stride=2, padding=1),
    "stride of one pixel": nn.Conv2d(64, 256, 1, stride=2),
    "dilation": nn.Conv2d(64, 64, 3, padding=2, dilation=2),
    "groups": nn.Conv2d(64, 64, 5, groups=2),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), LAYERS[name], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.LazyLinear(4))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rules", ["epsilon_plus", "epsilon_alpha2_beta1"])
def test_numbers_are_those_of_weights_as_they_are(name, rules):
    model, x = network(name), torch.randn(2, 3, 24, 23)
    model(x)
    model.eval()
    composite = getattr(composites, rules)()
    explainer = fastlrp.Explainer(model, composite, precision="bf16", paths="dense")
    call, calls = packed.Packed.__call__, []

    def noted(self, x, bias=None):
        calls.append(x.dtype)
        return call(self, x, bias)

    with mock.patch.object(packed.Packed, "__call__", noted):
        found = explainer(x, [0, 3])
    with mock.patch.object(packed, "fits_narrow", return_value=False):
        plain = explainer(x, [0, 3])
    assert calls.count(torch.bfloat16) >= 2, "denominators and the way down"
    assert relative_error(found, plain) <= 1e-3  # Measured: 0; an operand's last bit is 4e-3.
    alone = explainer(x[1:], 3)
    assert relative_error(found[1:, 1:], alone) <= 1e-3


def test_small_maps_with_strides_take_the_safe_way():
    assert packed.fits_narrow(torch.ones(1, 8, 2, 3, dtype=torch.bfloat16), (2, 3))
    assert not packed.fits_narrow(torch.ones(1, 8, 2, 2, dtype=torch.bfloat16), (2, 3))
    assert not packed.fits_narrow(torch.ones(1, 8, 2, 3))
    assert not packed.fits_narrow(torch.ones(1, 8, 2, 3, dtype=torch.bfloat16, requires_grad=True))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not packed.fits_narrow(torch.ones(1, 8, 2, 3, dtype=torch.bfloat16))
