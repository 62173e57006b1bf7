"""Products that are looked at, and a network with residual sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import looked
from fastlrp.plan.products.layouts import Layouts


def product(weight: Tensor, down: bool = False) -> looked.Looked:
    geometry = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    found = Layouts("conv", geometry, (3, 3), (12, 12), (12, 12)).looked(weight, down)
    assert isinstance(found, looked.Looked)
    return found


class Residual(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.head, self.activation = nn.Linear(32, 5), activation

    def forward(self, x):
        x = self.activation(x)
        y = self.activation(x + self.second(self.activation(self.first(x))))
        return self.head(y.mean((2, 3)))
