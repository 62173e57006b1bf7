"""torchvision's models with random weights and batch norms that have seen data."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_models() -> ModuleType:
    """``torchvision.models``, or a skip.

    Beside a CPU-only PyTorch, torchvision registers shape functions for two operators that its own library would
    define; nothing here calls them, so their schemas are enough.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", _SCHEMA)
    return pytest.importorskip("torchvision.models", reason="torchvision is not installed", exc_type=ImportError)


def randomise_batch_norm(model: nn.Module) -> nn.Module:
    """Means, variances, scales and shifts as after training, none of them 0 or 1."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    return model


def random_model(name: str, seed: int = 1, dtype: torch.dtype = torch.float32, classes: int = 1000) -> nn.Module:
    """``torchvision.models.<name>`` in evaluation mode, the same weights every time."""
    make = getattr(import_models(), name)
    # These two draw their weights one truncated normal at a time, which takes half a minute.
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(weights=None, num_classes=classes, **extra)
        return randomise_batch_norm(model).to(dtype).eval()
