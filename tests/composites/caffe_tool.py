"""The Caffe tool's rules written out on matrices: the oracle of its formula types. Nothing of fastlrp's is in it.

A layer with a weight is a matrix, ``y = M x + b`` of one sample. Whatever would be divided by zero is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[Any]]
Rule = Callable[[Array, Array, Array, Array], Array]

LOW, HIGH = -1.5, 2.0
BETA, EPSILON = 0.7, 0.3


def network() -> nn.Sequential:
    """Two convolutions without padding (the tool counts padding in flat and w2), both pools, two dense layers."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.bias, 0, 0.3)
    # The tool has the positive part of a bias in the denominator of zB; without one it is the rule as published.
    model[0].bias.data = -model[0].bias.data.abs()
    return model.double().eval()


def images() -> Tensor:
    return LOW + (HIGH - LOW) * torch.rand(2, 3, 12, 12, dtype=torch.float64)


def _divide(R: Array, z: Array) -> Array:
    return np.divide(R, z, out=R.copy(), where=z != 0)


def their_epsilon(M: Array, b: Array, x: Array, R: Array) -> Array:
    z = M @ x + b
    return x * (M.T @ _divide(R, z + EPSILON * np.sign(z)))


def their_alpha_beta(M: Array, b: Array, x: Array, R: Array) -> Array:
    parts = M * x
    above, below = np.maximum(0, parts), np.minimum(0, parts)
    gains = above.T @ _divide(R, above.sum(1) + np.maximum(0, b))
    losses = below.T @ _divide(R, below.sum(1) + np.minimum(0, b))
    return (1 + BETA) * gains - BETA * losses


def their_wsquare(M: Array, b: Array, x: Array, R: Array) -> Array:
    return (M**2).T @ (R / (M**2).sum(1))


def their_flat(M: Array, b: Array, x: Array, R: Array) -> Array:
    """One over the window's size for each channel: not divided among the channels, so C times the relevance."""
    seen = (M != 0).astype(float)
    return 3 * seen.T @ (R / seen.sum(1))


def their_zbox(M: Array, b: Array, x: Array, R: Array) -> Array:
    above, below = np.maximum(0, M), np.minimum(0, M)
    z = M @ x - above @ np.full_like(x, LOW) - below @ np.full_like(x, HIGH) + np.maximum(0, b)
    s = R / z
    return x * (M.T @ s) - LOW * (above.T @ s) - HIGH * (below.T @ s)


def as_matrix(layer: nn.Module, x: Tensor) -> tuple[Array, Array]:
    """M and b of an affine layer on inputs of this shape."""
    with torch.no_grad():
        constant = layer(torch.zeros(1, *x.shape, dtype=x.dtype)).flatten()
        basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
        M = (layer(basis).flatten(1) - constant).T
    return M.numpy(), constant.numpy()


def their_pool(layer: nn.Module, x: Tensor, R: Array, max_pool: str) -> Array:
    if isinstance(layer, nn.MaxPool2d) and max_pool == "winner":
        point = x.clone().requires_grad_()
        y = layer(point.unsqueeze(0))
        (found,) = torch.autograd.grad(y, point, torch.from_numpy(R).view_as(y))
        return found.flatten().numpy()
    M, _ = as_matrix(nn.AvgPool2d(2), x)
    flat = x.flatten().numpy()
    return flat * (M.T @ _divide(R, M @ flat))


def their_relevance(
    model: nn.Sequential, x: Tensor, target: int, convolution: Rule, dense: Rule, bottom: dict[int, Rule],
    max_pool: str = "winner",
) -> Tensor:  # fmt: skip
    """Relevance of one sample's input ``(C, H, W)``; ``bottom``: position of a layer with a weight -> its rule."""
    activations = [x]
    with torch.no_grad():
        for layer in model:
            activations.append(layer(activations[-1].unsqueeze(0)).squeeze(0))
    R = np.zeros(len(activations[-1]))
    R[target] = activations[-1][target]
    weighted = [layer for layer in model if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer, a in zip(reversed(model), reversed(activations[:-1]), strict=True):
        if layer in weighted:
            rule = bottom.get(weighted.index(layer), dense if isinstance(layer, nn.Linear) else convolution)
            R = rule(*as_matrix(layer, a), a.flatten().numpy(), R)
        elif isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
            R = their_pool(layer, a, R, max_pool)
    return torch.from_numpy(R).view_as(x)
