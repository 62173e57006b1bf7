from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.functional import input_rules as functional
from tests.ops.cases import (
    DTYPES,
    assert_close,
    backends,
    bound,
    channels_last,
    mixed,
    reference,
    reversed_memory,
    same,
    with_gaps,
)
from tests.reference import textbook as rules

OP, FLAT = "input_relevance", "input_flat_relevance"
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Layer:
    name: str
    S: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    channels: tuple[int, int] = (3, 6)  # in, out
    batch: tuple[int, int] = (2, 3)  # B, K
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    def geometry(self) -> tuple[list[int], ...]:
        n = len(self.S)
        return list(self.stride or [1] * n), list(self.padding or [0] * n), list(self.dilation or [1] * n)

    def output_size(self) -> tuple[int, ...]:
        rows = zip(self.S, self.kernel, *self.geometry(), strict=True)
        return tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in rows)


LAYERS = [
    Layer("plain", (7, 5), (3, 3)),
    Layer("padded", (7, 5), (3, 3), padding=(1, 1)),
    Layer("first layer of a ResNet, small", (9, 7), (7, 7), (2, 2), (3, 3)),
    Layer("strided with remainder", (8, 11), (3, 2), (2, 3)),
    Layer("dilated", (11, 9), (3, 2), padding=(2, 1), dilation=(2, 3)),
    Layer("dilated and strided", (13, 12), (3, 4), (4, 2), (2, 1), (6, 3)),
    Layer("patches", (9, 8), (3, 4), (3, 4)),
    Layer("gaps between windows", (9, 8), (2, 1), (4, 3)),
    Layer("padding beyond the kernel", (5, 4), (1, 3), padding=(1, 3)),
    Layer("padding beyond the kernel, strided", (5, 4), (2, 1), (2, 3), (2, 2), channels=(1, 5)),
    Layer("kernel wider than the map", (3, 2), (5, 4), padding=(2, 2)),
    Layer("1x1", (5, 3), (1, 1), channels=(8, 4)),
    Layer("size one", (1, 1), (1, 1), channels=(1, 1), batch=(1, 1)),
    Layer("channels of four", (6, 7), (3, 3), padding=(1, 1), channels=(4, 8)),
    Layer("no sample", (5, 5), (3, 3), batch=(0, 2)),
    Layer("no target", (5, 5), (3, 3), batch=(2, 0)),
    Layer("1-D", (13,), (5,), (2,), (2,), channels=(2, 7)),
    Layer("3-D", (5, 4, 3), (2, 3, 1), (1, 2, 1), (1, 1, 0)),
]
WIDE = [
    Layer("many input channels", (5, 4), (3, 3), padding=(1, 1), channels=(9, 5)),
    Layer("groups", (5, 5), (3, 2), groups=2, channels=(4, 6)),
    Layer("depthwise", (5, 5), (3, 3), (2, 1), (1, 1), groups=3, channels=(3, 6)),
    Layer("many taps", (17, 15), (13, 11), padding=(6, 5), channels=(1, 2), batch=(1, 2)),
]
"""What kernels for few channels leave to others."""

# Which coefficient each term has, and which have no multiplier.
TERMS = [
    *[("0", ""), ("0", "0"), ("00", ""), ("00", "1"), ("01", "0")],
    *[("000", "2"), ("001", ""), ("010", ""), ("011", "01"), ("012", "012")],
]

Changes = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def arguments(layer: Layer, of: str, without: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """All arguments of ``input_relevance`` but ``reduce``."""
    (B, K), (Ci, Co), out = layer.batch, layer.channels, layer.output_size()
    us = [mixed(B, Co, *out, dtype=dtype) for _ in range(3)]
    return (
        mixed(B, K, Co, *out, dtype=dtype),
        [mixed(Co, Ci // layer.groups, *layer.kernel, dtype=dtype) for _ in of],
        [us[int(n)] for n in of],
        [None if str(j) in without else mixed(B, Ci, *layer.S, dtype=dtype) for j in range(len(of))],
        list(layer.S),
        *layer.geometry(),
        layer.groups,
    )


def flat_arguments(layer: Layer, dtype: torch.dtype) -> tuple[Any, ...]:
    """All arguments of ``input_flat_relevance`` but ``reduce``."""
    (B, K), (Ci, Co), out = layer.batch, layer.channels, layer.output_size()
    maps = mixed(B, K, Co, *out, dtype=dtype), mixed(B, Co, *out, dtype=dtype)
    return (*maps, Ci, list(layer.kernel), list(layer.S), *layer.geometry())


def memories() -> Iterator[Changes]:
    """How the relevance lies in memory, and how everything without a target axis does."""
    last = channels_last(2), channels_last(1)
    yield from ((same, same), (with_gaps, with_gaps), (reversed_memory, same), (last[0], same), (same, last[1]), last)


def relaid(given: tuple[Any, ...], changes: Changes) -> tuple[Any, ...]:
    """The same arguments in other memory; what was one tensor stays one."""
    known: dict[int, Tensor] = {}

    def change(value: Any) -> Any:
        if isinstance(value, list):
            return [change(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        return known.setdefault(id(value), changes[1](value))

    return (changes[0](given[0]), *(change(value) for value in given[1:]))


def test_the_definition_of_the_box_rule_by_hand():
    """``x = (1, 0, 1)`` between -1 and 2, ``w = (2, -1)``: z = 2*2 + -1*-2 = 6 and 2*1 + -1*-1 = 3."""
    x = torch.tensor([[[1.0, 0.0, 1.0]]])
    w = torch.tensor([[[2.0, -1.0]]])
    flow, u = torch.tensor([[[[6.0, 9.0]]]]), torch.tensor([[[1 / 6, 1 / 3]]])
    terms = [w.clamp(min=0), w.clamp(max=0)], [u, u], [x + 1, x - 2]
    result = reference(OP)(flow, *terms, [3], [1], [0], [1], 1, False)
    torch.testing.assert_close(result, torch.tensor([[[[4.0, 8.0, 3.0]]]]))


def test_the_definition_of_w2_by_hand():
    w = torch.tensor([[[2.0, -1.0]]])
    flow, u = torch.tensor([[[[5.0, 10.0]], [[0.0, 5.0]]]]), torch.full((1, 1, 2), 0.2)
    result = reference(OP)(flow, [w.square()], [u], [None], [3], [1], [0], [1], 1, False)
    torch.testing.assert_close(result, torch.tensor([[[[4.0, 9.0, 2.0]], [[0.0, 4.0, 1.0]]]]))


def test_the_definition_of_flat_by_hand():
    """Two outputs, each of which sees two of three inputs, in two channels; then windows of 3x3, stride 2."""
    flow, u = torch.tensor([[[[4.0, 8.0]]]]), torch.full((1, 1, 2), 0.25)
    rest = [2], [3], [1], [0], [1]
    expected = torch.tensor([1.0, 3.0, 2.0])
    assert torch.equal(reference(FLAT)(flow, u, 2, *rest, False)[0, 0], expected.expand(2, 3))
    assert torch.equal(reference(FLAT)(flow, u, 2, *rest, True)[0, 0], 2 * expected.unsqueeze(0))
    flow, u = torch.full((1, 1, 2, 2, 2), 2.0), torch.full((1, 2, 2, 2), 0.25)
    result = reference(FLAT)(flow, u, 1, [3, 3], [3, 3], [2, 2], [1, 1], [1, 1], False)
    assert torch.equal(result[0, 0, 0], torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]))


def affine(layer: Layer, weight: Tensor) -> rules.Affine:
    stride, padding, dilation = layer.geometry()

    def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return CONV[len(layer.S)](x, w, b, stride, padding, dilation, layer.groups)

    return rules.Affine(apply, weight, None)


def reciprocal(z: Tensor) -> Tensor:
    return torch.where(z == 0, 0.0, 1 / z)


@pytest.mark.parametrize("layer", [LAYERS[1], LAYERS[3], LAYERS[4], LAYERS[-1]], ids=str)
def test_the_definition_makes_the_rules(layer):
    relevance, (w, *_), _, (x, *_), *rest = arguments(layer, "0", "", torch.float64)
    textbook, n = affine(layer, w), len(layer.S)
    tail = (1,) * n
    low, high = torch.rand(1, 3, *tail).double() - 4, torch.rand(1, 3, *tail).double() + 4
    up, down = w.clamp(min=0), w.clamp(max=0)
    u = reciprocal(textbook.apply(x - low, up, None) + textbook.apply(x - high, down, None))
    box, _ = rules.zbox(textbook, x, relevance, torch.clone, low, high)
    assert_close(reference(OP)(relevance, [up, down], [u, u], [x - low, x - high], *rest, False), box)
    assert_close(reference(OP)(relevance, [up, down], [u, u], [x - low, x - high], *rest, True), box.sum(2, True))
    u = reciprocal(textbook.apply(torch.ones_like(x), w.square(), None))
    square, _ = rules.wsquare(textbook, x, relevance, torch.clone)
    assert_close(reference(OP)(relevance, [w.square()], [u], [None], *rest, False), square)
    u = reciprocal(textbook.apply(torch.ones_like(x), torch.ones_like(w), None))
    flat, _ = rules.flat(textbook, x, relevance, torch.clone)
    assert_close(reference(FLAT)(relevance, u, 3, list(layer.kernel), *rest[:-1], False), flat)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize("layer", [*LAYERS, *WIDE], ids=str)
def test_equals_reference(layer, backend, dtype):
    call, definition = bound(OP, backend, dtype), reference(OP)
    for (of, without), reduce in product(TERMS, (False, True)):
        given = arguments(layer, of, without, dtype)
        expected = definition(*given, reduce)
        for changes in memories() if of in ("00", "001") else [(same, same)]:
            assert_close(call(*relaid(given, changes), reduce), expected, (of, without, reduce))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(FLAT))
@pytest.mark.parametrize("layer", [layer for layer in [*LAYERS, *WIDE] if layer.groups == 1], ids=str)
def test_flat_equals_reference(layer, backend, dtype):
    given = flat_arguments(layer, dtype)
    for reduce in (False, True):
        expected = reference(FLAT)(*given, reduce)
        for changes in memories():
            assert_close(bound(FLAT, backend, dtype)(*relaid(given, changes), reduce), expected)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("backend", backends(OP))
def test_arguments_stay_as_they_are(backend, reduce):
    given = arguments(LAYERS[1], "001", "1", torch.float32)
    before = relaid(given, (torch.clone, torch.clone))
    bound(OP, backend, torch.float32)(*given, reduce)
    for values, kept in zip(given[:4], before[:4], strict=True):
        for value, was in zip(*([v] if isinstance(v, Tensor) else v for v in (values, kept)), strict=True):
            assert value is was is None or torch.equal(value, was)


def test_terms_of_one_coefficient_are_one_product(monkeypatch):
    """What flows is scaled and read once for both terms of the box rule, and w2's channels are summed up before it."""
    from fastlrp.aten import input_rules

    calls = []
    actual = input_rules.conv_relevance
    monkeypatch.setattr(input_rules, "conv_relevance", lambda *a: calls.append(a[1].shape[1]) or actual(*a))
    for (of, without), reduce, expected in (
        (("00", ""), False, [6]),
        (("01", ""), False, [3, 3]),
        (("010", ""), False, [6, 3]),
        (("0", "0"), True, [1]),
        (("00", "1"), True, [6]),
    ):
        calls.clear()
        input_rules.input_relevance(*arguments(LAYERS[1], of, without, torch.float32), reduce)
        assert calls == expected


def test_public_functions():
    layer = Layer("", (7, 6), (3, 2), (2, 2), (1, 0))
    r, weights, us, ms, *rest = arguments(layer, "00", "", torch.float32)
    expected = reference(OP)(r, weights, us, ms, *rest, False)
    flat = reference(FLAT)(r, us[0], 3, [3, 2], [7, 6], [2, 2], [1, 0], [1, 1], True)
    for backend in ("auto", "reference", "torch", "cpu"):
        result = functional.input_relevance(r, weights, us, ms, stride=2, padding=(1, 0), backend=backend)
        assert_close(result, expected)
        assert result.is_contiguous()
        result = functional.input_relevance(r, weights, us, None, (7, 6), 2, (1, 0), reduce=True, backend=backend)
        assert_close(result, reference(OP)(r, weights, us, [None, None], *rest, True))
        result = functional.input_flat_relevance(r, us[0], 3, (3, 2), (7, 6), 2, (1, 0), reduce=True, backend=backend)
        assert_close(result, flat)
        whole = functional.input_flat_relevance(r, us[0], 3, (3, 2), (7, 6), 2, (1, 0), backend=backend)
        assert whole.is_contiguous()
        assert_close(whole, flat.expand(-1, -1, 3, -1, -1) / 3)


W, U = torch.zeros(6, 3, 3, 3), torch.zeros(2, 6, 3, 3)
GOOD = {"relevance": torch.zeros(2, 4, 6, 3, 3), "weights": [W], "coefficients": [U], "input_size": [5, 5]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relevance": torch.zeros(2, 6, 3)}, ValueError, r"relevance must have shape \(B, K, C, \*S'\) with one to"),
        ({"relevance": torch.zeros(2, 4, 6, 3, 4)}, ValueError, r"relevance must have spatial size \[3, 3\], which is"),
        ({"weights": W}, TypeError, "weights must be a list of tensors, got Tensor"),
        ({"weights": []}, ValueError, "weights must have one to 3 entries, got 0"),
        ({"weights": [W] * 4}, ValueError, "weights must have one to 3 entries, got 4; add up the rest"),
        ({"weights": [None]}, TypeError, r"weights\[0\] must be a tensor, got NoneType"),
        ({"weights": [W[0]]}, ValueError, r"weights\[0\] must have shape \(Co, Ci / groups, \*k\) with 2 kernel sizes"),
        ({"weights": [W[:5]]}, ValueError, r"weights\[0\] must have shape \(Co, Ci / groups, \*k\) = \(6, 3, 3, 3\)"),
        (
            {"weights": [W, W[:, :2]], "coefficients": [U, U]},
            ValueError,
            r"weights\[1\] must have shape \(Co, Ci / groups, \*k\) = \(6, 3, 3, 3\), got \(6, 2, 3, 3\)",
        ),
        ({"weights": [W.double()]}, TypeError, r"weights\[0\] must have dtype torch.float32, got torch.float64"),
        ({"weights": [W, W]}, ValueError, r"coefficients must have one entry for each of weights \(2\), got 1"),
        ({"coefficients": [None]}, TypeError, r"coefficients\[0\] must be a tensor, got NoneType"),
        ({"coefficients": [U[:1]]}, ValueError, r"coefficients\[0\] must have shape \(B, Co, \*S'\) = \(2, 6, 3, 3\)"),
        ({"multipliers": []}, ValueError, r"multipliers must have one entry for each of weights \(1\), got 0"),
        ({"multipliers": [U]}, ValueError, r"multipliers\[0\] must have shape \(B, Ci, \*S\) = \(2, 3, 5, 5\), got"),
        ({"input_size": None}, ValueError, "input_size must be given where all multipliers are None"),
        (
            {"input_size": None, "multipliers": [W[0, 0]]},
            ValueError,
            r"multipliers\[0\] must have shape \(B, Ci, \*S\)",
        ),
        ({"input_size": [5]}, ValueError, r"input_size must have 2 entries, each at least 0, got \[5\]"),
        ({"stride": 0}, ValueError, "stride must have 2 entries, each at least 1, got 0"),
        ({"padding": "1"}, TypeError, "padding must be an integer or a list of 2, got '1'"),
        ({"dilation": [1, 0]}, ValueError, r"dilation must have 2 entries, each at least 1, got \[1, 0\]"),
        ({"groups": 4}, ValueError, "groups must divide the channels Co = 6 and Ci, got 4"),
        ({"groups": 0}, ValueError, "groups must divide the channels Co = 6 and Ci, got 0"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=f"{OP}: {message}"):
        functional.input_relevance(**{**GOOD, **change})


FLAT_GOOD = {"relevance": GOOD["relevance"], "u": U, "channels": 3, "kernel_size": 3, "input_size": [5, 5]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relevance": torch.zeros(2, 4, 6, 3, 3).int()}, TypeError, "relevance must have a floating-point dtype"),
        ({"relevance": torch.zeros(2, 4, 6, 4, 3)}, ValueError, r"relevance must have spatial size \[3, 3\], which is"),
        ({"u": None}, TypeError, "u must be a tensor, got NoneType"),
        ({"u": U[:, :5]}, ValueError, r"u must have shape \(B, Co, \*S'\) = \(2, 6, 3, 3\), got \(2, 5, 3, 3\)"),
        ({"channels": 3.0}, TypeError, "channels must be an integer, got 3.0"),
        ({"channels": -1}, ValueError, "channels must not be negative, got -1"),
        ({"kernel_size": [3]}, ValueError, r"kernel_size must have 2 entries, each at least 1, got \[3\]"),
        ({"input_size": None}, TypeError, "input_size must be an integer or a list of 2, got None"),
    ],
)
def test_flat_errors(change, error, message):
    with pytest.raises(error, match=f"{FLAT}: {message}"):
        functional.input_flat_relevance(**{**FLAT_GOOD, **change})
