"""Models with a ``torch.autograd.Function``: outside of hooked modules its own backward, as for Captum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp.compat.captum as ours_captum
from tests.models.custom_functions import FUNCTIONS


class Model(nn.Module):
    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.relu, self.above, self.part = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), part
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.relu(self.part(self.below(x))))


@pytest.mark.parametrize("part", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_gradient_is_the_functions_own(part: Callable[[Tensor], Tensor]) -> None:
    attr: Any = pytest.importorskip("captum.attr", exc_type=ImportError)
    model, x = Model(part), torch.randn(2, 4, dtype=torch.float64)
    expected = attr.LRP(model).attribute(x.clone().requires_grad_(), target=1)
    found = ours_captum.LRP(model).attribute(x, target=1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
