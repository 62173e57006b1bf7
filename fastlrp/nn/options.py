"""Losses, optimizers and activations by name: PyTorch's names, and those of interprettensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
Optimizer = torch.optim.Optimizer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
}


def _sigmoid_cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Each score by itself, mean over all; classes become one-hot."""
    if y.dim() < scores.dim():
        y = F.one_hot(y.long(), scores.shape[1])
    return F.binary_cross_entropy_with_logits(scores, y.to(scores.dtype))


def _root_mean_square(scores: Tensor, y: Tensor) -> Tensor:
    """What interprettensor's ``"MSE"`` is: the root of the mean square."""
    return torch.linalg.vector_norm(scores - y) / math.sqrt(scores.numel())


LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "softmax_crossentropy": F.cross_entropy,
    "sigmoid_crossentropy": _sigmoid_cross_entropy,
    "MSE": _root_mean_square,
    "L1": F.l1_loss,
}
ON_SCORES = ("cross_entropy", "softmax_crossentropy", "sigmoid_crossentropy")
"""Losses that contain the softmax or the sigmoid themselves."""

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "grad_descent": torch.optim.SGD,
}


def loss_of(loss: str | Loss) -> Loss:
    """A function of prediction and target.

    Raises:
        ValueError: for an unknown name. TypeError: for a loss that is computed already.
    """
    if isinstance(loss, Tensor):
        raise TypeError("loss is a tensor, which was computed once: give a name or a function of prediction and target")
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: expected one of {', '.join(LOSSES)}, or a function")
    return LOSSES[loss]


def optimizer_of(
    optimizer: str | Callable[[Iterable[nn.Parameter]], Optimizer] | Optimizer,
    net: nn.Module,
    lr: float | None,
    opt_params: Sequence[Any] | None,
) -> Optimizer:
    """An optimizer of the network's parameters, or of those in ``opt_params``.

    Raises:
        ValueError: for an unknown name, or parameters that do not go with the optimizer.
    """
    rate, parameters = _rate_and_parameters(net, lr, opt_params)
    if not isinstance(optimizer, str):
        if opt_params is not None:
            raise ValueError("opt_params are for an optimizer given by name: give the optimizer its own parameters")
        return optimizer if isinstance(optimizer, Optimizer) else optimizer(net.parameters())
    if optimizer.lower() not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}, or an optimizer")
    return OPTIMIZERS[optimizer.lower()](parameters, **({} if rate is None else {"lr": rate}))


def _rate_and_parameters(
    net: nn.Module, lr: float | None, opt_params: Sequence[Any] | None
) -> tuple[float | None, list[nn.Parameter]]:
    if opt_params is None:
        return lr, list(net.parameters())
    if lr is not None:
        raise ValueError("lr and opt_params both say the learning rate: give one of them")
    given = list(opt_params)
    if len(given) not in (1, 2) or isinstance(given[0], bool) or not isinstance(given[0], (int, float)):
        raise ValueError(f"opt_params must be [learning rate] or [learning rate, parameters], got {opt_params!r}")
    parameters = list(net.parameters() if len(given) == 1 or given[1] is None else given[1])
    return float(given[0]), parameters
