"""Wrong arguments of every kind for the shared-sparsity kernels, and patterns that point outside."""

from __future__ import annotations

import pytest
import torch

from tests import hostile
from tests.sparse.cases import KERNELS
from tests.sparse.test_sparse_errors import (
    CONV,
    ENTRIES,
    FROM_DENSE,
    GATHER,
    PATTERN,
    ROWS,
    SUM,
    TO_DENSE,
    WEIGHT,
    WINDOWS,
    WINNERS,
)  # fmt: skip

OFFSETS, CHANNELS = PATTERN
FACTOR = torch.ones(2, 3, 4, 5)
RIGHT = {
    "pattern": {"masks": [(FACTOR, None), (FACTOR, torch.zeros(2, 3, 4, 5, dtype=torch.long))]},
    "from_dense": FROM_DENSE,
    "to_dense": TO_DENSE,
    "sum": {**SUM, "sources": [(*ROWS, FACTOR), (ROWS[0], torch.arange(ENTRIES), *PATTERN, None)]},
    "winners": WINNERS,
    "windows": WINDOWS,
    "gather_sum": GATHER,
    "pack": {"weight": WEIGHT},
    "conv_relevance": {
        **CONV, "arriving": (ROWS[0], torch.arange(ENTRIES), *PATTERN),
        "initial": [(torch.ones(160, 16), None, *CONV["leaving"], torch.ones(2, 4, 4, 5))],
    },
}  # fmt: skip
DENSE = {**CONV, "channels": 2, "factors": [torch.ones(2, 2, 4, 5)] * 2}
BOTH = torch.stack([CONV["weights"][0]] * 2)
ONE_OF_TWO = {**CONV, "weights": list(BOTH), "other": torch.ones(2, 3, 4, 5)}


@pytest.mark.parametrize("op", RIGHT)
def test_wrong_arguments_are_refused_or_do_no_harm(op):
    name = f"sparse_{op}"
    assert hostile.survived(getattr(KERNELS, name), name, RIGHT[op]) > 10


@pytest.mark.parametrize("arguments", [DENSE, ONE_OF_TWO], ids=["dense", "one of two weights"])
def test_other_products(arguments):
    assert hostile.survived(KERNELS.sparse_conv_relevance, "sparse_conv_relevance", arguments) > 100


def changed(tensor, place, value):
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


PATTERNS = [
    ((changed(OFFSETS, 0, 1), CHANNELS), "the first offset must be 0, got 1"),
    ((changed(OFFSETS, -1, 41), CHANNELS), r"the last offset \(41\) must be the number of channels \(40\)"),
    ((changed(OFFSETS, 7, 2**40), CHANNELS), rf"offsets must not descend, got 8 after {2**40} at 8"),
    ((changed(OFFSETS, 7, -3), CHANNELS), "offsets must not descend, got -3 after 6 at 7"),
    ((OFFSETS, changed(CHANNELS, 5, 3)), r"channels must be in \[0, 3\), got 3 at entry 5"),
    ((OFFSETS, changed(CHANNELS, 0, 10**9)), r"channels must be in \[0, 3\), got 1000000000 at entry 0"),
    ((OFFSETS, changed(CHANNELS, -1, -1)), r"channels must be in \[0, 3\), got -1 at entry 39"),
    ((changed(OFFSETS, 1, 0), changed(CHANNELS, 1, 0)), "channels must ascend within a position, got 0 after 0 at ent"),
]


@pytest.mark.parametrize(("pattern", "message"), PATTERNS)
@pytest.mark.parametrize("op", ["from_dense", "to_dense", "sum", "winners", "conv_relevance"])
def test_patterns_that_point_outside(op, pattern, message):
    change = {
        "from_dense": {"pattern": pattern},
        "to_dense": {"source": (ROWS[0], None, *pattern)},
        "sum": {"pattern": pattern},
        "winners": {"pooled": pattern},
        "conv_relevance": {"arriving": (ROWS[0], None, *pattern)},
    }[op]
    with pytest.raises(ValueError, match=f"sparse_{op}: .* cannot be followed: {message}"):
        getattr(KERNELS, f"sparse_{op}")(**{**RIGHT[op], **change})


@pytest.mark.parametrize("row", [-1, 40, 2**62, -(2**63)])
def test_rows_that_point_outside(row):
    rows = changed(torch.arange(ENTRIES), 17, row)
    source, message = (
        (ROWS[0], rows, *PATTERN),
        rf"cannot be followed: rows must be in \[0, 40\), got {row} at entry 17",
    )
    for op, change in (
        ("to_dense", {"source": source}),
        ("sum", {"sources": [(*source, None)]}),
        ("gather_sum", {"source": source}),
        ("gather_sum", {"rows": rows}),
        ("conv_relevance", {"arriving": source}),
    ):
        with pytest.raises(ValueError, match=f"sparse_{op}: .*{message}"):
            getattr(KERNELS, f"sparse_{op}")(**{**RIGHT[op], **change})


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (changed(GATHER["starts"], 0, -1), "the first start must be 0, got -1"),
        (changed(GATHER["starts"], -1, 41), r"the last start \(41\) must be the number of rows \(40\)"),
        (changed(GATHER["starts"], 9, 39), "starts must not descend, got 10 after 39 at 10"),
    ],
)
def test_lists_that_point_outside(starts, message):
    with pytest.raises(ValueError, match=f"sparse_gather_sum: starts cannot be followed: {message}"):
        KERNELS.sparse_gather_sum(**{**GATHER, "starts": starts})


def test_a_list_without_rows_is_a_sum_of_nothing():
    starts = torch.tensor([0, 0, 2, 2])
    found = KERNELS.sparse_gather_sum(ROWS, starts, torch.tensor([3, 4]), 7)
    assert torch.equal(found[:, :7], torch.stack([torch.zeros(7), 2 * torch.ones(7), torch.zeros(7)]))


@pytest.mark.parametrize("place", [-1, 80, 2**32 + 1])
def test_an_index_that_names_no_place(place):
    index = torch.zeros(2, 3, 4, 5, dtype=torch.long)
    index[1] = place
    with pytest.raises(IndexError, match=f"index must name one of the 20 places of its map, got {place}"):
        KERNELS.sparse_pattern([(FACTOR, index)])
    # A pool's output whose winner is not in its window goes nowhere.
    assert [part.numel() for part in KERNELS.sparse_winners(**{**WINNERS, "index": index})] == [161, 1, 2, 1]


def test_as_many_rows_as_no_memory_has():
    """The product of sizes is beyond 64 bits: nothing may be made of what is left of it."""
    nothing = torch.empty(0, 2**60)
    pattern = KERNELS.sparse_pattern([(torch.zeros(2, 3, 4, 5), None)])
    arguments = {**CONV, "arriving": (nothing, None, *pattern), "targets": 2**60}
    with pytest.raises((RuntimeError, MemoryError)):
        KERNELS.sparse_conv_relevance(**arguments)
