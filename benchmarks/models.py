"""Workloads: torchvision's models with random weights, the small digits network, the LRP Toolbox's LeNet-5."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import toolbox

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


def lenet() -> nn.Module:
    """LeNet-5 as it is usually written today: 28x28 digits, ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def build(
    name: str, seed: int = 0, size: int = 224, batch: int = 1, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode with random weights and batch-norm statistics, and ``batch`` inputs.

    The same numbers on every device. ``size`` is the side of the images; those of the small networks (``"small"``,
    ``"lenet"``) are 8x8 and 28x28 whatever it says.
    """
    model, x = _built(name, seed, size, batch)
    return model.to(device), x.to(device)


def _built(name: str, seed: int, size: int, batch: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    if name == "small":
        return small_network().eval(), torch.rand(batch, 1, 8, 8)
    if name == "lenet":
        return lenet().eval(), torch.rand(batch, 1, 28, 28)
    model = getattr(torchvision_models(), name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return model, torch.randn(batch, 3, size, size)


def lenet5(network: list[toolbox.Layer], dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same network for PyTorch, ``(B, 1, 32, 32) -> (B, 10)``.

    Raises:
        TypeError: for a layer that LeNet-5 does not have.
    """
    layers: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, toolbox.Convolution):
            h, w, d, n = layer.weight.shape
            module = nn.Conv2d(d, n, (h, w), layer.stride)
            module.weight.data = torch.from_numpy(np.ascontiguousarray(layer.weight.transpose(3, 2, 0, 1))).to(dtype)
            module.bias = nn.Parameter(torch.from_numpy(layer.bias.copy()).to(dtype))
            layers.append(module)
        elif isinstance(layer, toolbox.SumPool):
            # Their forward is the sum over sqrt(h w): 2 for a 2x2 window.
            layers.append(nn.AvgPool2d(layer.size, layer.stride, divisor_override=math.isqrt(math.prod(layer.size))))
        elif isinstance(layer, toolbox.Rect):
            layers.append(nn.ReLU())
        elif isinstance(layer, toolbox.Flatten):
            layers.append(nn.Flatten())
        else:
            raise TypeError(f"LeNet-5 has no layer of kind {type(layer).__name__}")
    return nn.Sequential(*layers).eval()
