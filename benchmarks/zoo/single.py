"""Single modules and functions of PyTorch: the table of the test-suite."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from benchmarks.zoo.case import Case, Maker
from tests.models.table import Table, table

# What cannot have relevance whatever the rules: a result that is random, of the other samples too, or not of one graph.
WITHOUT_RELEVANCE = {
    "constant: random": "random", "constant: random_like": "random", "function: mean_of_the_batch": "mixes samples",
    "function: other_sample": "mixes samples", "function: cat_along_the_batch": "mixes samples",
    "function: batch_of_two": "mixes samples", "in place: first_sample": "mixes samples",
    "function: boolean_index": "mixes samples", "function: sum_of_all": "mixes samples",
    "function: cond_of_data": "branches on data", "function: item": "mixes samples",
    "function: size_from_data": "branches on data", "function: nonzero": "branches on data",
    "LSTM(8, 5) (3, 8)": "mixes samples", "LSTM(8, 5, num_layers=2, bidirectional=True) (3, 8)": "mixes samples",
    "TransformerEncoderLayer again (3, 8)": "mixes samples",  # Sequence-first layers on a batch-first input.
    "in place: read_counter": "state", "in place: weight": "state", "in place: copy_constant": "a constant",
}  # fmt: skip


def _case(make: object) -> Case:
    model: Table = make().double().eval()  # type: ignore[operator]
    return Case(model, torch.randn(2, model.first.in_features, dtype=torch.float64))


def cases() -> Iterable[tuple[str, str, Maker]]:
    """Group, name, and the function that makes the case."""
    for name, make in table().items():
        group = "single functions" if name.startswith(("constant", "function", "in place")) else "single layers"
        if name not in WITHOUT_RELEVANCE:
            yield group, name, lambda make=make: _case(make)  # type: ignore[misc]
