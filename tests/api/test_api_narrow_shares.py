"""Relevance without a factor over a small denominator, in float16: ``1 / z`` alone would not fit below 1.5e-5."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastlrp import Explainer
from tests.api.models import relative_error
from tests.models.cases import Written

BODIES = {
    "mean": (lambda m, x: x.mean(-1), (2, 4, 8)),
    "sum": (lambda m, x: x.sum(-1), (2, 4, 8)),
    "interpolation": (lambda m, x: F.interpolate(x, scale_factor=2, mode="linear").flatten(1), (2, 2, 4)),
    "addition": (lambda m, x: x[:, :4] + x[:, 4:], (2, 8)),
    "difference": (lambda m, x: torch.sub(x[:, :4], x[:, 4:], alpha=2), (2, 8)),
    "average pool": (lambda m, x: F.avg_pool1d(x, 2).flatten(1), (2, 4, 4)),
}


@pytest.mark.each_value
@pytest.mark.parametrize("composite", ["lrp0", "epsilon"])
@pytest.mark.parametrize("name", BODIES)
def test_small_denominators(name, composite):
    """Entries are so many of the smallest float16 that the outputs are exact. 0.7 to 0.95 before."""
    body, shape = BODIES[name]
    torch.manual_seed(0)
    x = (torch.randint(-8, 9, shape) * 2.0**-21).half()
    model = Written(body).eval()
    found = Explainer(model, composite)(x, "all", initial="one")
    expected = Explainer(Written(body).eval(), composite)(x.double(), "all", initial="one")
    assert found.isfinite().all()
    assert relative_error(found, expected) <= 2e-3
