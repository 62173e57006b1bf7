"""Layers with random weights of both signs, and stabilizers, for the tests of the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from fastlrp.reference.redistribution import Affine


def stabilizer(epsilon: float) -> Callable[[Tensor], Tensor]:
    """``z + epsilon sgn(z)``, ``sgn(0) = +1``."""
    return lambda z: z + epsilon * torch.where(z < 0, -1.0, 1.0).to(z.dtype)


def affine(module: nn.Module) -> Affine:
    """A linear or convolutional module as a function of its parameters."""

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        parameters = {"weight": weight} if module.bias is None else {"weight": weight, "bias": bias}
        if module.bias is not None and bias is None:
            parameters["bias"] = torch.zeros_like(module.bias)
        return torch.func.functional_call(module, parameters, (x,))

    bias = None if module.bias is None else module.bias.detach()
    return Affine(apply, module.weight.detach(), bias)


@dataclass
class Case:
    """A layer with an input and relevance of both signs."""

    module: nn.Module
    layer: Affine
    x: Tensor
    R: Tensor

    @property
    def z(self) -> Tensor:
        return self.layer.apply(self.x, self.layer.weight, self.layer.bias).detach()


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear_no_bias": (lambda: nn.Linear(7, 5, bias=False), (7,)),
    "linear_tokens": (lambda: nn.Linear(4, 6), (3, 4)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "conv2d_no_bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), (3, 6, 5)),
    "conv2d_strided": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1)), (2, 8, 5)),
    "conv2d_grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=2), (2, 4, 4, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1, dilation=2), (3, 4, 3)),
    "transposed2d_grouped": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (4, 3, 4)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2)),
}


def make_case(name: str, seed: int = 0, batch: int = 3, targets: int = 2) -> Case:
    """The layer of this name in float64, with inputs of both signs and some that are exactly 0."""
    make, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter))
        x = torch.randn(batch, *shape, dtype=torch.float64)
        x = torch.where(torch.rand_like(x) < 0.15, 0.0, x)
        out = module(x)
        R = torch.randn(batch, targets, *out.shape[1:], dtype=torch.float64)
    return Case(module, affine(module), x, R)


every_layer = pytest.mark.parametrize("name", list(LAYERS))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """``|got - expected| / |expected|`` in the 2-norm."""
    assert got.shape == expected.shape, f"{tuple(got.shape)} and {tuple(expected.shape)}"
    return float((got - expected).norm() / expected.norm().clamp(min=1e-300))


def import_zennit_rules() -> ModuleType:
    """``zennit.rules``, or a skip.

    Zennit imports torchvision, which beside a CPU-only PyTorch asks for two operators that nothing here calls.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{name}", schema)
    return pytest.importorskip("zennit.rules", reason="zennit is not installed", exc_type=ImportError)
