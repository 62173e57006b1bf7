"""How many neurons are alive: measured, and set.

Relevance flows through living neurons only, so what a layer costs depends on how many there are. Random weights leave
about half alive; trained networks often far fewer. :func:`shift` brings a model to a given share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AFFINE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

PER_CHANNEL = 64
"""Fewer values of a channel than this say little about its share: then the layer's channels are ranked together."""


@dataclass(frozen=True)
class Density:
    """Shares of neurons, weighted by the work (multiplications) of the layer that makes them.

    Attributes:
        alive: above zero after the ReLU that follows the layer; 1 for a layer without one.
        reached: of the layer's outputs, those that a gradient reaches: alive, and winners where a max-pool follows.
    """

    alive: float
    reached: float


@contextmanager
def _watching(model: nn.Module, hooks: Callable[[nn.Module, ExitStack], None]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in model.modules():
            hooks(module, stack)
        yield


def work(module: nn.Module, output: Tensor) -> int:
    """Multiplications of one sample in a convolution or linear layer."""
    weight: Any = module.weight
    return output[0].numel() * (weight.numel() // weight.shape[0])


def measure(model: nn.Module, x: Tensor) -> Density:
    """Forward and backward once, on all of ``x``.

    ReLUs must be modules. Every convolution or linear layer is followed by the next ReLU that runs after it.
    """
    pending: list[int] = []
    alive: list[tuple[int, float]] = []
    reached: list[tuple[int, float]] = []

    def affine(module: nn.Module, inputs: Any, output: Tensor) -> None:
        amount = work(module, output)
        pending.append(amount)
        output.register_hook(lambda g: reached.append((amount, _share(g))))

    def relu(module: nn.Module, inputs: Any, output: Tensor) -> None:
        alive.extend((amount, _share(output)) for amount in pending)
        pending.clear()

    def hooks(module: nn.Module, stack: ExitStack) -> None:
        if isinstance(module, AFFINE):
            stack.callback(module.register_forward_hook(affine).remove)
        elif isinstance(module, nn.ReLU):
            stack.callback(module.register_forward_hook(relu).remove)

    with _watching(model, hooks), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        y = model(leaf)
        # Weights that are no round numbers: no gradient cancels to zero.
        torch.autograd.grad(y, leaf, torch.rand_like(y) + 0.5)
    alive.extend((amount, 1.0) for amount in pending)
    return Density(_mean(alive), _mean(reached))


def _share(t: Tensor) -> float:
    return float((t != 0).double().mean())


def _mean(pairs: list[tuple[int, float]]) -> float:
    total = sum(amount for amount, _ in pairs)
    return sum(amount * share for amount, share in pairs) / total if total else 1.0


def shift(model: nn.Module, x: Tensor, share: float) -> nn.Module:
    """Shift biases so that ``share`` of the neurons after each ReLU is alive on ``x``. Changes the model.

    One forward pass: what arrives at a ReLU is shifted per channel, the same shift goes into the last bias that was
    added before it (convolution, linear layer or batch norm), and the layers behind see the sparser activations.

    Args:
        model: ReLUs are modules, and what runs last before each adds its bias to all that the ReLU sees: chains, and
            residual sums.
        share: between 0 and 1.

    Raises:
        ValueError: for a share outside, or a ReLU before which nothing has a bias.
    """
    if not 0 < share < 1:
        raise ValueError(f"share of living neurons must be between 0 and 1, got {share}")
    last: list[nn.Module] = []

    def affine(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if getattr(module, "bias", None) is not None:
            last.append(module)

    def relu(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not last:
            raise ValueError("a ReLU comes before which no layer has a bias that could be shifted")
        (z,) = inputs
        threshold = _thresholds(z, share)
        bias: Any = last[-1].bias
        bias.data -= threshold
        last.clear()
        return (z - threshold.view(1, -1, *(1,) * (z.dim() - 2)),)

    def hooks(module: nn.Module, stack: ExitStack) -> None:
        if isinstance(module, (*AFFINE, *NORMS)):
            stack.callback(module.register_forward_hook(affine).remove)
        elif isinstance(module, nn.ReLU):
            stack.callback(module.register_forward_pre_hook(relu).remove)

    with _watching(model, hooks), torch.no_grad():
        model(x)
    return model


def _thresholds(z: Tensor, share: float) -> Tensor:
    """Per channel, between the last value that stays above zero and the first that does not, ``(C,)``."""
    values = z.transpose(0, 1).flatten(1)  # (C, B * positions)
    channels = len(values)
    if values.shape[1] < PER_CHANNEL:
        values = values.reshape(1, -1)
    n = values.shape[1]
    alive = min(max(round(share * n), 1), n - 1)
    ordered = values.sort(dim=1, descending=True).values
    return ((ordered[:, alive - 1] + ordered[:, alive]) / 2).expand(channels)
