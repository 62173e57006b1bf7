"""torchvision's families with fewer blocks and channels: every sort of block that the whole member has, in its order.

What a capture, a plan and Zennit's hooks cost goes by the number of layers, what a float64 convolution costs by the
channels; what there is to get wrong, by the sorts of blocks and how they are joined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.torchvision_models import import_models, random_model, randomise_batch_norm

models = import_models()


def _vgg(channels: str, batch_norm: bool) -> Callable[[int], nn.Module]:
    """An eighth of the channels, and 64 units in the place of 4096."""

    def make(classes: int) -> nn.Module:
        narrow = [c if c == "M" else c // 8 for c in models.vgg.cfgs[channels]]
        with torch.device("meta"):
            model = models.VGG(nn.Identity(), init_weights=False)
        model.features = models.vgg.make_layers(narrow, batch_norm)
        model.classifier = nn.Sequential(nn.Linear(64 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, classes))
        return model

    return make


def _resnet(block: str, **options: Any) -> Callable[[int], nn.Module]:
    made = getattr(models.resnet, block)
    return lambda classes: models.ResNet(made, [2, 1, 1, 1], classes, **options)


def _regnet(squeeze: float | None) -> Callable[[int], nn.Module]:
    def make(classes: int) -> nn.Module:
        block = models.regnet.BlockParams([1, 2, 1], [32, 64, 96], [16] * 3, [1.0] * 3, [2] * 3, squeeze)
        return models.RegNet(block, classes)

    return make


def _mobilenet_v3(classes: int) -> nn.Module:
    settings = [
        (16, 3, 16, 16, True, "RE", 2), (16, 3, 72, 24, False, "RE", 2), (24, 3, 88, 24, False, "RE", 1),
        (24, 5, 96, 40, True, "HS", 2), (40, 5, 120, 40, True, "HS", 1),
    ]  # fmt: skip
    block = models.mobilenetv3.InvertedResidualConfig
    return models.MobileNetV3([block(*setting, 1, 1.0) for setting in settings], 128, num_classes=classes)


def _efficientnet(classes: int) -> nn.Module:
    settings = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 1)]
    blocks = [models.efficientnet.MBConvConfig(*setting) for setting in settings]
    return models.EfficientNet(blocks, 0.2, num_classes=classes)


def _convnext(classes: int) -> nn.Module:
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(32, 64, 1), block(64, 96, 2), block(96, None, 1)], num_classes=classes)


SHORT: dict[str, Callable[[int], nn.Module]] = {
    "vgg11": _vgg("A", False),
    "vgg11_bn": _vgg("A", True),
    "vgg16_bn": _vgg("D", True),
    "resnet18": _resnet("BasicBlock"),
    "resnet50": _resnet("Bottleneck"),
    "resnext50_32x4d": _resnet("Bottleneck", groups=32, width_per_group=4),
    "densenet121": lambda classes: models.DenseNet(8, (2, 3, 2, 2), 16, bn_size=2, num_classes=classes),
    "mobilenet_v2": lambda classes: models.MobileNetV2(
        classes, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]
    ),
    "mobilenet_v3_small": _mobilenet_v3,
    "efficientnet_b0": _efficientnet,
    "regnet_x_400mf": _regnet(None),
    "regnet_y_400mf": _regnet(0.25),
    "shufflenet_v2_x0_5": lambda classes: models.ShuffleNetV2([2, 2, 1], [24, 48, 96, 192, 256], classes),
    "convnext_tiny": _convnext,
}


def sizes(names: Any) -> list[Any]:
    """Parameters ``(name, size)``: short where there is a short one, the whole member then in a full run."""
    short = [(name, "short" if name in SHORT else "whole") for name in names]
    return [*short, *(pytest.param(name, "whole", marks=pytest.mark.full) for name in names if name in SHORT)]


def member(name: str, size: str, seed: int = 1, dtype: torch.dtype = torch.float32, classes: int = 1000) -> nn.Module:
    """:func:`~tests.torchvision_models.random_model`, or a short one, the same weights every time."""
    if size == "whole":
        return random_model(name, seed, dtype, classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise_batch_norm(SHORT[name](classes)).to(dtype).eval()
