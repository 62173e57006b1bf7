"""Convolutions of one pixel in float32, where the input's sign chooses between two weights."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import packed, point, reduced
from tests.reference.cases import relative_error

C = loaded()
pytestmark = pytest.mark.skipif(
    packed._operations() is None or getattr(C, "isa", lambda: "portable")() == "portable",
    reason="no processor or PyTorch that takes them",
)

SHAPES = [(32, 48, (5, 7), [1, 1]), (24, 40, (6, 5), [2, 2]), (3, 7, (7, 4), [3, 1]), (272, 19, (3, 3), [1, 1])]


@pytest.mark.parametrize(("inputs", "outputs", "size", "stride"), SHAPES, ids=str)
def test_the_sign_chooses(inputs, outputs, size, stride, isa):
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, inputs, 1, 1), torch.randn(2, inputs, *size)
    x[0, 0, 0, 0], x[1, :, -1], x[1, 1, 0, 0] = 0, 0, torch.nan
    positive, image = weight.clamp(min=0), torch.zeros(6, inputs, *size, dtype=torch.double, requires_grad=True)
    shape = nn.functional.conv2d(x, weight, None, stride).shape
    relevance, u, v = torch.randn(2, 3, *shape[1:]), torch.randn(shape), torch.randn(shape)

    def back(matrix, coefficient):
        given = (relevance.double() * coefficient.double().unsqueeze(1)).flatten(0, 1)
        there = nn.functional.conv2d(image, matrix.double(), None, stride)
        return torch.autograd.grad(there, image, given)[0].view(2, 3, *x.shape[1:])

    def chosen(above, below):
        by = x.unsqueeze(1)
        return torch.where(by > 0, above, below).masked_fill(by == 0, 0)

    def of_u(flow, u, v, x, times=None):
        assert u is not None, "the sign chooses by the kernel"
        assert v is None
        return back(weight, u).float()

    geometry = ConvGeometry(stride, [0, 0], [1, 1], False, [0, 0], 1)
    product = point.Chosen(weight, positive, geometry, of_u, packed.fits)
    of_v = chosen(back(positive, v), back(weight - positive, v))
    found = product(relevance, None, v, x)
    assert relative_error(found.double(), of_v) <= 1e-6  # 1.5e-7
    assert relative_error(product(relevance, u, v, x).double(), back(weight, u) + of_v) <= 1e-6  # 1.5e-7
    assert torch.equal(product(relevance[1:, 2:], None, v[1:], x[1:]), found[1:, 2:])
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        assert torch.equal(product(relevance, None, v, x), found)
    finally:
        torch.set_num_threads(before)


def test_arguments_are_checked():
    relevance, by, sign = torch.rand(2, 3, 20, 2, 3), torch.rand(2, 20, 2, 3), torch.rand(2, 8, 2, 3)
    above, wide = C.conv_point_pack([torch.rand(32, 16)], True), C.conv_point_pack([torch.rand(32, 32)], True)
    given = {"relevance": relevance, "coefficients": [by], "above": above, "below": above, "sign": sign,
             "stride": [1, 1]}  # fmt: skip
    assert C.conv_point_chosen(**given).shape == (2, 3, 8, 2, 3)
    empty = {"relevance": relevance[:, :0]}
    assert C.conv_point_chosen(**(given | empty)).shape == (2, 0, 8, 2, 3)
    for words, change in {
        "relevance must have shape": {"relevance": relevance[0]},
        "at least one coefficient": {"coefficients": []},
        "coefficients must have shape": {"coefficients": [by[:1]]},
        "sign must have shape": {"sign": sign[:1]},
        "packed must be of conv_point_pack": {"coefficients": [by, by]},
        "packed must have 16 columns for a sign of 8 channels, got 32": {"below": wide},
        "does not give one of": {"stride": [2, 1]},
    }.items():
        with pytest.raises(ValueError, match=words):
            C.conv_point_chosen(**(given | change))
    with pytest.raises(TypeError, match="packed must be Float"):
        C.conv_point_chosen(**(given | {"above": C.conv_point_pack([torch.rand(32, 16)], False)}))


RULES = [rules.AlphaBeta(2, 1), rules.ZPlus(), rules.Gamma(0.25), rules.Epsilon(1e-3)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_layers_go_so(rule, monkeypatch):
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 3))
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.SiLU(), nn.Conv2d(24, 20, 1, 2), nn.SiLU(), *head).eval()
    composite = composites.uniform(rules.Epsilon(1e-6)).with_entries(("2", rule))
    x = torch.randn(2, 3, 12, 9)
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])
    calls = mock.Mock(side_effect=C.conv_point_chosen)
    monkeypatch.setattr(C, "conv_point_chosen", calls)
    explainer = fastlrp.Explainer(model, composite, paths="dense")
    found = explainer(x, [0, 1])
    assert bool(calls.call_count) is not isinstance(rule, rules.Epsilon)
    assert relative_error(found.double(), right) <= 5e-6
    calls.reset_mock()
    deep = copy.deepcopy(model)
    deep[1] = nn.ReLU()  # Whose input is never below zero: nothing is to be chosen.
    fastlrp.Explainer(deep, composite, paths="dense")(x, [0, 1])
    assert not calls.call_count


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_beside_products_of_bfloat16(rule, monkeypatch):
    """What the sign says nothing about goes by these: for gamma that was an error of arguments."""
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    monkeypatch.setattr(reduced, "pays", lambda kind, *_: kind == "conv")
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.SiLU(), nn.Conv2d(24, 32, 1), nn.SiLU(), *head).eval()
    composite = composites.uniform(rules.Epsilon(1e-6)).with_entries(("2", rule))
    x = torch.randn(2, 3, 12, 9)
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])
    explainer = fastlrp.Explainer(model, composite, precision="bf16", paths="dense")
    assert relative_error(explainer(x, [0, 1]).double(), right) <= 0.01  # 3e-3 to 5e-3.


def test_others_do_not():
    plain = ConvGeometry([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert point.pays_chosen(plain, torch.rand(7, 9, 1, 1))
    assert not point.pays_chosen(plain, torch.rand(7, 9, 1, 2))
    assert not point.pays_chosen(ConvGeometry([1, 1], [1, 0], [1, 1], False, [0, 0], 1), torch.rand(7, 9, 1, 1))
    assert not point.pays_chosen(ConvGeometry([1, 1], [0, 0], [1, 1], False, [0, 0], 3), torch.rand(6, 3, 1, 1))
    assert not point.pays_chosen(None, torch.rand(7, 9))
