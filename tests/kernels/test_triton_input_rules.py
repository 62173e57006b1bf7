"""The Triton kernels for a network's input, interpreted on the CPU, against the definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from fastlrp.aten import input_rules as plainly
from fastlrp.kernels import input_rules as kernels
from tests.ops.cases import assert_as_near_as_plain, channels_last, reversed_memory, same, with_gaps
from tests.ops.test_ops_input_rules import FLAT, LAYERS, OP, TERMS, WIDE, Layer, arguments, flat_arguments, relaid

# Interpreting is slow: one sample and two targets, unless a test is about them.
SMALL = [replace(layer, batch=tuple(map(min, layer.batch, (1, 2)))) for layer in LAYERS]
NUMBERS = [
    pytest.param(n, marks=pytest.mark.full) if layer.name in ("first layer of a ResNet, small", "dilated") else n
    for n, layer in enumerate(SMALL)
]
"""These two go the ways of the strided and the dilated and strided one, in many more programs."""
LAST = channels_last(2), channels_last(1)


# How much larger than that of PyTorch's own operations the error may be. The interpreter cuts bfloat16 off where a GPU
# rounds to the nearest.
TIMES = {torch.float16: 2, torch.bfloat16: 4}


def check(op: str, given: tuple[Any, ...], reduce: bool, got: Tensor) -> None:
    assert_as_near_as_plain(op, plainly, (*given, reduce), got, TIMES.get(got.dtype, 1))


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: str(SMALL[n]))
def test_equals_reference(number):
    """Terms, memory and ``reduce`` in turn: each of them meets several layers."""
    layer = SMALL[number]
    of, without = TERMS[number % len(TERMS)]
    changes = (LAST, (same, same), (with_gaps, with_gaps), (LAST[0], same), (reversed_memory, LAST[1]))[number % 5]
    given, reduce = arguments(layer, of, without, torch.float32), number % 3 == 0
    check(OP, given, reduce, kernels.input_relevance(*relaid(given, changes), reduce))


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize(("of", "without"), TERMS)
def test_terms(of, without, reduce):
    layer = Layer("", (4, 3), (2, 2), channels=(3, 5), batch=(1, 1))
    given = arguments(layer, of, without, torch.float32)
    check(OP, given, reduce, kernels.input_relevance(*given, reduce))


@pytest.mark.parametrize("channels", range(1, kernels.MOST_CHANNELS + 1))
def test_channels(channels):
    """Slots are padded to powers of two; output channels to a multiple of a block."""
    layer = Layer("", (3, 4), (2, 1), channels=(channels, 16 * (channels % 3) + channels), batch=(2, 1))
    for of in ("00", "012"):
        given = arguments(layer, of, "", torch.float32)
        check(OP, given, False, kernels.input_relevance(*given, False))


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        (SMALL[8], torch.bfloat16),
        (SMALL[3], torch.float16),
        pytest.param(SMALL[8], torch.float16, marks=pytest.mark.full),
        pytest.param(SMALL[3], torch.bfloat16, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_16_bits(layer, dtype):
    given, flat = arguments(layer, "001", "1", dtype), flat_arguments(layer, dtype)
    for changes, reduce in ((LAST, False), ((same, same), True)):
        check(OP, given, reduce, kernels.input_relevance(*relaid(given, changes), reduce))
        check(FLAT, flat, reduce, kernels.input_flat_relevance(*relaid(flat, changes), reduce))


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: str(SMALL[n]))
def test_flat_equals_reference(number):
    given, reduced = flat_arguments(SMALL[number], torch.float32), number % 2 == 0
    mixed = ((with_gaps, with_gaps), (same, LAST[1]))[number % 2]
    for changes, reduce in ((LAST, reduced), (mixed, not reduced)):
        check(FLAT, given, reduce, kernels.input_flat_relevance(*relaid(given, changes), reduce))


def test_flat_in_several_blocks():
    given = flat_arguments(Layer("", (19, 21), (3, 3), padding=(1, 1), channels=(9, 70), batch=(2, 1)), torch.float32)
    for changes in (LAST, (same, same)):
        check(FLAT, given, False, kernels.input_flat_relevance(*relaid(given, changes), False))


def test_samples_and_targets():
    given = arguments(Layer("", (4, 5), (3, 2), (1, 2), batch=(3, 3)), "01", "", torch.float32)
    for changes in (LAST, (reversed_memory, same)):
        check(OP, given, False, kernels.input_relevance(*relaid(given, changes), False))


@pytest.mark.parametrize("layer", WIDE, ids=str)
def test_what_the_kernel_cannot_is_composed(layer, monkeypatch):
    given = arguments(layer, "00", "1", torch.float32)
    monkeypatch.setattr(kernels, "relevance_launch", None)
    check(OP, given, False, kernels.input_relevance(*given, False))


@pytest.mark.parametrize(
    ("layer", "of", "reason"),
    [
        (WIDE[0], "0", "9 input channels, the kernel is for at most 8"),
        (WIDE[1], "0", "2 groups, the kernel is for layers without"),
        (WIDE[3], "0", "143 taps, each of which reads the relevance again: at most 128"),
        (LAYERS[0], "0000", "4 terms, the kernel is for at most 3"),
        (LAYERS[0], "000", None),
        (LAYERS[-1], "0", None),
    ],
)
def test_reasons(layer, of, reason):
    weights = [torch.zeros(layer.channels[1], layer.channels[0] // layer.groups, *layer.kernel) for _ in of]
    found = kernels.cannot(weights, layer.groups)
    assert found is None if reason is None else reason in found


def test_results_are_dense_with_channels_innermost():
    given, flat = arguments(SMALL[1], "0", "", torch.float32), flat_arguments(SMALL[1], torch.float32)
    for result in (kernels.input_relevance(*given, False), kernels.input_flat_relevance(*flat, False)):
        assert result.movedim(2, -1).is_contiguous()
