"""The LRP Toolbox's procedure in NumPy, written from its description: what it costs, and what it computes.

Its ``forward(X, lrp_aware=True)`` computes and keeps ``Z = W * x``, every product of a weight with its input, once per
sample; ``lrp(R)`` then divides by their sums and adds up each input's share. Convolutions and pools loop over the
positions of their output, in NumPy. Layout is the Toolbox's: images ``(N, H, W, C)``, kernels ``(h, w, d, n)``.

The network and the digits are those of the goldens beside the repository (``../shared/goldens``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

GOLDENS = Path(__file__).resolve().parents[2] / "shared" / "goldens" / "lrp_toolbox"

VARIANTS = {"simple": (1e-16, 1e-12), "epsilon_1": (1.0, 1.0), "epsilon_0.1": (0.1, 0.1)}
"""Per file of the goldens: the stabilizer of layers with a weight, and of pools."""


class GoldensMissingError(RuntimeError):
    """The goldens are not beside the repository."""


def golden(name: str) -> Path:
    """A file of the Toolbox's goldens.

    Raises:
        GoldensMissingError: if it is not there.
    """
    if not (GOLDENS / name).is_file():
        raise GoldensMissingError(f"no {name} in ../shared/goldens/lrp_toolbox beside the repository")
    return GOLDENS / name


def _stabilized(z: Array, epsilon: float) -> Array:
    return z + epsilon * np.where(z >= 0, 1, -1).astype(z.dtype)


class Layer:
    """Keeps what ``lrp`` needs between ``forward`` and any number of ``lrp`` calls."""

    def forward(self, X: Array, lrp_aware: bool = False) -> Array:
        raise NotImplementedError

    def lrp(self, R: Array, epsilon: float, pool_epsilon: float) -> Array:
        """Relevance of the input from that of the output."""
        return R

    def clean(self) -> None:
        """Forget what the last forward kept."""
        for name in ("X", "Y", "Z"):
            self.__dict__.pop(name, None)


@dataclass(eq=False)
class Linear(Layer):
    """``Y = X W + B``, ``W`` is ``(m, n)``."""

    weight: Array
    bias: Array

    def forward(self, X: Array, lrp_aware: bool = False) -> Array:
        self.X, self.Z = X, None
        if not lrp_aware:
            return X @ self.weight + self.bias
        self.Z = self.weight[None] * X[:, :, None]  # (N, m, n)
        return self.Z.sum(axis=1) + self.bias

    def lrp(self, R: Array, epsilon: float, pool_epsilon: float) -> Array:
        Z = self.weight[None] * self.X[:, :, None] if self.Z is None else self.Z
        Zs = _stabilized(Z.sum(axis=1, keepdims=True) + self.bias[None, None], epsilon)
        return (Z / Zs * R[:, None]).sum(axis=2)


@dataclass(eq=False)
class _Windowed(Layer):
    size: tuple[int, int]
    stride: tuple[int, int]

    def positions(self, X: Array) -> Iterator[tuple[int, int, tuple[slice, slice, slice]]]:
        """Each output position with the patch of the input that it sees."""
        rows, columns = self.out(X)
        (h, w), (down, right) = self.size, self.stride
        for i in range(rows):
            for j in range(columns):
                yield i, j, (slice(None), slice(i * down, i * down + h), slice(j * right, j * right + w))

    def out(self, X: Array) -> tuple[int, int]:
        """Height and width of the output."""
        return (X.shape[1] - self.size[0]) // self.stride[0] + 1, (X.shape[2] - self.size[1]) // self.stride[1] + 1


class Convolution(_Windowed):
    """Cross-correlation without padding; ``weight`` is ``(h, w, d, n)``."""

    def __init__(self, weight: Array, bias: Array, stride: tuple[int, int]) -> None:
        super().__init__((weight.shape[0], weight.shape[1]), stride)
        self.weight, self.bias = weight, bias

    def forward(self, X: Array, lrp_aware: bool = False) -> Array:
        self.X, self.Z = X, None
        Y = np.zeros((len(X), *self.out(X), self.weight.shape[3]), X.dtype)
        if lrp_aware:
            self.Z = np.zeros((len(X), *self.out(X), *self.weight.shape), X.dtype)
        for i, j, patch in self.positions(X):
            if self.Z is None:
                Y[:, i, j] = np.tensordot(X[patch], self.weight, 3)
            else:
                self.Z[:, i, j] = self.weight[None] * X[patch][..., None]  # (N, h, w, d, n)
                Y[:, i, j] = self.Z[:, i, j].sum(axis=(1, 2, 3))
        return Y + self.bias

    def lrp(self, R: Array, epsilon: float, pool_epsilon: float) -> Array:
        Rx = np.zeros_like(self.X)
        for i, j, patch in self.positions(self.X):
            Z = self.weight[None] * self.X[patch][..., None] if self.Z is None else self.Z[:, i, j]
            Zs = _stabilized(Z.sum(axis=(1, 2, 3), keepdims=True) + self.bias, epsilon)
            Rx[patch] += (Z / Zs * R[:, i, j, None, None, None]).sum(axis=4)
        return Rx


class SumPool(_Windowed):
    """The sum of each window, divided by ``sqrt(h w)`` in the forward pass alone."""

    def forward(self, X: Array, lrp_aware: bool = False) -> Array:
        self.X = X
        Y = np.zeros((len(X), *self.out(X), X.shape[3]), X.dtype)
        for i, j, patch in self.positions(X):
            Y[:, i, j] = X[patch].sum(axis=(1, 2))
        return Y / np.sqrt(self.size[0] * self.size[1]).astype(X.dtype)

    def lrp(self, R: Array, epsilon: float, pool_epsilon: float) -> Array:
        Rx = np.zeros_like(self.X)
        for i, j, patch in self.positions(self.X):
            Z = self.X[patch]
            Zs = _stabilized(Z.sum(axis=(1, 2), keepdims=True), pool_epsilon)
            Rx[patch] += Z / Zs * R[:, i, j, None, None]
        return Rx


class MaxPool(_Windowed):
    """The maximum of each window; equal winners share its relevance."""

    def forward(self, X: Array, lrp_aware: bool = False) -> Array:
        self.X = X
        self.Y = np.zeros((len(X), *self.out(X), X.shape[3]), X.dtype)
        for i, j, patch in self.positions(X):
            self.Y[:, i, j] = X[patch].max(axis=(1, 2))
        return self.Y

    def lrp(self, R: Array, epsilon: float, pool_epsilon: float) -> Array:
        Rx = np.zeros_like(self.X)
        for i, j, patch in self.positions(self.X):
            Z = (self.X[patch] == self.Y[:, i, j, None, None]).astype(R.dtype)
            Rx[patch] += Z / Z.sum(axis=(1, 2), keepdims=True) * R[:, i, j, None, None]
        return Rx


class Rect(Layer):
    """ReLU; relevance passes."""

    def forward(self, X: Array, lrp_aware: bool = False) -> Array:
        return np.maximum(X, 0)


class Flatten(Layer):
    """``(N, H, W, C) -> (N, H W C)``."""

    def forward(self, X: Array, lrp_aware: bool = False) -> Array:
        self.shape = X.shape
        return X.reshape(len(X), -1)

    def lrp(self, R: Array, epsilon: float, pool_epsilon: float) -> Array:
        return R.reshape(self.shape)


def read(path: Path, dtype: Any = np.float64) -> list[Layer]:
    """A network in the Toolbox's text format, up to the softmax, which relevance does not see.

    Raises:
        ValueError: for a layer that is not known here.
    """
    lines = iter(path.read_text().split("\n"))
    layers: list[Layer] = []

    def numbers(*shape: int) -> Array:
        return np.array(next(lines).split(), dtype=dtype).reshape(shape)

    for line in lines:
        kind, *given = line.split() or [""]
        if not kind:
            break
        n = [int(value) for value in given]
        if kind == "Linear":
            layers.append(Linear(numbers(*n), numbers(n[1])))
        elif kind == "Convolution":
            layers.append(Convolution(numbers(*n[:4]), numbers(n[3]), (n[4], n[5])))
        elif kind in ("SumPool", "MaxPool"):
            pool = SumPool if kind == "SumPool" else MaxPool
            layers.append(pool((n[0], n[1]), (n[2], n[3])))
        elif kind in ("Rect", "Flatten"):
            layers.append(Rect() if kind == "Rect" else Flatten())
        elif kind != "SoftMax":
            raise ValueError(f"{path.name}: no layer of kind {kind!r}")
    return layers


def digits(count: int, dtype: Any = np.float64) -> Array:
    """The first MNIST test digits as the network takes them, ``(count, 32, 32, 1)`` in -1..1."""
    with np.load(golden("mnist_test_1000.npz"), allow_pickle=False) as arrays:
        images = arrays["images"][:count].astype(dtype).reshape(-1, 28, 28, 1) / 127.5 - 1
    return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-1).astype(dtype)


def forward(layers: list[Layer], X: Array, lrp_aware: bool = True) -> Array:
    """The network's output, ``(N, classes)``."""
    for layer in layers:
        X = layer.forward(X, lrp_aware)
    return X


def lrp(layers: list[Layer], R: Array, variant: str) -> Array:
    """Relevance of the input from that of the output, under one of :data:`VARIANTS`."""
    for layer in reversed(layers):
        R = layer.lrp(R, *VARIANTS[variant])
    return R
