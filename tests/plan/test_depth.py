"""The way down through a depthwise convolution."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import depth, winograd
from tests.reference.cases import relative_error

C = loaded()
pytestmark = pytest.mark.skipif(winograd._kernel() is None, reason="no processor that gains by it")


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "dilation", "size"),
    [(16, (3, 3), [1, 1], [1, 1], [1, 1], [9, 31]), (72, (5, 5), [2, 2], [2, 2], [1, 1], [14, 15]),
     (24, (1, 3), [1, 3], [0, 2], [1, 1], [1, 8]), (19, (3, 2), [1, 2], [2, 0], [2, 3], [7, 12]),
     (40, (2, 2), [3, 4], [0, 1], [1, 1], [8, 6]), (33, (7, 1), [1, 1], [6, 0], [1, 1], [3, 1])],
    ids=str,
)  # fmt: skip
def test_it_is_the_transpose(channels, kernel, stride, padding, dilation, size, isa):
    torch.manual_seed(0)
    weight, image = torch.randn(channels, 1, *kernel), torch.zeros(4, channels, *size, dtype=torch.double)
    image.requires_grad_()
    positive, sign = weight.clamp(min=0), torch.randn(2, channels, *size)
    sign[:, :, 0, 0], sign[:, 1, -1, -1] = 0, torch.nan
    shape = nn.functional.conv2d(image, weight.double(), None, stride, padding, dilation, channels).shape
    x, scale = torch.randn(shape), torch.rand(2, *shape[1:])

    def right(matrix, flow):
        there = nn.functional.conv2d(image, matrix.double(), None, stride, padding, dilation, channels)
        return torch.autograd.grad(there, image, flow)[0]

    def found(x, scale, positive=None, sign=None):
        return C.conv_depth_transposed(x, scale, weight, positive, sign, size, stride, padding, dilation)

    scaled, by = x.double() * scale.double().repeat_interleave(2, 0), sign.repeat_interleave(2, 0)
    above, below = right(positive, scaled), right(weight - positive, scaled)
    chosen = torch.where(by > 0, above, below).masked_fill(by == 0, 0)
    assert relative_error(found(x, None).double(), right(weight, x.double())) <= 1e-6
    assert relative_error(found(x, scale).double(), right(weight, scaled)) <= 1e-6
    assert relative_error(found(x, scale, positive, sign).double(), chosen) <= 1e-6
    whole, alone = found(x, scale, positive, sign), []
    for i in range(4):
        own = slice(i // 2, i // 2 + 1)
        alone.append(found(x[i : i + 1], scale[own], positive, sign[own]))
    assert torch.equal(whole, torch.cat(alone))
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        assert torch.equal(whole[:1], found(x[:1], scale[:1], positive, sign[:1]))
    finally:
        torch.set_num_threads(before)
    x[0, :, 0, 0] = torch.nan
    read = torch.zeros(1, 1, *shape[2:])
    read[..., 0, 0] = 1
    hit = right(torch.ones_like(weight), read.expand(4, channels, *shape[2:]).double())[0] != 0
    assert torch.equal(found(x, None)[0].isnan(), hit), "pixels that it reads, and no others"


def test_arguments_are_checked():
    weight = torch.rand(16, 1, 3, 3)
    given = {"x": torch.rand(2, 16, 4, 4), "scale": None, "weight": weight, "positive": None, "sign": None,
             "size": [6, 6], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}  # fmt: skip
    by = {"positive": weight, "sign": torch.rand(1, 16, 6, 6)}
    assert C.conv_depth_transposed(**given).shape == (2, 16, 6, 6)
    assert C.conv_depth_transposed(**(given | by)).shape == (2, 16, 6, 6)
    assert C.conv_depth_transposed(**(given | {"x": given["x"][:0]})).shape == (0, 16, 6, 6)
    for words, change in {
        "x must have shape": {"x": torch.rand(2, 15, 4, 4)},
        "weight must have shape": {"weight": torch.rand(16, 2, 3, 3)},
        "with h and w at most": {"weight": torch.rand(16, 1, 3, 33)},
        "scale must have shape": {"scale": torch.rand(2, 16, 4, 3)},
        "must be given together": {"sign": by["sign"]},
        "positive must have the weight's shape": by | {"positive": weight[..., :2]},
        "sign must have shape": by | {"sign": torch.rand(1, 16, 4, 4)},
        "as many samples as scale": by | {"scale": torch.rand(2, 16, 4, 4)},
        "does not give x": {"size": [7, 6]},
        "stride": {"stride": [0, 1]},
        "padding": {"padding": [-1, 0]},
        "dilation": {"dilation": [1, 0]},
    }.items():
        with pytest.raises(ValueError, match=words):
            C.conv_depth_transposed(**(given | change))


RULES = [rules.AlphaBeta(2, 1), rules.ZPlus(), rules.Gamma(0.25), rules.Epsilon(1e-3), rules.Flat()]


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_layers_go_so(rule, activation, precision, monkeypatch):
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3))
    middle = (nn.Conv2d(3, 24, 3), activation(), nn.Conv2d(24, 24, 5, 2, 2, groups=24), activation())
    model = nn.Sequential(*middle, *head).eval()
    composite = composites.uniform(rules.ZPlus()).with_entries(("2", rule))
    x = torch.randn(2, 3, 21, 18)
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])
    calls, through = [], depth.transposed
    monkeypatch.setattr(depth, "transposed", lambda *given: calls.append(given) or through(*given))
    found = fastlrp.Explainer(model, composite, precision=precision, paths="dense")(x, [0, 1])
    assert calls
    assert relative_error(found.double(), right) <= (2e-2 if precision == "bf16" else 5e-6)


def test_others_do_not():
    weight, plain = torch.rand(32, 1, 3, 3), ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 32)
    assert depth.pays(plain, weight, 1 << 16)
    assert not depth.pays(plain, weight, (1 << 16) - 1)
    assert not depth.pays(plain, weight.double(), 1 << 16)
    assert not depth.pays(plain, torch.rand(32, 1, 3, 33), 1 << 16)
    assert not depth.pays(plain, torch.rand(32, 1, 3), 1 << 16)
    assert not depth.pays(ConvGeometry([1, 1], [1, 1], [1, 1], True, [0, 0], 32), weight, 1 << 16)
    assert not depth.pays(ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 16), torch.rand(32, 2, 3, 3), 1 << 16)
    assert not depth.pays(ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 16), torch.rand(32, 1, 3, 3), 1 << 16)
    assert not depth.pays(ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 8), torch.rand(8, 1, 3, 3), 1 << 16)
    assert not depth.pays(None, weight, 1 << 16)
