"""A short training loop: a convenience, not a framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
Optimizer = torch.optim.Optimizer

_LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss, "l1": F.l1_loss}
_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def fit(
    net: nn.Sequential,
    x: Tensor,
    y: Tensor,
    loss: str | Loss = "cross_entropy",
    optimizer: str | Callable[[Iterable[nn.Parameter]], Optimizer] | Optimizer = "adam",
    lr: float | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    progress: bool = True,
) -> list[float]:
    """Train on all of ``x`` and ``y``, in batches of a new random order in each epoch.

    Args:
        x: ``(N, …)``.
        y: ``(N,)`` classes, ``(N, C)`` one-hot or probabilities, or what ``loss`` takes.
        loss: ``"cross_entropy"`` (on scores; a softmax at the end is left out while training), ``"mse"``, ``"l1"``,
            or a function of prediction and target.
        optimizer: ``"adam"``, ``"sgd"``, ``"adamw"``, a function of the parameters, or an optimizer.
        lr: learning rate of an optimizer given by name; its own default otherwise (0.001).
        epochs, batch_size: how often, and how many samples at a time.
        progress: show a progress bar, if tqdm is installed.

    Returns:
        the mean loss of each epoch.

    Raises:
        ValueError: for sizes that do not fit, or an unknown name. FloatingPointError: if the loss becomes NaN.
    """
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y must have the same number of samples, at least one; got {len(x)} and {len(y)}")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    criterion, body = _loss(loss), _body(net, loss)
    step = _optimizer(optimizer, net, lr)
    was_training = net.training
    net.train()
    try:
        history: list[float] = []
        bar = _bar(epochs, progress)
        for epoch in bar:
            total = 0.0
            for rows in torch.randperm(len(x)).split(batch_size):
                step.zero_grad()
                value = criterion(body(x[rows.to(x.device)]), y[rows.to(y.device)])
                value.backward()
                step.step()
                total += value.item() * len(rows)
            history.append(total / len(x))
            if not math.isfinite(history[-1]):
                raise FloatingPointError(f"the loss is {history[-1]} in epoch {epoch + 1}: use a smaller lr")
            bar.set_postfix(loss=f"{history[-1]:.3g}")
        return history
    finally:
        net.train(was_training)


def _bar(epochs: int, progress: bool) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        if progress:
            raise ImportError(
                'fit shows its progress with tqdm: pip install "fastlrp[nn]", or progress=False'
            ) from error
        return _Silent(epochs)
    return tqdm(range(epochs), unit="epoch", disable=not progress)


class _Silent:
    """A progress bar that shows nothing."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epochs))

    def set_postfix(self, **values: Any) -> None:
        return None


def _body(net: nn.Sequential, loss: str | Loss) -> Callable[[Tensor], Tensor]:
    """The network that is trained: cross entropy takes scores, so a softmax at the end stays out."""
    ends_in_softmax = len(net) > 0 and isinstance(net[-1], nn.Softmax)
    return net[:-1] if ends_in_softmax and loss == "cross_entropy" else net


def _loss(loss: str | Loss) -> Loss:
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        raise ValueError(f"unknown loss {loss!r}: expected one of {', '.join(_LOSSES)}, or a function")
    return _LOSSES[loss]


def _optimizer(
    optimizer: str | Callable[[Iterable[nn.Parameter]], Optimizer] | Optimizer, net: nn.Module, lr: float | None
) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str):
        if optimizer not in _OPTIMIZERS:
            raise ValueError(
                f"unknown optimizer {optimizer!r}: expected one of {', '.join(_OPTIMIZERS)}, or an optimizer"
            )
        return _OPTIMIZERS[optimizer](net.parameters(), **({} if lr is None else {"lr": lr}))
    return optimizer(net.parameters())
