"""Workloads: torchvision's models with random weights, and the small digits network."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

_LIBRARY: Any = None


def torchvision_models() -> Any:
    """``torchvision.models``, also beside a CPU-only PyTorch, where torchvision misses two operators."""
    global _LIBRARY
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:
        _LIBRARY = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision.models")


def small_network() -> nn.Module:
    """The demo's kind of network: 8x8 digits, ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def build(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """A model in evaluation mode with random weights and batch-norm statistics, and one input."""
    torch.manual_seed(seed)
    if name == "small":
        return small_network().eval(), torch.rand(1, 1, 8, 8)
    model = getattr(torchvision_models(), name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return model, torch.randn(1, 3, 224, 224)
