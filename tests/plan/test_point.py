"""Convolutions of one pixel by products that are one pass with what stands around them, of bfloat16 and float32."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.aten.elementwise import elementwise_coefficients
from fastlrp.backends.extension import loaded
from fastlrp.plan.passes import joining
from fastlrp.plan.products import packed, point
from tests.reference.cases import relative_error

C = loaded()
pytestmark = pytest.mark.skipif(
    packed._operations() is None or getattr(C, "isa", lambda: "portable")() == "portable",
    reason="no processor or PyTorch that takes them",
)
of_bfloat16 = pytest.mark.skipif(
    getattr(C, "bf16_unit", str)() != "avx512_bf16", reason="no processor that takes products of bfloat16"
)

SHAPES = [(32, 48, (5, 7), [1, 1]), (48, 80, (6, 5), [2, 2]), (16, 32, (7, 4), [3, 1])]


def narrow(x):
    return x.to(torch.bfloat16).double()


def by_definition(x, weight, stride):
    return nn.functional.conv2d(narrow(x), narrow(weight), None, stride)


@pytest.mark.parametrize(("inputs", "outputs", "size", "stride"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_way_down_is_the_transpose(inputs, outputs, size, stride, dtype):
    torch.manual_seed(0)
    weights = [torch.randn(outputs, inputs, 1, 1) for _ in range(2)]
    image = torch.zeros(6, inputs, *size, dtype=torch.double, requires_grad=True)
    there = [nn.functional.conv2d(image, narrow(w), None, stride) for w in weights]
    relevance = torch.randn(2, 3, *there[0].shape[1:]).to(dtype)
    coefficients = [torch.randn(2, *there[0].shape[1:]) for _ in range(2)]
    given = [narrow(relevance.float() * c.unsqueeze(1)).flatten(0, 1) for c in coefficients]
    right = sum(torch.autograd.grad(y, image, g)[0] for y, g in zip(there, given, strict=True))
    matrices = C.conv_point_pack([w.flatten(1) for w in weights])
    found = C.conv_point_transposed(relevance, coefficients, matrices, list(size), stride)
    assert found.shape == (2, 3, inputs, *size)
    assert found.dtype == torch.bfloat16
    assert relative_error(found.flatten(0, 1).double(), right) <= 3e-3  # 1.7e-3: one rounding to 8 bits.
    full = C.conv_point_transposed(relevance, coefficients, matrices, list(size), stride, in_full=True)
    assert full.dtype == torch.float32
    assert relative_error(full.flatten(0, 1).double(), right) <= 1e-6  # 2e-7: sums of float32.
    assert torch.equal(full.to(torch.bfloat16), found), "the same sums, not rounded"
    alone = C.conv_point_transposed(
        relevance[1:, 2:].contiguous(memory_format=torch.contiguous_format), [c[1:] for c in coefficients], matrices,
        list(size), stride,
    )  # fmt: skip
    assert torch.equal(found[1:, 2:], alone)
    unread = torch.autograd.grad(nn.functional.conv2d(image, torch.ones(1, inputs, 1, 1).double(), None, stride).sum(),
                                 image)[0][0] == 0  # fmt: skip
    assert not found[:, :, unread].any(), "pixels that no output reads"


@pytest.mark.parametrize(("inputs", "outputs", "size", "stride"), SHAPES, ids=str)
@pytest.mark.parametrize("rule", ["zplus", "gamma", "raised"])
def test_coefficients_are_those_of_the_sums(inputs, outputs, size, stride, rule):
    torch.manual_seed(0)
    x, weight, bias = torch.rand(2, inputs, *size), torch.rand(outputs, inputs, 1, 1), torch.rand(outputs)
    sums = by_definition(x, weight, stride) + bias.double().view(-1, 1, 1)
    z, factor = torch.randn(sums.shape), torch.randn(sums.shape)
    z = z.abs() if rule == "raised" else z
    if rule == "raised":
        right = elementwise_coefficients(z + 0.25 * sums, None, None, factor.double(), "epsilon", 1, 1e-6)
    else:
        right = elementwise_coefficients(z.double(), sums, z - sums, factor.double(), rule, 0.25, 1e-6)
    matrix = C.conv_point_pack([weight.flatten(1).t()])
    found = C.conv_point_coefficients(x, matrix, bias, None if rule == "zplus" else z, factor, rule, 0.25, 1e-6, stride)
    for made, wanted in zip(found, right, strict=True):
        assert (made is None) == (wanted is None)
        assert made is None or relative_error(made.double(), wanted) <= 1e-6  # 1.6e-7


def test_arguments_are_checked():
    matrix = C.conv_point_pack([torch.rand(16, 32)])
    sums = {"x": torch.rand(2, 16, 4, 4), "packed": matrix, "bias": None, "z": torch.rand(2, 32, 2, 2), "factor": None,
            "rule": "gamma", "alpha": 1.0, "epsilon": 1.0, "stride": [2, 2]}  # fmt: skip
    assert C.conv_point_coefficients(**sums)[1].shape == (2, 32, 2, 2)
    assert C.conv_point_coefficients(**(sums | {"x": sums["x"][:0], "z": sums["z"][:0]}))[0].shape == (0, 32, 2, 2)
    for words, change in {
        "x must have shape": {"x": torch.rand(16, 4, 4)},
        "packed must be of conv_point_pack": {"x": torch.rand(2, 32, 4, 4)},
        "z must have shape": {"z": torch.rand(2, 32, 4, 4)},
        "z must be given": {"z": None},
        "factor must have shape": {"factor": torch.rand(1, 32, 2, 2)},
        "bias must have shape": {"bias": torch.rand(16)},
        "rule must be": {"rule": "epsilon"},
        "stride": {"stride": [0, 1]},
    }.items():
        with pytest.raises(ValueError, match=words):
            C.conv_point_coefficients(**(sums | change))
    down = {"relevance": torch.rand(2, 3, 16, 2, 2), "coefficients": [torch.rand(2, 16, 2, 2)], "packed": matrix,
            "size": [3, 4], "stride": [2, 2]}  # fmt: skip
    assert C.conv_point_transposed(**down).shape == (2, 3, 32, 3, 4)
    for words, change in {
        "relevance must have shape": {"relevance": torch.rand(2, 3, 15, 2, 2)},
        "relevance must be of float32": {"relevance": torch.rand(2, 3, 16, 2, 2).double()},
        "at least one coefficient": {"coefficients": []},
        "coefficients must have shape": {"coefficients": [torch.rand(2, 16, 2, 1)]},
        "packed must be of conv_point_pack": {"coefficients": down["coefficients"] * 2},
        "does not give one of": {"size": [5, 4]},
    }.items():
        with pytest.raises(ValueError, match=words):
            C.conv_point_transposed(**(down | change))
    for words, matrices in {"at least one": [], "multiples of 16": [torch.rand(16, 8)],
                            "matrices must have shape": [torch.rand(16, 16), torch.rand(32, 16)]}.items():  # fmt: skip
        with pytest.raises(ValueError, match=words):
            C.conv_point_pack(matrices)


class Block(nn.Module):
    """A residual block with strides, whose first and last layers are of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.middle = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 1)
        self.out, self.beside = nn.Conv2d(64, 128, 1, 2), nn.Conv2d(64, 128, 1, 2)
        last = (nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()) for _ in range(4))
        self.last = nn.Sequential(*last)
        self.head = nn.Linear(128, 5)

    def forward(self, x):
        x = self.into(x).relu()
        x = (self.out(self.middle(x).relu()) + self.beside(x)).relu()
        return self.head(self.last(x).mean((2, 3)))


RULES = [rules.ZPlus(), rules.Gamma(0.25), rules.AlphaBeta(2, 1), rules.Epsilon(1e-3), rules.ZPlus(zero_bias=True)]


def _is_narrow(arguments):
    """Whether a product's packed weight is of bfloat16."""
    return any(isinstance(t, torch.Tensor) and t.dtype == torch.bfloat16 and t.dim() == 4 for t in arguments)


@pytest.fixture(scope="module")
def records():
    """Forward passes under the plain epsilon rule: with the kernel, without it, and of float32."""
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 3, 32, 32)

    def made(precision):
        explainer = fastlrp.Explainer(model, composites.uniform(rules.Epsilon()), precision=precision, example_inputs=x)
        return explainer.forward(x)

    with mock.patch.object(point, "pays", return_value=False):
        before = made("bf16")
    return made("bf16"), before, made("float32")


@of_bfloat16
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_explanations_are_those_of_products_of_bfloat16(rule, records):
    composite = composites.epsilon_plus().with_entries((nn.Conv2d, rule))
    calls = mock.Mock(side_effect=C.conv_point_transposed)
    sums = mock.Mock(side_effect=C.conv_point_coefficients)
    with mock.patch.object(C, "conv_point_transposed", calls), mock.patch.object(C, "conv_point_coefficients", sums):
        found, before, right = (record.under(composite).relevance([0, 1]) for record in records)
    narrow = [given for made in (calls, sums) for given in made.call_args_list if _is_narrow(given.args)]
    assert len(narrow) == 3 + {rules.Epsilon: 0, rules.AlphaBeta: 6}.get(type(rule), 3)
    # The errors are 2e-3 to 6e-3, the same with both to a tenth.
    assert 0 < relative_error(found, right) <= 1.2 * relative_error(before, right)


class Bottlenecks(nn.Module):
    """Two residual blocks, whose sums below the last one have a factor: a reader that wants float32."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 1)) for _ in range(3)
        )
        self.last = nn.Sequential(*(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()) for _ in range(4)))
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = self.into(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(self.last(x).mean((2, 3)))


@of_bfloat16
def test_what_a_sum_in_float32_reads_is_never_rounded():
    torch.manual_seed(0)
    model, x = Bottlenecks().eval(), torch.randn(2, 3, 32, 32)

    def relevance(precision):
        return fastlrp.Explainer(model, "epsilon_plus", precision=precision, example_inputs=x)(x, [0, 1])

    calls = mock.Mock(side_effect=C.conv_point_transposed)
    with mock.patch.object(C, "conv_point_transposed", calls):
        found = relevance("bf16")
    with mock.patch.object(joining, "widen", lambda steps: steps):
        before = relevance("bf16")
    full = [given.args[-1] for given in calls.call_args_list if _is_narrow(given.args)]
    assert full == [False, True] * 3, "each block's last layer goes down in bfloat16, its first one to the sum"
    right = relevance("float32")
    assert not torch.equal(found, before)
    # Both 1.8e-3: what the 3x3 layers round.
    assert 0 < relative_error(found, right) <= 1.05 * relative_error(before, right)


@of_bfloat16
def test_the_flat_rule_filters_one_channel(records):
    composite = composites.epsilon_plus().with_entries((nn.Conv2d, rules.Flat()))
    found, before, right = (record.under(composite).relevance([0, 1]) for record in records)
    assert torch.equal(found, before)
    assert relative_error(found, right) <= 3e-2  # 2.4e-2


@pytest.mark.parametrize(("inputs", "outputs", "size", "stride"), SHAPES, ids=str)
def test_products_of_float32(inputs, outputs, size, stride):
    torch.manual_seed(0)
    weights = [torch.randn(outputs, inputs, 1, 1) for _ in range(2)]
    x, bias = torch.randn(2, inputs, *size), torch.randn(outputs)
    right = nn.functional.conv2d(x.double(), weights[0].double(), bias.double(), stride)
    there = C.conv_point_pack([weights[0].flatten(1).t()], True)
    assert relative_error(C.conv_point(x, there, bias, stride, False).double(), right) <= 1e-6  # 1.2e-7
    assert torch.equal(C.conv_point(x, there, bias, stride, True), C.conv_point(x, there, bias, stride, False).relu())
    image = torch.zeros(6, inputs, *size, dtype=torch.double, requires_grad=True)
    relevance = torch.randn(2, 3, *right.shape[1:])
    coefficients = [torch.randn(right.shape) for _ in range(2)]
    wanted = 0
    for w, c in zip(weights, coefficients, strict=True):
        given = (relevance.double() * c.double().unsqueeze(1)).flatten(0, 1)
        wanted = wanted + torch.autograd.grad(nn.functional.conv2d(image, w.double(), None, stride), image, given)[0]
    back = C.conv_point_pack([w.flatten(1) for w in weights], True)
    found = C.conv_point_transposed(relevance, coefficients, back, list(size), stride)
    assert found.dtype == torch.float32
    assert relative_error(found.flatten(0, 1).double(), wanted) <= 1e-6  # 1.5e-7
    alone = C.conv_point_transposed(relevance[1:, 2:], [c[1:] for c in coefficients], back, list(size), stride)
    assert torch.equal(found[1:, 2:], alone)


def test_arguments_of_float32_are_checked():
    x, full, narrow = (
        torch.rand(1, 16, 2, 2),
        *(C.conv_point_pack([torch.rand(16, 32)], is_full) for is_full in (True, False)),
    )
    assert C.conv_point(x[:0], full, None, [1, 1], False).shape == (0, 32, 2, 2)
    with pytest.raises(TypeError, match="packed must be Float"):
        C.conv_point(x, narrow, None, [1, 1], False)
    with pytest.raises(ValueError, match="bias must have shape"):
        C.conv_point(x, full, torch.rand(16), [1, 1], False)
    with pytest.raises(ValueError, match="x must have shape"):
        C.conv_point(x[0], full, None, [1, 1], False)
    with pytest.raises(ValueError, match="relevance must be of float32 beside packed of float32"):
        C.conv_point_transposed(x.bfloat16().unsqueeze(1), [x], full, [2, 2], [1, 1])
    with pytest.raises(ValueError, match="times must be given with a factor"):
        C.conv_point_coefficients(x, full, None, None, None, "zplus", 1.0, 1.0, [1, 1], torch.rand(1, 32, 2, 2))


def test_a_factor_of_two_is_multiplied_in_the_same_pass():
    torch.manual_seed(0)
    x, matrix = torch.rand(2, 16, 3, 5), C.conv_point_pack([torch.rand(16, 48)], True)
    first, second, z = (torch.randn(2, 48, 3, 5) for _ in range(3))
    for rule in ("zplus", "gamma"):
        given = x, matrix, None, z
        found = C.conv_point_coefficients(*given, first, rule, 0.25, 1e-6, [1, 1], second)
        wanted = C.conv_point_coefficients(*given, first * second, rule, 0.25, 1e-6, [1, 1])
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_explanations_of_float32(rule, monkeypatch):
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 3, 16, 16)
    composite = composites.epsilon_plus().with_entries((nn.Conv2d, rule))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), [0, 1])
    calls = mock.Mock(side_effect=C.conv_point_transposed)
    monkeypatch.setattr(C, "conv_point_transposed", calls)
    explainer = fastlrp.Explainer(model, composite, precision="float32", paths="dense")
    found = explainer(x, [0, 1])
    # Both parts of alpha-beta go down through one product, as do both terms of gamma.
    assert calls.call_count == 3
    assert relative_error(found.double(), right) <= 1e-5  # 2e-7 to 3e-6
    assert relative_error(explainer(x[1:], [0, 1]), found[1:]) <= 1e-6
