"""Every step's transpose, over the table of small modules and all rules, in float64."""

from __future__ import annotations

import os

import pytest
import torch

import fastlrp
from fastlrp import CaptureError, UnsupportedOperationError
from tests.directions.adjoint import LARGEST, errors_of_steps
from tests.models.table import table

TABLE = table()
ROWS = [name for i, name in enumerate(TABLE) if i % 6 == 1 or os.environ.get("FASTLRP_TABLE") == "all"]
OURS = (CaptureError, UnsupportedOperationError)


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    model = TABLE[name]().double().eval()
    x = torch.randn(2, model.first.in_features, dtype=torch.float64)
    for composite in ("gradient", "epsilon", "attnlrp"):
        try:
            record = fastlrp.Explainer(model, composite).forward(x)
        except OURS:
            continue
        if name == "function: cdist":  # PyTorch has no second derivative of it.
            with pytest.raises(UnsupportedOperationError, match="no way up"):
                errors_of_steps(record)
            continue
        found = errors_of_steps(record)
        assert max(found.values()) < LARGEST, {k: v for k, v in found.items() if v >= LARGEST}
