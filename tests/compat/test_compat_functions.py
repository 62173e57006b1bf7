"""Models with a ``torch.autograd.Function``: outside of hooked modules its own backward, as for Zennit and Captum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp.compat.captum as ours_captum
from tests.compat.zennit.both import attribute, check, ours, seeded, theirs
from tests.models.test_models_custom_backward import Clamp, Reversal, Sign, Step, Swish

composites = pytest.importorskip("zennit.composites", exc_type=ImportError)

PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": lambda h: Sign.apply(h),
    "reversal": lambda h: Reversal.apply(h, 2.0),
    "swish": lambda h: Swish.apply(h),
    "clamp": lambda h: Clamp.apply(h, -0.3, 0.3),
    "step": lambda h: Step.apply(h) + h,
}


class Part(nn.Module):
    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part

    def forward(self, h: Tensor) -> Tensor:
        return self.part(h)


@pytest.mark.parametrize("composite", [None, composites.EpsilonPlus, composites.GuidedBackprop])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.each_value
def test_zennit(part: Callable[[Tensor], Tensor], composite: Callable[[], object] | None) -> None:
    model = seeded(nn.Conv2d(2, 3, 3), nn.ReLU(), Part(part), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    x, start = torch.randn(2, 2, 6, 6, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[[0, 2]]
    made = None if composite is None else composite()
    check(attribute(ours, model, made, x, start), attribute(theirs, model, made, x, start))


class Functional(nn.Module):
    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.relu, self.above, self.part = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), part
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.relu(self.part(self.below(x))))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_captum(part: Callable[[Tensor], Tensor]) -> None:
    attr: Any = pytest.importorskip("captum.attr", exc_type=ImportError)
    model, x = Functional(part), torch.randn(2, 4, dtype=torch.float64)
    expected = attr.LRP(model).attribute(x.clone().requires_grad_(), target=1)
    found = ours_captum.LRP(model).attribute(x, target=1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
