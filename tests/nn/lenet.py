"""The LRP Toolbox's LeNet-5 as thin modules and as plain PyTorch modules."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import nn
from tests import goldens
from tests.reference import lenet

VARIANTS: dict[str, tuple[str, float | None]] = {
    "simple": ("simple", None),
    "epsilon_1": ("epsilon", 1.0),
    "epsilon_0.1": ("eps", 0.1),
    "alphabeta_1": ("alphabeta", 1),
    "alphabeta_2": ("alpha", 2.0),
    "flat": ("flat", None),
    "ww": ("w^2", None),
}
"""Files of the goldens in which all layers have one variant, as ``lrp`` names it."""

MIXED = ("alphabeta_2_conv_simple_pool", "alpha1_first_ww", "alpha1_first_flat")


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Thin modules."""
    layers: list[torch.nn.Module] = []
    for line in lenet.read_network(goldens.path("lrp_toolbox/LeNet-5.txt")):
        if line.affine is not None and line.kind == "Convolution":
            n, d, h, w = line.affine.weight.shape
            layer = nn.Convolution((h, w, d, n), (1, 1)).to(dtype)
            assert layer.bias is not None
            assert line.affine.bias is not None
            with torch.no_grad():
                layer.weight.copy_(line.affine.weight)
                layer.bias.copy_(line.affine.bias)
            layers.append(layer)
        elif line.kind == "SumPool":
            layers.append(nn.SumPool2d((2, 2), (2, 2)))
        else:
            layers.append(nn.Rect() if line.kind == "Rect" else nn.Flatten("hwc"))
    return nn.Sequential(*layers)


def plain() -> torch.nn.Sequential:
    """The same of ``torch.nn`` alone; the Toolbox's sum pool is an average pool whose divisor is 2."""
    layers: list[torch.nn.Module] = []
    for module in network():
        if isinstance(module, nn.Convolution):
            layer = torch.nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size).double()
            layer.load_state_dict(module.state_dict())
            layers.append(layer)
        elif isinstance(module, nn.SumPool2d):
            layers.append(torch.nn.AvgPool2d(2, divisor_override=2))
        else:
            layers.append(torch.nn.ReLU() if isinstance(module, nn.ReLU) else torch.nn.Flatten())
    return torch.nn.Sequential(*layers).eval()


def digits(expected: dict[str, Tensor]) -> Tensor:
    return lenet.images_to_input(expected["images"])


def golden() -> dict[str, Tensor]:
    arrays = goldens.load("lrp_toolbox/lenet5_mnist_relevance.npz")
    return {name: goldens.double(array) for name, array in arrays.items()}
