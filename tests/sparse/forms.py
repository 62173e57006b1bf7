"""Layers that nothing runs, for estimates of what they cost."""

from __future__ import annotations

import torch

from fastlrp.plan.forms import Affine
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.paths.rates import Rates

RATES = Rates()


def layer(
    inputs=256, outputs=256, size=28, kernel=3, groups=1, signed=False, box=False, products=1, path="features.10"
):
    """A convolution as VGG-16 has them; nothing here runs, so its weights need no memory of their own."""
    weight = torch.empty(1).expand(outputs, inputs // groups, kernel, kernel)
    work = 2 * outputs * size * size * inputs // groups * kernel * kernel
    geometry = ConvGeometry([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], groups)
    return Affine(
        (weight,) * products, tuple(range(products)), (False,) * products, 9 if signed else None,
        (7, 8) if box else None, geometry, (outputs, size, size), (inputs, size, size), work, path,
    )  # fmt: skip


def linear(inputs=512, outputs=4096):
    weight = torch.empty(1).expand(outputs, inputs, 1)
    return Affine((weight,), (0,), (False,), None, None, ConvGeometry(), (outputs,), (inputs,),
                  2 * inputs * outputs, "classifier")  # fmt: skip


FORMS = {
    "vgg": layer(), "first": layer(3, 64, 224, signed=True), "box": layer(3, 64, 224, box=True, products=2),
    "deep": layer(512, 512, 14), "pointwise": layer(256, 64, 56, 1), "grouped": layer(groups=32),
    "depthwise": layer(groups=256), "two_products": layer(products=2), "linear": linear(),
}  # fmt: skip
