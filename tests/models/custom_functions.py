"""Functions with a backward of their own, as models have them, and a model around one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g


class Step(torch.autograd.Function):
    """One through a comparison, which carries no relevance; gradients end far from 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * (x.abs() < 0.5)


class Reversal(torch.autograd.Function):
    """Of domain-adversarial training; the result is a view of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return -ctx.scale * g, None


class Swish(torch.autograd.Function):
    """As old EfficientNets have it, to save memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        s = ctx.saved_tensors[0].sigmoid()
        return g * (s * (1 + ctx.saved_tensors[0] * (1 - s)))


class Quiet(torch.autograd.Function):
    """Turns gradients off once more within its forward, where PyTorch has turned them off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        with torch.no_grad():
            return x.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return 2 * ctx.saved_tensors[0] * g


class Softmax(torch.autograd.Function):
    """Weights of attention, as DeBERTa had them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.softmax(-1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return torch._softmax_backward_data(g, y, -1, y.dtype)


class Gate(torch.autograd.Function):
    """A sigmoid whose backward is another one's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sigmoid()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g


class InPlace(torch.autograd.Function):
    """Writes over its input, which the model goes on with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2.0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return 5 * g


class Clamp(torch.autograd.Function):
    """With the gradient of the identity, in the form of functorch."""

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, None, None


class Binary(torch.autograd.Function):
    """A layer with a binarised weight, and an object among its arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight.sign()) * 0.5 + layer(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return 3.0 * g @ weight, 3.0 * g.flatten(0, -2).T @ x.flatten(0, -2), None


class Two(torch.autograd.Function):
    """Two results, and an index that has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Any:
        ctx.save_for_backward(x, y)
        chosen = x.argmax(1)
        ctx.mark_non_differentiable(chosen)
        return x * y, x + 2 * y, chosen

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor, _: Any) -> Any:
        x, y = ctx.saved_tensors
        return 2 * g * y + h, g * x - h


class Clipped(torch.autograd.Function):
    """A backward that is not linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g.clamp(-0.1, 0.1)


class OfSizes(torch.autograd.Function):
    """Reads a size of the batch, as averages over it do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, samples: int) -> Tensor:
        ctx.samples = samples
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.samples, None


class Fourier(torch.autograd.Function):
    """Of complex numbers."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z * 2j

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * (3 - 1j)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": lambda h: Sign.apply(h),
    "reversal": lambda h: Reversal.apply(h, 2.0),
    "swish": lambda h: Swish.apply(h),
    "clamp": lambda h: Clamp.apply(h, -0.3, 0.3),
    "step": lambda h: Step.apply(h) + h,
}
"""Layers of one operand that apply one."""


class Model(nn.Module):
    def __init__(self, part: Callable[[Any, Tensor], Tensor], axes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.inner, self.above = nn.Linear(4, 5), nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 3))
        self.part, self.axes = part, axes
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.part(self, self.below(x)))


def derivative(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    scores = model(x).sum(0)
    return torch.stack([torch.autograd.grad(score, x, retain_graph=True)[0] for score in scores], 1)


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    return fastlrp.explain(model, x, "all", "gradient", initial="one")
