"""Products of bfloat16: one pass that scales and rounds, max-pools of 16 bits, and convolutions of any geometry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.aten.conv import conv_relevance
from fastlrp.backends.extension import extension
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import reduced
from tests.ops.cases import channels_last, mixed, reversed_memory, same, with_gaps

C = extension()
SIZES = [(2, 3, 4, 5, 7), (1, 1, 1), (0, 3, 2), (2, 0, 4), (3, 2), (1, 4, 31, 33, 2), (2, 3, 16400)]


@pytest.mark.parametrize("isa", C.available_isas())
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scaled_is_the_rounded_product(size, isa):
    C.set_isa(isa)
    try:
        coefficient = mixed(size[0], *size[2:], dtype=torch.float32)
        for dtype in (torch.float32, torch.bfloat16):
            relevance = mixed(*size, dtype=torch.float32).to(dtype)
            expected = (relevance.float() * coefficient.unsqueeze(1)).bfloat16()
            for change in (same, with_gaps, reversed_memory):
                for other in (same, with_gaps, reversed_memory):
                    found = C.elementwise_scaled(change(relevance), other(coefficient))
                    assert torch.equal(found, expected)
                    assert found.dtype == torch.bfloat16
    finally:
        C.set_isa("auto")


def test_scaled_rounds_to_even_and_keeps_what_is_not_finite():
    bits = torch.arange(0x3F800000, 0x3F800000 + (1 << 17), 37, dtype=torch.int32).view(torch.float32)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 3.4e38, -1.00390625])
    values = torch.cat([bits, -bits, special]).view(1, 1, -1)
    found = C.elementwise_scaled(values, torch.ones(1, values.shape[2]))
    expected = values.bfloat16()
    same_bits = found.view(torch.int16) == expected.view(torch.int16)
    assert bool((same_bits | (found.isnan() & expected.isnan())).all())


def test_scaled_lies_in_memory_as_its_coefficient():
    coefficient = torch.rand(1, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    found = C.elementwise_scaled(torch.rand(1, 3, 8, 5, 6), coefficient)
    assert found.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_side_by_side_channels_that_are_innermost_stay_so():
    relevance, u, v = torch.randn(1, 3, 8, 5, 6), torch.rand(1, 8, 5, 6), torch.rand(1, 8, 5, 6)
    expected = torch.cat([reduced.scaled(relevance, u), reduced.scaled(relevance, v)], 2)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (u, v)]
    found = reduced.scaled_side_by_side(relevance, last, 2)
    assert torch.equal(found, expected)
    assert found.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(reduced.scaled_side_by_side(relevance, [u, v], 2), expected)


@pytest.mark.parametrize(
    ("relevance", "coefficient", "error", "message"),
    [
        (torch.ones(2, 3, 4).double(), torch.ones(2, 4), ValueError, "relevance must be of float32 or bfloat16"),
        (torch.ones(2, 3, 4), torch.ones(2, 4).double(), TypeError, "coefficient must be Float, got Double"),
        (torch.ones(2, 3, 4), torch.ones(2, 5), ValueError, r"coefficient must have shape \[2, 4\], got \[2, 5\]"),
        (torch.ones(2), torch.ones(2), ValueError, r"relevance must have shape \(B, K, \*S\), got \[2\]"),
    ],
)
def test_scaled_says_what_is_wrong(relevance, coefficient, error, message):
    with pytest.raises(error, match=message):
        C.elementwise_scaled(relevance, coefficient)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [same, channels_last(2)], ids=["rows", "channels last"])
def test_max_pools_of_16_bits(layout, stride):
    """Of small whole numbers, so that sums where windows overlap are exact."""
    _, index = F.max_pool2d(mixed(2, 5, 9, 9, dtype=torch.float32), 2, stride, return_indices=True)
    relevance = torch.randint(-9, 9, (2, 3, *index.shape[1:])).float()
    expected = C.pool_max_relevance(layout(relevance), index, None, [9, 9])
    found = C.pool_max_relevance(layout(relevance).bfloat16(), index, None, [9, 9])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), expected)
    with pytest.raises(TypeError, match="relevance must be float32 or float64, got BFloat16"):
        C.pool_max_relevance(relevance.bfloat16(), index, torch.ones(index.shape).bfloat16(), [9, 9])


GEOMETRIES = {
    "plain": (ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1), (9, 8, 3, 3), (8, 8)),
    "no padding": (ConvGeometry([1, 1], [0, 0], [1, 1], False, [0, 0], 1), (9, 8, 3, 2), (8, 7)),
    "more padding than reach": (ConvGeometry([1, 1], [2, 1], [1, 1], False, [0, 0], 1), (9, 8, 2, 1), (8, 8)),
    "stride": (ConvGeometry([2, 3], [1, 1], [1, 1], False, [0, 0], 1), (9, 10, 3, 3), (9, 10)),
    "dilation": (ConvGeometry([1, 1], [2, 2], [2, 2], False, [0, 0], 1), (9, 10, 3, 3), (9, 8)),
    "groups": (ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 3), (9, 4, 3, 3), (8, 8)),
    "depthwise": (ConvGeometry([1, 1], [3, 3], [1, 1], False, [0, 0], 12), (12, 1, 7, 7), (8, 8)),
    "first": (ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1), (9, 3, 3, 3), (8, 8)),
    "transposed": (ConvGeometry([2, 2], [1, 1], [1, 1], True, [1, 0], 1), (10, 9, 3, 3), (5, 5)),
    "one axis": (ConvGeometry([1], [1], [1], False, [0], 1), (9, 10, 3), (11,)),
    "three axes": (ConvGeometry([1, 1, 1], [1, 0, 0], [1, 1, 1], False, [0, 0, 0], 1), (9, 10, 3, 2, 1), (5, 4, 3)),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_go_down_as_in_float64(name, signed):
    geometry, shape, size = GEOMETRIES[name]
    weight = mixed(*shape, dtype=torch.float32)
    channels = shape[0] if geometry.transposed else shape[1] * geometry.groups
    x = mixed(2, channels, *size, dtype=torch.float32)
    z = torch.convolution(x, weight, None, *geometry.arguments)
    u, v = mixed(*z.shape, dtype=torch.float32), mixed(*z.shape, dtype=torch.float32)
    relevance = mixed(2, 3, *z.shape[1:], dtype=torch.float32)
    positive = weight.clamp(min=0)

    def exact(sign: Tensor | None) -> Tensor:
        wide = [t.double() for t in (relevance, weight, u, v)]
        given = None if sign is None else sign.double()
        return conv_relevance(*wide, given, positive.double(), list(size), *geometry.arguments, signed, False)

    few = name == "first"
    turned = None if few else reduced.turned(geometry, shape[2:])
    assert (turned is None) == (name in ("first", "more padding than reach", "stride", "transposed"))
    narrow = [w if turned is None else reduced.turned_weight(w, geometry.groups) for w in (weight, positive)]
    narrow = [w.bfloat16() for w in narrow]
    product = reduced.through_conv(*narrow, list(size), turned or geometry, signed, False)
    sign = x if signed else False
    for arriving in (relevance.float(), relevance.bfloat16()):
        found = product(arriving, u.float(), v.float(), sign)
        expected = exact(x if signed else None)
        assert found.dtype == torch.bfloat16
        error = (found.double() - expected).norm() / expected.norm()
        assert error <= 8e-3, error  # Worst seen 5e-3: operands, weights and results are rounded.


def test_what_pays():
    plain, strided = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1), ConvGeometry([2], [1], [1], False, [0], 4)
    least, share, large = reduced.LEAST_WORK, reduced.SMALL_SHARE, reduced.Share(1.0)
    assert reduced.pays("conv", least, reduced.Share(), plain, False)
    assert reduced.pays("linear", least, reduced.Share(), None, True)
    assert reduced.pays("linear", least, reduced.Share(share), None, False)
    assert not reduced.pays("linear", least, reduced.Share(share / 2), None, False), "the last layers of a network"
    assert not reduced.pays("conv", least - 1, large, plain, False)
    assert not reduced.pays("conv", 1 << 30, large, strided, False)
    assert not reduced.pays("batch_norm", 1 << 30, large, None, False)


def test_convolutions_nearest_to_the_output_stay_float32():
    layers = [("a", True, 700), ("b", True, 200), ("c", True, 30), ("d", True, 30), ("e", False, 40)]
    found = reduced.shares(layers)
    assert found["c"] == reduced.Share(0.03, 0.03)
    assert found["b"] == reduced.Share(0.2, 0.06)
    assert [name for name, is_conv, _ in layers if is_conv and reduced.stays_full(found[name])] == ["c", "d"]
    # Until they are a twentieth of the work; one that would make them more than a sixth is of bfloat16.
    found = reduced.shares([("a", True, 800), ("b", True, 160), ("c", True, 40)])
    assert [name for name in "abc" if reduced.stays_full(found[name])] == ["c"]
    found = reduced.shares([("a", True, 850), ("b", True, 100), ("c", True, 50)])
    assert [name for name in "abc" if reduced.stays_full(found[name])] == ["c"]
    assert not any(map(reduced.stays_full, reduced.shares([("a", True, 1), ("b", True, 1)]).values()))
    geometry = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    assert not reduced.pays("conv", 1 << 30, reduced.Share(0.1, 0.0), geometry, False)
