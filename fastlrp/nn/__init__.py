"""Thin modules with the interface of the LRP Toolbox and interprettensor, on ordinary ``torch.nn`` modules.

``net.forward(x, lrp_aware=True)``, then ``net.lrp(R, "epsilon", 0.1)`` as often as you like. Layout is PyTorch's,
``(B, C, H, W)``. Conventions (stabilizers, biases, pools) are the Toolbox's, see
:mod:`fastlrp.composites.profiles`.
"""

from fastlrp.nn.layers import (
    AvgPool2d,
    Conv2d,
    Convolution,
    Flatten,
    Linear,
    MaxPool2d,
    Rect,
    ReLU,
    Softmax,
    SumPool2d,
    Tanh,
)
from fastlrp.nn.module import LRPModule
from fastlrp.nn.sequential import Sequential

__all__ = [
    "AvgPool2d",
    "Conv2d",
    "Convolution",
    "Flatten",
    "LRPModule",
    "Linear",
    "MaxPool2d",
    "ReLU",
    "Rect",
    "Sequential",
    "Softmax",
    "SumPool2d",
    "Tanh",
]
