"""A table of small modules: each is explained rightly, or an error of ours says which operation is not supported."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch import Tensor

import fastlrp
from fastlrp import CaptureError, UnsupportedOperationError
from tests.models.table import table

TABLE = table()
# All rows take three minutes: FASTLRP_TABLE=all. Each run has every third layer and function.
ROWS = [
    name
    for i, name in enumerate(TABLE)
    if i % 3 == 0 or name.startswith(("constant", "in place")) or os.environ.get("FASTLRP_TABLE") == "all"
]
OURS = (CaptureError, UnsupportedOperationError)
# Relevance passes `detach` and `no_grad`, which stop a gradient; autograd refuses to write into parts of a chunk.
NOT_THE_GRADIENT = {"function: detach", "in place: chunks"}
REFUSED = {
    "constant: random", "constant: random_like", "in place: copy_constant", "in place: first_sample",
    "in place: read_counter", "in place: weight",
}  # fmt: skip


def _explained(name: str, composite: str, model: torch.nn.Module, x: Tensor) -> bool:
    try:
        explainer = fastlrp.Explainer(model, composite)
        with explainer.forward(x) as record:
            found, relevance = record.output, record.relevance("all", initial="one")
    except OURS as error:
        symbols = re.findall(r"\b(s\d+|z?uf?\d+)\b", str(error))
        return bool(symbols)  # Which is wrong for a row that is refused.
    with torch.no_grad():
        torch.testing.assert_close(found, model(x.clone()), rtol=1e-12, atol=1e-12)
    report = explainer.verify(x, "all")
    assert report.ok, str(report)
    alone = explainer(x[1:2], "all", initial="one")
    torch.testing.assert_close(alone, relevance[1:2], rtol=1e-9, atol=1e-9)
    if composite == "gradient" and name not in NOT_THE_GRADIENT:
        point = x.clone().requires_grad_()
        output = model(point)
        for k in range(output.shape[1]):
            (expected,) = torch.autograd.grad(output[:, k].sum(), point, retain_graph=True)
            torch.testing.assert_close(relevance[:, k], expected, rtol=1e-9, atol=1e-9)
    return True


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    model = TABLE[name]().double().eval()
    x = torch.randn(3, model.first.in_features, dtype=torch.float64)
    explained = _explained(name, "gradient", model, x)
    if name.startswith(("constant", "in place")):
        assert explained == _explained(name, "epsilon", model, x) == (name not in REFUSED)
