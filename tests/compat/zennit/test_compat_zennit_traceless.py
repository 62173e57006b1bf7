"""Weights written without PyTorch's knowledge, where the attributor works on copies of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastlrp.compat.zennit import Gradient
from tests.compat.zennit.both import seeded
from tests.torchvision_models import random_model  # noqa: F401  Which makes torchvision importable.

from zennit.canonizers import SequentialMergeBatchNorm  # isort: skip
from zennit.composites import EpsilonPlus  # isort: skip


def explained(model: nn.Module, x: Tensor) -> Tensor:
    with Gradient(model, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])) as attributor:
        return attributor(x, torch.eye(4, dtype=torch.float64)[[0, 1]])[1]


def test_copies_of_weights_are_made_anew() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = seeded(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    before = explained(model, x)
    model[0].weight.data.mul_(-1)
    for _ in range(2):
        after = explained(model, x)
        assert float((after - before).norm() / before.norm()) > 1e-3
        torch.testing.assert_close(after, explained(copy.deepcopy(model), x))
