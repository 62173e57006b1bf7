"""The CUDA kernels for a network's input, run on the CPU by the emulator, against the definition."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlrp.aten import input_rules as plainly
from tests.cuda.emulated import ORDERS, emulated, order
from tests.fixtures import poisoned, seeded  # noqa: F401
from tests.ops.cases import assert_as_near_as_plain, channels_last, in_dtypes, same
from tests.ops.test_ops_input_rules import (
    FLAT,
    LAYERS,
    OP,
    TERMS,
    WIDE,
    Layer,
    arguments,
    flat_arguments,
    memories,
    relaid,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAST = channels_last(2), channels_last(1)

# Maps of several blocks, sources of several groups, chunks of columns and of output channels.
LARGE = [
    Layer("blocks and output channels in parts", (30, 33), (3, 3), padding=(1, 1), channels=(3, 80), batch=(1, 2)),
    Layer("first layer of a ResNet", (37, 40), (7, 7), (2, 2), (3, 3), channels=(3, 8), batch=(2, 1)),
    Layer("first layer of AlexNet", (47, 51), (11, 11), (4, 4), (2, 2), channels=(3, 4), batch=(1, 2)),
    Layer("one block, several groups of sources", (24, 21), (9, 11), padding=(4, 5), channels=(2, 3), batch=(1, 2)),
    Layer("reach wider than a group of sources", (64, 40), (7, 5), dilation=(6, 8), channels=(1, 2), batch=(1, 1)),
    Layer("patches, many places for a source", (65, 70), (8, 8), (8, 8), channels=(3, 2), batch=(1, 2)),
    Layer("long line", (700,), (9,), (1,), (4,), channels=(2, 5), batch=(2, 2)),
    Layer("3-D, several blocks", (12, 13, 11), (3, 3, 3), padding=(1, 1, 1), channels=(2, 4), batch=(1, 2)),
]


def check(op: str, given: tuple[Any, ...], reduce: bool, got: Tensor) -> None:
    assert_as_near_as_plain(op, plainly, (*given, reduce), got)


@pytest.mark.parametrize(("layer", "dtype"), in_dtypes([*LAYERS, *WIDE], DTYPES), ids=str)
def test_equals_reference(layer, dtype):
    for (of, without), reduce in product(TERMS, (False, True)):
        given = arguments(layer, of, without, dtype)
        for changes in memories() if of == "001" else [(same, same), LAST]:
            check(OP, given, reduce, emulated().input_relevance(*relaid(given, changes), reduce))


@pytest.mark.parametrize(("layer", "dtype"), in_dtypes(LARGE, DTYPES), ids=str)
def test_large_maps(layer, dtype):
    for (of, without), reduce in ((("00", ""), False), (("0", "0"), True), (("012", "1"), False)):
        given = arguments(layer, of, without, dtype)
        for changes in ((same, same), LAST):
            check(OP, given, reduce, emulated().input_relevance(*relaid(given, changes), reduce))


@pytest.mark.parametrize(
    ("layer", "dtype"),
    in_dtypes([layer for layer in [*LAYERS, *WIDE, *LARGE] if layer.groups == 1], DTYPES),
    ids=str,
)
def test_flat_equals_reference(layer, dtype):
    given = flat_arguments(layer, dtype)
    for reduce, changes in product((False, True), memories()):
        check(FLAT, given, reduce, emulated().input_flat_relevance(*relaid(given, changes), reduce))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("layer", [LAYERS[1], LAYERS[2], LAYERS[5], LARGE[0]], ids=str)
def test_in_whatever_order_threads_run(layer, name):
    """A missing barrier shows, and results are the same to the last bit."""
    given, flat = arguments(layer, "001", "0", torch.float32), flat_arguments(layer, torch.float32)
    expected = emulated().input_relevance(*given, False), emulated().input_flat_relevance(*flat, False)
    for seed in range(3 if name == "random" else 1):
        with order(name, seed):
            assert torch.equal(emulated().input_relevance(*given, False), expected[0])
            assert torch.equal(emulated().input_flat_relevance(*flat, False), expected[1])


@pytest.mark.parametrize("channels", [4, 6, 8, 16, 31, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_and_their_rests(dtype, channels):
    """Channels that fill vectors or don't, in memory that begins where a vector may and where it may not."""
    layer = Layer("", (6, 5), (3, 3), padding=(1, 1), channels=(2, channels), batch=(1, 2))
    given, flat = arguments(layer, "00", "1", dtype), flat_arguments(layer, dtype)
    for changes in (LAST, (lambda t: shifted(LAST[0](t)), LAST[1]), (LAST[0], lambda t: shifted(LAST[1](t)))):
        check(OP, given, False, emulated().input_relevance(*relaid(given, changes), False))
        check(FLAT, flat, False, emulated().input_flat_relevance(*relaid(flat, changes), False))


def shifted(t: Tensor) -> Tensor:
    """The same values and strides in memory that begins one element after a multiple of 16 bytes."""
    memory = torch.full((t.numel() + 1,), torch.nan, dtype=t.dtype)
    return memory[1:].as_strided(t.shape, t.stride()).copy_(t)


def test_targets_by_strides():
    """Some of the targets and samples, and an expanded one: no copy, only other strides."""
    given = arguments(LAYERS[1], "00", "", torch.float32)
    flow = torch.full((3, 7, *given[0].shape[2:]), torch.nan)
    flow[1:, ::3] = given[0]
    before = emulated().launches()
    assert torch.equal(
        emulated().input_relevance(flow[1:, ::3], *given[1:], True), emulated().input_relevance(*given, True)
    )
    one = (given[0][:, :1].expand(-1, 4, -1, -1, -1), *given[1:])
    check(OP, one, False, emulated().input_relevance(*one, False))
    assert emulated().launches() == before + 3


def test_one_launch_and_dense_results():
    """zB in one kernel, flat in two; what is neither is composed, without any of ours."""
    module = emulated()
    for layer, expected in ((LAYERS[1], 1), (WIDE[0], 0), (WIDE[1], 0), (WIDE[3], 0), (LAYERS[14], 0)):
        before = module.launches()
        module.input_relevance(*arguments(layer, "00", "", torch.float32), False)
        assert module.launches() == before + expected, layer
    before = module.launches()
    result = module.input_flat_relevance(*flat_arguments(LAYERS[1], torch.float32), False)
    assert module.launches() == before + 2
    assert result.movedim(2, -1).is_contiguous()


def test_nan_reaches_nothing_but_what_its_window_holds():
    r, *rest = arguments(LAYERS[1], "00", "", torch.float32)
    expected = emulated().input_relevance(r, *rest, False)
    r[1, 2, 4, 3, 0] = torch.nan
    hit = torch.zeros_like(expected, dtype=torch.bool)
    hit[1, 2, :, 2:5, :2] = True
    got = emulated().input_relevance(r, *rest, False)
    assert got[hit].isnan().all()
    assert torch.equal(got[~hit], expected[~hit])


W, U, X = torch.zeros(6, 3, 3, 3), torch.zeros(2, 6, 3, 3), torch.zeros(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: torch.zeros(2, 4, 6)}, ValueError, r"weights must have shape \(Co, Ci / groups, \*k\) with one size"),
        (
            {0: torch.zeros(2, 4, 6), 1: [W[0, 0]]},
            ValueError,
            r"relevance must have shape \(B, K, C, \*S'\) with one to",
        ),
        ({0: torch.zeros(2, 4, 6, 3, 3).int()}, TypeError, "relevance must be float16, bfloat16, float32 or float64"),
        ({0: torch.zeros(2, 4, 6, 3, 3, device="meta")}, RuntimeError, "relevance must be a dense CUDA tensor"),
        ({1: []}, ValueError, "weights must have one to 3 entries, got 0"),
        ({1: [W] * 4}, ValueError, "weights must have one to 3 entries, got 4"),
        ({1: [W, W]}, ValueError, r"coefficients and multipliers must have one entry for each of weights \(2\), got 1"),
        ({1: [W.double()]}, TypeError, r"weights\[0\] must be Float, got Double"),
        ({1: [W[:5]]}, ValueError, r"weights\[0\] must have shape \[6, 3, 3, 3\], got \[5, 3, 3, 3\]"),
        ({2: [U[:1]]}, ValueError, r"coefficients\[0\] must have shape \[2, 6, 3, 3\], got \[1, 6, 3, 3\]"),
        ({2: [U.to("meta")]}, RuntimeError, r"coefficients\[0\] must be a dense CUDA tensor, got Strided on meta"),
        ({3: [U]}, ValueError, r"multipliers\[0\] must have shape \[2, 3, 5, 5\], got \[2, 6, 3, 3\]"),
        ({4: [5]}, ValueError, r"input_size must have one entry per spatial axis of relevance \(2\), got \[5\]"),
        ({4: [-5, 5]}, ValueError, r"input_size must not be negative, got \[-5, 5\]"),
        ({4: [2**20, 2**20], 3: [None]}, ValueError, "input_size must leave fewer than 2.31 elements"),
        ({5: [0, 1]}, ValueError, r"stride must be positive, got \[0, 1\]"),
        ({6: [-1, 1]}, ValueError, r"padding must not be negative, got \[-1, 1\]"),
        ({7: [1, 2**31]}, ValueError, r"dilation must be below 2\^31, got \[1, 2147483648\]"),
        ({8: 4}, ValueError, r"groups must divide the channels of relevance \(6\), got 4"),
    ],
)
def test_errors(change, error, message):
    given = [torch.zeros(2, 4, 6, 3, 3), [W], [U], [X], [5, 5], [1, 1], [0, 0], [1, 1], 1, False]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(error, match=f"input_relevance: {message}"):
        emulated().input_relevance(*given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({1: U[:, :5]}, ValueError, r"u must have shape \[2, 6, 3, 3\], got \[2, 5, 3, 3\]"),
        ({1: U.half()}, TypeError, "u must be Float, got Half"),
        ({2: -1}, ValueError, "channels must not be negative, got -1"),
        ({3: [3, 0]}, ValueError, r"kernel_size must be positive, got \[3, 0\]"),
        ({3: [3]}, ValueError, r"kernel_size must have one entry per spatial axis of relevance \(2\), got \[3\]"),
    ],
)
def test_flat_errors(change, error, message):
    given = [torch.zeros(2, 4, 6, 3, 3), U, 3, [3, 3], [5, 5], [1, 1], [0, 0], [1, 1], False]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(error, match=f"input_flat_relevance: {message}"):
        emulated().input_flat_relevance(*given)
