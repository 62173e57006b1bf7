"""The LRP Toolbox's LeNet-5 and its relevance, from the rules of the reference alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.reference.redistribution import Affine
from tests.reference import textbook as rules
from tests.reference.cases import stabilizer

Propagate = Callable[[Affine, Tensor, Tensor], Tensor]


@dataclass
class Layer:
    """One line of the Toolbox's text format, as an affine layer on (B, C, H, W), or None for those that pass."""

    kind: str
    affine: Affine | None


def _convolution(header: list[str], weights: str, bias: str) -> Layer:
    h, w, d, n, *stride = (int(value) for value in header[1:])
    kernel = torch.tensor([float(value) for value in weights.split()], dtype=torch.float64)
    kernel = kernel.reshape(h, w, d, n).permute(3, 2, 0, 1).contiguous()
    offset = torch.tensor([float(value) for value in bias.split()], dtype=torch.float64)
    return Layer("Convolution", Affine(lambda x, W, b: F.conv2d(x, W, b, stride), kernel, offset))


def _sum_pool(header: list[str]) -> Layer:
    """The sum itself. The Toolbox's forward divides it by sqrt(h w); its LRP (and its epsilon) weigh the plain sum."""
    h, w, *stride = (int(value) for value in header[1:])
    ones = torch.ones(1, 1, h, w, dtype=torch.float64)

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight.expand(x.shape[1], 1, h, w), bias, stride, groups=x.shape[1])

    return Layer("SumPool", Affine(apply, ones, None))


def read_network(path: Path) -> list[Layer]:
    """Layers of a network in the Toolbox's text format: convolutions, sum pools, and layers that pass relevance."""
    lines = iter(path.read_text().split("\n"))
    layers = []
    for line in lines:
        header = line.split()
        if not header:
            break
        if header[0] == "Convolution":
            layers.append(_convolution(header, next(lines), next(lines)))
        elif header[0] == "SumPool":
            layers.append(_sum_pool(header))
        elif header[0] in ("Rect", "Flatten"):
            layers.append(Layer(header[0], None))
        else:
            raise ValueError(f"{path.name}: a {header[0]} is not part of LeNet-5")
    return layers


def images_to_input(images: Tensor) -> Tensor:
    """(B, 784) in 0..255 to (B, 1, 32, 32) in -1..1, padded with -1."""
    return F.pad((images / 127.5 - 1).reshape(-1, 1, 28, 28), (2, 2, 2, 2), value=-1.0)


def forward(layers: list[Layer], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Input of every layer, and the logits (B, 10)."""
    inputs = []
    for layer in layers:
        inputs.append(x)
        if layer.affine is not None:
            x = layer.affine.apply(x, layer.affine.weight, layer.affine.bias)
        if layer.kind == "SumPool":
            assert layer.affine is not None
            x = x / sqrt(layer.affine.weight.numel())
        elif layer.kind == "Rect":
            x = x.clamp(min=0)
    return inputs, x.flatten(1)


def relevance(layers: list[Layer], x: Tensor, convolution: Propagate, pool: Propagate, first: Propagate) -> Tensor:
    """Relevance of x for every class, (B, 10, 32, 32); the initial relevance of a class is its logit."""
    inputs, logits = forward(layers, x)
    R = torch.diag_embed(logits).reshape(*logits.shape, -1, 1, 1)
    for index in reversed(range(len(layers))):
        affine = layers[index].affine
        if affine is not None:
            rule = first if index == 0 else convolution if layers[index].kind == "Convolution" else pool
            R = rule(affine, inputs[index], R)
    return R.squeeze(2)


def epsilon(value: float) -> Propagate:
    return lambda layer, x, R: rules.epsilon(layer, x, R, stabilizer(value))[0]


def alpha_beta(alpha: float) -> Propagate:
    return lambda layer, x, R: rules.alpha_beta(layer, x, R, stabilizer(1e-16), alpha, alpha - 1)[0]


def wsquare(layer: Affine, x: Tensor, R: Tensor) -> Tensor:
    return rules.wsquare(layer, x, R, stabilizer(0.0), zero_bias=True)[0]


def flat(layer: Affine, x: Tensor, R: Tensor) -> Tensor:
    return rules.flat(layer, x, R, stabilizer(0.0))[0]


VARIANTS: dict[str, tuple[Propagate, Propagate, Propagate]] = {
    "simple": (epsilon(1e-16), epsilon(1e-12), epsilon(1e-16)),
    "epsilon_1": (epsilon(1.0), epsilon(1.0), epsilon(1.0)),
    "epsilon_0.1": (epsilon(0.1), epsilon(0.1), epsilon(0.1)),
    "alphabeta_1": (alpha_beta(1), alpha_beta(1), alpha_beta(1)),
    "alphabeta_2": (alpha_beta(2), alpha_beta(2), alpha_beta(2)),
    "alphabeta_2_conv_simple_pool": (alpha_beta(2), epsilon(1e-12), alpha_beta(2)),
    "flat": (flat, flat, flat),
    "ww": (wsquare, wsquare, wsquare),
    "alpha1_first_ww": (alpha_beta(1), alpha_beta(1), wsquare),
    "alpha1_first_flat": (alpha_beta(1), alpha_beta(1), flat),
}
"""Per file: the rule of convolutions, of pools, of the first convolution."""
