"""The way down through a convolution of few input channels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import few, packed, winograd
from tests.reference.cases import relative_error

C = loaded()
pytestmark = pytest.mark.skipif(
    packed._operations() is None or winograd._kernel() is None, reason="no processor or PyTorch that gains by it"
)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "size"),
    [(6, (7, 7), [2, 2], [3, 3], [33, 30]), (3, (3, 3), [1, 1], [1, 1], [9, 31]), (1, (1, 5), [1, 3], [0, 4], [4, 29]),
     (8, (4, 4), [4, 4], [0, 0], [18, 19]), (5, (2, 3), [3, 1], [1, 2], [8, 1])],
    ids=str,
)  # fmt: skip
def test_it_is_the_transpose(channels, kernel, stride, padding, size, isa):
    torch.manual_seed(0)
    weight, image = torch.randn(32, channels, *kernel), torch.zeros(4, channels, *size, dtype=torch.double)
    image.requires_grad_()
    there = nn.functional.conv2d(image, weight.double(), None, stride, padding)
    x, scale = torch.randn(there.shape), torch.rand(2, *there.shape[1:])
    (right,) = torch.autograd.grad(there, image, x.double() * scale.double().repeat_interleave(2, 0))
    found = C.conv_few_transposed(x, scale, weight, size, stride, padding)
    assert found.shape == right.shape
    assert relative_error(found.double(), right) <= 1e-6
    (right,) = torch.autograd.grad(
        nn.functional.conv2d(image, weight.double(), None, stride, padding), image, x.double()
    )
    assert relative_error(C.conv_few_transposed(x, None, weight, size, stride, padding).double(), right) <= 1e-6
    alone = [C.conv_few_transposed(x[i : i + 1], scale[i // 2 : i // 2 + 1], weight, size, stride, padding)
             for i in range(4)]  # fmt: skip
    assert torch.equal(found, torch.cat(alone))
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        assert torch.equal(found[:1], C.conv_few_transposed(x[:1], scale[:1], weight, size, stride, padding))
    finally:
        torch.set_num_threads(before)
    x[0, :, 0, 0] = torch.nan
    read = torch.zeros(1, 1, *there.shape[2:])
    read[..., 0, 0] = 1
    hit = nn.functional.conv_transpose2d(read, torch.ones(1, 1, *kernel), None, stride, padding)
    spoilt = C.conv_few_transposed(x, None, weight, size, stride, padding)[0].isnan().any(0)
    assert int(spoilt.sum()) == int((hit[..., : size[0], : size[1]] > 0).sum()), "pixels that it reads, and no others"


@pytest.mark.parametrize("unit", ["software", "avx512_bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_of_bfloat16_are_added_up_in_float32(dtype, unit):
    if unit not in C.available_bf16_units():
        pytest.skip("no processor that has it")
    before = C.bf16_unit()
    torch.manual_seed(0)
    size, stride, padding = [33, 30], [2, 2], [3, 3]
    weight, image = torch.randn(32, 6, 7, 7), torch.zeros(4, 6, *size, dtype=torch.double, requires_grad=True)
    there = nn.functional.conv2d(image, weight.bfloat16().double(), None, stride, padding)
    x, scale = torch.randn(there.shape).to(dtype), torch.rand(2, *there.shape[1:])
    C.set_bf16_unit(unit)
    try:
        for coefficient in (scale, None):
            rows = x.float() if coefficient is None else x.float() * coefficient.repeat_interleave(2, 0)
            (right,) = torch.autograd.grad(there, image, rows.bfloat16().double(), retain_graph=True)
            found = C.conv_few_transposed(x, coefficient, weight, size, stride, padding, narrow=True)
            assert found.dtype == torch.float32
            assert relative_error(found.double(), right) <= 1e-6  # 2e-7: sums of float32.
            one = None if coefficient is None else coefficient[1:]
            alone = C.conv_few_transposed(x[3:], one, weight, size, stride, padding, narrow=True)
            assert torch.equal(found[3:], alone)
    finally:
        C.set_bf16_unit(before)


def test_arguments_are_checked():
    given = {"x": torch.rand(2, 16, 4, 4), "scale": None, "weight": torch.rand(16, 3, 3, 3), "size": [6, 6],
             "stride": [1, 1], "padding": [0, 0]}  # fmt: skip
    assert C.conv_few_transposed(**given).shape == (2, 3, 6, 6)
    assert C.conv_few_transposed(**(given | {"x": given["x"][:0]})).shape == (0, 3, 6, 6)
    for words, change in {
        "x must have shape": {"x": torch.rand(2, 15, 4, 4)},
        "weight must have shape": {"weight": torch.rand(32, 3, 3, 3)},
        "scale must have shape": {"scale": torch.rand(2, 16, 4, 3)},
        "does not give x": {"size": [7, 6]},
        "stride": {"stride": [0, 1]},
        "padding": {"padding": [-1, 0]},
        "x must be of float32 on": {"x": torch.rand(2, 16, 4, 4).bfloat16()},
        "x must be of float32 or bfloat16": {"x": torch.rand(2, 16, 4, 4).double(), "narrow": True},
    }.items():
        with pytest.raises(ValueError, match=words):
            C.conv_few_transposed(**(given | change))
    for name in ("scale", "weight"):
        half = {name: torch.rand((2, 16, 4, 4) if name == "scale" else (16, 3, 3, 3)).bfloat16()}
        with pytest.raises(TypeError, match=f"{name} must be Float, got BFloat16"):
            C.conv_few_transposed(**(given | half), narrow=True)


RULES = [rules.AlphaBeta(2, 1), rules.ZPlus(), rules.ZBox(-3.0, 3.0), rules.Gamma(0.25), rules.Epsilon(1e-3)]


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_first_layers_go_so(rule, precision, monkeypatch):
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    monkeypatch.setattr("fastlrp.plan.products.choice.instruction_set", lambda: "AVX512-BF16")
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    model = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), *head).eval()
    composite, x = (
        composites.uniform(rules.Epsilon(1e-6)).with_entries((composites.first(), rule)),
        torch.randn(2, 3, 21, 18),
    )
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])
    calls, through = [], few.transposed
    monkeypatch.setattr(few, "transposed", lambda *given: calls.append(given) or through(*given))
    found = fastlrp.Explainer(model, composite, precision=precision, paths="dense")(x, [0, 1])
    assert calls
    is_narrow = precision == "bf16" and C.bf16_unit() == "avx512_bf16"
    assert all(given[-1] == is_narrow for given in calls)
    # 2.0e-3 in bfloat16: relevance of both signs from the linear layer cancels.
    assert relative_error(found.double(), right) <= (2.5e-3 if is_narrow else 2e-6)


@pytest.mark.skipif(getattr(C, "bf16_unit", str)() != "avx512_bf16", reason="no processor that takes them")
@pytest.mark.parametrize("rule", [rules.ZPlus(), rules.ZBox(-3.0, 3.0)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("channels", [3, 6])
def test_what_flows_may_be_bfloat16_where_the_kernel_takes_it(channels, rule, monkeypatch):
    """Both parts of the box rule's weight side by side have 12 channels then, which are not few."""
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    monkeypatch.setattr("fastlrp.plan.products.few.instruction_set", lambda: "AVX512-BF16")
    torch.manual_seed(0)
    layers = (nn.Conv2d(channels, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU())
    tail = (nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    model, x = nn.Sequential(*layers, *tail).eval(), torch.randn(3, channels, 20, 22)
    composite = composites.uniform(rules.ZPlus()).with_entries((composites.first(), rule))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])
    explainer = fastlrp.Explainer(model, composite, precision="bf16", paths="dense")
    found = explainer(x, [0, 1])
    first = next(step for step in explainer.plan.program.backward if step.node and step.node.path == "0")
    assert first.takes_bf16 == (channels == 3 or isinstance(rule, rules.ZPlus))
    assert relative_error(found.double(), right) <= 1.2e-3  # 5.0 to 8.4e-4
    assert torch.equal(found[2:], explainer(x[2:], [0, 1]))


def test_others_do_not():
    weight, plain = torch.rand(16, 3, 3, 3), ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    assert few.pays(plain, weight)
    assert not few.pays(plain, torch.rand(16, 9, 3, 3))
    assert not few.pays(plain, torch.rand(20, 3, 3, 3))
    assert not few.pays(ConvGeometry([1, 1], [1, 1], [1, 2], False, [0, 0], 1), weight)
    assert not few.pays(None, weight)
