"""Models that change their own gradient, outside of hooked modules: what Zennit's autograd makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.compat.zennit.both import attribute, check, ours, seeded, theirs
from tests.models.custom_functions import FUNCTIONS

composites = pytest.importorskip("zennit.composites", exc_type=ImportError)


def _without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        gate = h.mean((2, 3), keepdim=True)
    return h * gate


ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "residual": lambda h: h.tanh() + h.detach(),
    "straight_through": lambda h: h + (h.round() - h).detach(),
    "gate": lambda h: h * h.sigmoid().detach(),
    "no_grad": _without_gradients,
}

PARTS = {**ENDS, **FUNCTIONS}


class Part(nn.Module):
    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part = part

    def forward(self, h: Tensor) -> Tensor:
        return self.part(h)


@pytest.mark.parametrize("composite", [None, composites.EpsilonPlus, composites.GuidedBackprop])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_the_gradient_is_the_models_own(
    part: Callable[[Tensor], Tensor], composite: Callable[[], object] | None
) -> None:
    model = seeded(nn.Conv2d(2, 3, 3), nn.ReLU(), Part(part), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    x, start = torch.randn(2, 2, 6, 6, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[[0, 2]]
    made = None if composite is None else composite()
    check(attribute(ours, model, made, x, start), attribute(theirs, model, made, x, start))
