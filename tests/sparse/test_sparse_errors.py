"""Wrong arguments for the shared-sparsity kernels: an error that says what was expected, not a crash."""

from __future__ import annotations

import pytest
import torch

from tests.sparse.cases import KERNELS, pattern_of, rows_of

PATTERN = pattern_of(torch.eye(3).repeat(2, 1, 10)[:, :, :20].view(2, 3, 4, 5))  # One alive channel at each position.
ENTRIES = len(PATTERN[1])
REGISTER = torch.ones(2, 7, 3, 4, 5)
ROWS = rows_of(REGISTER, PATTERN)
VALUES = ROWS[0]
EVERYWHERE = pattern_of(torch.ones(2, 4, 4, 5))
INDEX = torch.zeros(2, 3, 4, 5, dtype=torch.long)
WEIGHT = torch.ones(1, 3, 4, 9)
CONV = {
    "arriving": ROWS, "batch": 2, "targets": 7, "coefficients": [torch.ones(2, 3, 4, 5)],
    "weights": [KERNELS.sparse_pack(WEIGHT)], "channels_per_group": [3, 4], "leaving": EVERYWHERE, "input_size": [4, 5],
    "output_size": [4, 5], "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
    "transposed": False, "channels": None, "factors": [], "initial": [],
}  # fmt: skip
WINNERS = {
    "index": INDEX, "pooled": PATTERN, "input_size": [8, 10], "kernel_size": [2, 2], "stride": [2, 2],
    "padding": [0, 0], "dilation": [1, 1],
}  # fmt: skip
WINDOWS = {
    "wanted": pattern_of(torch.ones(2, 3, 8, 10)), "pooled": PATTERN, "batch": 2, "input_size": [8, 10],
    "output_size": [4, 5], "kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0],
}  # fmt: skip
GATHER = {"source": ROWS, "starts": torch.arange(ENTRIES + 1), "rows": torch.arange(ENTRIES), "targets": 7}
SUM = {"sources": [(*ROWS, None)], "pattern": PATTERN, "batch": 2, "targets": 7}
TO_DENSE = {"source": ROWS, "batch": 2, "targets": 7, "size": [3, 4, 5]}
FROM_DENSE = {"relevance": REGISTER, "pattern": PATTERN}


def call(op: str, arguments: dict, **change: object) -> object:
    return getattr(KERNELS, f"sparse_{op}")(**{**arguments, **change})


def with_rows(values=VALUES, rows=None, offsets=PATTERN[0], channels=PATTERN[1]):
    return values, rows, offsets, channels


def test_no_targets():
    rows = call("from_dense", FROM_DENSE, relevance=REGISTER[:, :0])
    assert rows.shape == (ENTRIES, 0)
    assert call("to_dense", TO_DENSE, source=with_rows(rows), targets=0).shape == (2, 0, 3, 4, 5)


def test_right_arguments_are_right():
    for op, arguments in (("conv_relevance", CONV), ("winners", WINNERS), ("windows", WINDOWS), ("gather_sum", GATHER),
                          ("sum", SUM), ("to_dense", TO_DENSE), ("from_dense", FROM_DENSE)):  # fmt: skip
        call(op, arguments)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ([], ValueError, "no mask given"),
        ([torch.ones(3)], ValueError, r"mask must have shape \(B, C, \*S\), got \[3\]"),
        ([torch.ones(2, 3, dtype=torch.long)], TypeError, "mask must be float32 or float64, got Long"),
        ([torch.ones(2, 3).half()], TypeError, "mask must be float32 or float64, got Half"),
        ([torch.ones(2, 3, device="meta")], RuntimeError, "mask must be a dense CPU tensor, got Strided on meta"),
        ([torch.ones(2, 3).to_sparse()], RuntimeError, "mask must be a dense CPU tensor, got Sparse"),
        ([torch.ones(2, 3), torch.ones(2, 4)], ValueError, r"masks must have the same shape, got \[2, 4\]"),
        ([torch.ones(2, 3), torch.ones(2, 3).double()], TypeError, "mask must be Float, got Double"),
    ],
)
def test_pattern(masks, error, message):
    with pytest.raises(error, match=f"sparse_pattern: {message}"):
        pattern_of(*masks)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (INDEX.int(), TypeError, "index must be int64, got Int"),
        (INDEX[:1], ValueError, "masks must have the same shape"),
        (INDEX[:, :2], ValueError, "masks must have the same shape"),
        (INDEX.to("meta"), RuntimeError, "index must be a dense CPU tensor"),
    ],
)
def test_pattern_with_an_index(index, error, message):
    with pytest.raises(error, match=f"sparse_pattern: {message}"):
        KERNELS.sparse_pattern([(torch.ones(2, 3, 4, 5), index)])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relevance": torch.ones(3, 4)}, ValueError, r"relevance must have shape \(B, K, C, \*S\), got \[3, 4\]"),
        ({"relevance": REGISTER[:1]}, ValueError, "the pattern has 40 positions, relevance 20"),
        ({"relevance": REGISTER.half()}, TypeError, "relevance must be float32 or float64, got Half"),
        ({"relevance": REGISTER.to("meta")}, RuntimeError, "relevance must be a dense CPU tensor"),
        (
            {"pattern": (PATTERN[0][:-1], PATTERN[1])},
            ValueError,
            r"the last offset \(39\) must be the number of channels",
        ),
        ({"pattern": (PATTERN[0], PATTERN[1][:-1])}, ValueError, r"must be the number of channels \(39\)"),
        ({"pattern": (PATTERN[0].int(), PATTERN[1])}, TypeError, "int64 offsets and int32 channels, got Int and Int"),
        (
            {"pattern": (PATTERN[0], PATTERN[1].long())},
            TypeError,
            "int64 offsets and int32 channels, got Long and Long",
        ),
        ({"pattern": (PATTERN[0][:0], PATTERN[1][:0])}, ValueError, "one entry more than there are positions"),
        ({"pattern": (PATTERN[0].repeat(2)[::2], PATTERN[1])}, ValueError, "offsets must be contiguous"),
    ],
)
def test_from_dense(change, error, message):
    with pytest.raises(error, match=f"sparse_from_dense: .*{message}"):
        call("from_dense", FROM_DENSE, **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": 17}, ValueError, r"sparse_to_dense: values must be rows of at least 17 targets, got \[40, 16\]"),
        ({"size": []}, ValueError, r"sparse_to_dense: size must be \(C, \*S\), got \(\)"),
        ({"size": [3, 4, 4]}, ValueError, "sparse_to_dense: the pattern has 40 positions, the result 32"),
        ({"batch": 1}, ValueError, "sparse_to_dense: the pattern has 40 positions, the result 20"),
        ({"source": with_rows(VALUES.int())}, TypeError, "sparse_to_dense: values must be float32 or float64, got Int"),
        ({"targets": -7}, ValueError, "sparse_to_dense: batch and targets must not be negative, got 2 and -7"),
        ({"size": [-3, 4, 5]}, ValueError, r"sparse_to_dense: size must not be negative, got \[-3, 4, 5\]"),
    ],
)
def test_to_dense(change, error, message):
    with pytest.raises(error, match=message):
        call("to_dense", TO_DENSE, **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sources": []}, ValueError, "nothing to add"),
        ({"targets": -40}, ValueError, "targets must not be negative, got -40"),
        ({"batch": 7}, ValueError, "40 positions are no whole number for each sample of a batch of 7"),
        ({"batch": 0}, ValueError, "40 positions are no whole number for each sample of a batch of 0"),
        ({"pattern": pattern_of(torch.ones(1, 3, 4, 5))}, ValueError, "patterns differ in their positions"),
        (
            {"sources": [(*ROWS, torch.ones(2, 3, 4, 4))]},
            ValueError,
            r"factor must have shape \(B, C, \*S\), got \[2, 3",
        ),
        (
            {"sources": [(*ROWS, torch.ones(1, 3, 8, 5))]},
            ValueError,
            r"factor must have shape \(B, C, \*S\), got \[1, 3",
        ),
        ({"sources": [(*ROWS, torch.ones(2, 3, 4, 5).double())]}, TypeError, "factor must be Float, got Double"),
        (
            {"sources": [(*ROWS, None), (*with_rows(VALUES.double()), None)]},
            TypeError,
            "values must be Float, got Double",
        ),
        ({"sources": [(*ROWS, None), (*with_rows(VALUES[:, :5]), None)]}, ValueError, "rows of at least 7 targets"),
        ({"sources": [(*with_rows(VALUES[1:]), None)]}, ValueError, "values must have 40 rows, got 39"),
    ],
)
def test_sum(change, error, message):
    with pytest.raises(error, match=f"sparse_sum: .*{message}"):
        call("sum", SUM, **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": INDEX.float()}, TypeError, "index must be int64, got Float"),
        ({"index": INDEX[..., :4]}, ValueError, r"the pattern has 40 positions, index has shape \[2, 3, 4, 4\]"),
        ({"index": INDEX.flatten()}, ValueError, r"index must have shape \(B, C, \*S'\), got \[120\]"),
        ({"index": INDEX.to("meta")}, RuntimeError, "index must be a dense CPU tensor"),
        ({"input_size": [8]}, ValueError, "must have one entry per spatial axis"),
        ({"input_size": [-8, -10]}, ValueError, "sizes must not be negative, got -8 and 4"),
        ({"kernel_size": [2, 0]}, ValueError, "kernel size must be at least 1"),
        ({"stride": [0, 2]}, ValueError, "stride, dilation and kernel size must be at least 1"),
    ],
)
def test_winners(change, error, message):
    with pytest.raises(error, match=f"sparse_winners: .*{message}"):
        call("winners", WINNERS, **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"wanted": (PATTERN[0].int(), PATTERN[1])}, TypeError, "a pattern has int64 offsets and int32 channels"),
        ({"pooled": (PATTERN[0][:-1], PATTERN[1])}, ValueError, "must be the number of channels"),
        ({"batch": 1}, ValueError, "patterns have 160 and 40 positions, sizes ask for 80 and 20"),
        ({"batch": -2}, ValueError, "batch must not be negative, got -2"),
        ({"output_size": [4, 4]}, ValueError, "patterns have 160 and 40 positions, sizes ask for 160 and 32"),
        ({"output_size": [4]}, ValueError, "must have one entry per spatial axis"),
        ({"kernel_size": [2]}, ValueError, "must have one entry per spatial axis"),
        ({"kernel_size": [0, 2]}, ValueError, "kernel size must be at least 1"),
        ({"padding": [-1, 0]}, ValueError, "padding at least 0"),
    ],
)
def test_windows(change, error, message):
    with pytest.raises(error, match=f"sparse_windows: .*{message}"):
        call("windows", WINDOWS, **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"starts": GATHER["starts"].int()}, ValueError, "starts and rows must be contiguous int64 tensors"),
        ({"rows": GATHER["rows"].int()}, ValueError, "starts and rows must be contiguous int64 tensors"),
        ({"starts": GATHER["starts"][:0]}, ValueError, "starts and rows must be contiguous int64 tensors"),
        ({"source": with_rows(VALUES.half())}, TypeError, "values must be float32 or float64, got Half"),
        ({"targets": 17}, ValueError, "values must be rows of at least 17 targets"),
        ({"targets": -40}, ValueError, "targets must not be negative, got -40"),
    ],
)
def test_gather_sum(change, error, message):
    with pytest.raises(error, match=f"sparse_gather_sum: .*{message}"):
        call("gather_sum", GATHER, **change)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(3, 4, 9), ValueError, r"weight must have shape \(groups, Co, Ci, taps\), got \[3, 4, 9\]"),
        (WEIGHT[:, :0], ValueError, r"weight must have channels on both sides, got \[1, 0, 4, 9\]"),
        (WEIGHT[:, :, :0], ValueError, r"weight must have channels on both sides, got \[1, 3, 0, 9\]"),
        (WEIGHT.int(), TypeError, "weight must be float32 or float64, got Int"),
        (WEIGHT.to("meta"), RuntimeError, "weight must be a dense CPU tensor"),
    ],
)
def test_pack(weight, error, message):
    with pytest.raises(error, match=f"sparse_pack: {message}"):
        KERNELS.sparse_pack(weight)


U, PACKED = CONV["coefficients"][0], CONV["weights"][0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"arriving": with_rows(VALUES.half())}, TypeError, "values must be float32 or float64, got Half"),
        ({"arriving": with_rows(VALUES.double())}, TypeError, "weight must be Double, got Float"),
        ({"arriving": with_rows(VALUES[1:])}, ValueError, "values must have 40 rows, got 39"),
        ({"arriving": with_rows(torch.ones(40, 14)[:, ::2])}, ValueError, r"at least 7 targets, got \[40, 7\]"),
        ({"arriving": with_rows(rows=torch.arange(40).int())}, ValueError, "rows must be int64, one per entry"),
        ({"arriving": with_rows(rows=torch.arange(39))}, ValueError, "rows must be int64, one per entry"),
        ({"arriving": with_rows(offsets=PATTERN[0].to("meta"))}, RuntimeError, "offsets must be a dense CPU tensor"),
        ({"targets": 17}, ValueError, r"values must be rows of at least 17 targets, got \[40, 16\]"),
        ({"batch": 1}, ValueError, r"coefficient must have shape \(B, Co, \*S'\), got \[2, 3, 4, 5\]"),
        ({"coefficients": []}, ValueError, "expected a coefficient for each weight"),
        ({"weights": []}, ValueError, "expected a coefficient for each weight"),
        ({"coefficients": [U[..., :4]]}, ValueError, r"coefficient must have shape .*, got \[2, 3, 4, 4\]"),
        ({"coefficients": [U[:, :2]]}, ValueError, r"coefficient must have shape .*, got \[2, 2, 4, 5\]"),
        ({"coefficients": [U.double()]}, TypeError, "coefficient must be Float, got Double"),
        ({"weights": [WEIGHT]}, ValueError, r"packed by sparse_pack, or \(Co, Ci\) of a linear layer"),
        ({"weights": [KERNELS.sparse_pack(WEIGHT[..., :4])]}, ValueError, "weights must be packed by sparse_pack"),
        ({"weights": [torch.ones(3, 4)]}, ValueError, r"packed by sparse_pack, or \(Co, Ci\) of a linear layer"),
        ({"weights": [PACKED, PACKED.double()], "coefficients": [U, U]}, TypeError, "weight must be Float, got Double"),
        ({"weights": [PACKED, KERNELS.sparse_pack(torch.ones(1, 3, 5, 9))], "coefficients": [U, U]}, ValueError,
         "all weights must be contiguous and have the same shape"),
        ({"weights": [PACKED.transpose(4, 5).contiguous().transpose(4, 5)]}, ValueError, "weights must be contiguous"),
        ({"channels_per_group": [3, 5]}, ValueError, "channels per group do not fit the packed weight"),
        ({"channels_per_group": [0, 4]}, ValueError, "channels per group do not fit the packed weight"),
        ({"channels_per_group": [3]}, ValueError, "channels per group on both sides"),
        ({"leaving": pattern_of(torch.ones(2, 4, 4, 4))}, ValueError, "40 and 32 positions, sizes ask for 40 and 40"),
        ({"stride": [0, 1]}, ValueError, "stride, dilation and kernel size must be at least 1, padding at least 0"),
        ({"dilation": [1, -1]}, ValueError, "stride, dilation and kernel size must be at least 1, padding at least 0"),
        ({"padding": [-1, 1]}, ValueError, "stride, dilation and kernel size must be at least 1, padding at least 0"),
        ({"stride": [1]}, ValueError, "must have one entry per spatial axis, at most 3"),
        ({key: [1] * 4 for key in ("input_size", "output_size", "kernel_size", "stride", "padding", "dilation")},
         ValueError, "must have one entry per spatial axis, at most 3"),
        ({"targets": -40}, ValueError, "targets must not be negative, got -40"),
        ({"input_size": [-4, -5]}, ValueError, "sizes must not be negative, got -4 and 4"),
        ({"output_size": [-4, -5]}, ValueError, "sizes must not be negative, got 4 and -4"),
        ({"factors": [torch.ones(2, 4, 4, 5)]}, ValueError, "factors belong to a dense result: give channels"),
        ({"other": U}, ValueError, "expected a coefficient for each weight"),
        ({"weights": [PACKED, PACKED], "other": U[..., :4]}, ValueError, "the coefficient's shape .*, got .2, 3, 4, 4"),
        ({"weights": [PACKED, PACKED], "other": U}, ValueError, "must lie one behind the other in memory"),
        ({"weights": [PACKED, PACKED], "other": U.double()}, TypeError, "other must be Float, got Double"),
        ({"channels": 3}, ValueError, "channels must divide the input channels, with a factor for each fold"),
        ({"channels": 0}, ValueError, "channels must divide the input channels, with a factor for each fold"),
        ({"channels": 2, "factors": [torch.ones(2, 2, 4, 5)]}, ValueError, "with a factor for each fold"),
        ({"channels": 4, "factors": [torch.ones(2, 2, 4, 5)]}, ValueError,
         r"factor must have shape \(B, channels, \*S\), got \[2, 2, 4, 5\]"),
        ({"channels": 4, "factors": [torch.ones(2, 4, 4, 5).double()]}, TypeError, "factor must be Float, got Double"),
        ({"initial": [(*ROWS, None)] * 2}, ValueError, "a compact result can begin with one register"),
        ({"initial": [(*ROWS, None)], "channels": 4}, ValueError, "a dense one with none"),
        ({"initial": [(*ROWS, torch.ones(2, 4, 4, 4))]}, ValueError, r"factor must have shape \(B, C, \*S\)"),
        ({"initial": [(*with_rows(VALUES[:, :5]), None)]}, ValueError, "rows of at least 7 targets"),
    ],
)  # fmt: skip
def test_conv_relevance(change, error, message):
    with pytest.raises(error, match=f"sparse_conv_relevance: .*{message}"):
        call("conv_relevance", CONV, **change)


def linear(weight, channels=(3, 4)):
    pattern = pattern_of(torch.ones(2, 3))
    return KERNELS.sparse_conv_relevance(
        rows_of(torch.ones(2, 7, 3), pattern), 2, 7, [torch.ones(2, 3)], [weight], list(channels),
        pattern_of(torch.ones(2, 4)), [], [], [], [], [], [], False, None, [], [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("weight", "channels", "message"),
    [
        (torch.ones(4, 3), (3, 4), r"a linear weight must be \(Co, Ci\).*, got \[4, 3\]"),
        (torch.ones(3, 4), (3, 5), r"a linear weight must be \(Co, Ci\).*, got \[3, 4\]"),
        (torch.ones(3, 8)[:, ::2], (3, 4), "all weights must be contiguous, or all of them transposes of"),
        (torch.ones(8, 3)[::2].t(), (3, 4), "all weights must be contiguous, or all of them transposes of"),
        (torch.ones(3, 4, 1), (3, 4), "weights must be packed by sparse_pack"),
    ],
)
def test_linear_weights(weight, channels, message):
    for whole in (torch.ones(3, 4), torch.ones(4, 3).t()):
        assert torch.equal(linear(whole)[:, :7], torch.full((8, 7), 3.0))
    with pytest.raises(ValueError, match=f"sparse_conv_relevance: {message}"):
        linear(weight, channels)
