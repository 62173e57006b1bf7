"""A short training loop: a convenience, not a framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.nn.options import ON_SCORES, Loss, Optimizer, loss_of, optimizer_of


def fit(
    net: nn.Sequential,
    x: Tensor | None = None,
    y: Tensor | None = None,
    loss: str | Loss = "cross_entropy",
    optimizer: str | Callable[[Iterable[nn.Parameter]], Optimizer] | Optimizer = "adam",
    lr: float | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    progress: bool = True,
    *,
    opt_params: Sequence[Any] | None = None,
    output: Tensor | None = None,
    ground_truth: Tensor | None = None,
) -> list[float]:
    """Train on all of ``x`` and ``y``, in batches of a new random order in each epoch.

    Args:
        x: ``(N, …)``; or, as interprettensor wants it, what ``net.forward(x)`` has just returned, for its input.
        y: ``(N,)`` classes, ``(N, C)`` one-hot or probabilities, or what ``loss`` takes.
        loss: ``"cross_entropy"`` (on scores; a softmax at the end is left out while training), ``"mse"``, ``"l1"``,
            or a function of prediction and target. interprettensor's names: ``"softmax_crossentropy"``,
            ``"sigmoid_crossentropy"``, ``"L1"``, and ``"MSE"``, which is the root of the mean square there.
        optimizer: ``"adam"``, ``"sgd"`` (``"grad_descent"``), ``"adamw"``, ``"rmsprop"``, ``"adagrad"``,
            ``"adadelta"``, a function of the parameters, or an optimizer.
        lr: learning rate of an optimizer given by name; its own default otherwise (0.001).
        epochs, batch_size: how often, and how many samples at a time.
        progress: show a progress bar, if tqdm is installed.
        opt_params: interprettensor's way to say it: ``[lr]``, or ``[lr, parameters]`` to train some parameters only.
        output, ground_truth: interprettensor's names for x and y.

    Returns:
        the mean loss of each epoch.

    Raises:
        ValueError: for sizes that do not fit, or an unknown name. FloatingPointError: if the loss becomes NaN.
    """
    x, y = _given("x", x, "output", output), _given("y", y, "ground_truth", ground_truth)
    input_of = getattr(net, "_input_of", None)
    x = x if input_of is None else input_of(x)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y must have the same number of samples, at least one; got {len(x)} and {len(y)}")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    criterion, body = loss_of(loss), _body(net, loss)
    step = optimizer_of(optimizer, net, lr, opt_params)
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


def _given(name: str, value: Tensor | None, other: str, alias: Tensor | None) -> Tensor:
    """The argument under one of its two names."""
    if value is not None and alias is not None:
        raise TypeError(f"fit got {name} and {other}, which are the same: give one of them")
    found = alias if value is None else value
    if not isinstance(found, Tensor):
        raise TypeError(f"fit needs {name} (or {other}), a tensor, got {type(found).__name__}")
    return found


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
    return net[:-1] if ends_in_softmax and loss in ON_SCORES else net
