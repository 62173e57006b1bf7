"""Which classes of which sample are explained, as the command line has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.cli.errors import Failure, InputFailure
from fastlrp.cli.inputs import Item
from fastlrp.targets.targets import Targets

CLASS = "class"
"""Each input's own class, from a list."""


@dataclass(frozen=True)
class Chosen:
    """Targets of a batch.

    Attributes:
        targets: as an explainer takes them. classes, scores: ``(B, K)``.
        winners: of an output with a score for each place of a picture, the class that wins there, ``(B, H, W)``.
    """

    targets: Any
    classes: list[list[int]]
    scores: list[list[float]]
    winners: Tensor | None = None


def choose(spec: str | list[int], outputs: Tensor, items: Sequence[Item]) -> Chosen:
    """The targets of a batch whose model's scores are ``outputs``, ``(B, C, …)``.

    Of an output ``(B, C, H, W)`` the best classes are those that win at most places.

    Raises:
        Failure: for classes that the model does not have, or more than it has.
    """
    classes = count(outputs)
    targets: Any = spec
    if spec == CLASS:
        targets = of_items(items, classes, outputs)
    best = re.fullmatch(r"top(\d+)", spec) if isinstance(spec, str) else None
    winners = outputs.argmax(1) if outputs.dim() == 4 and classes > 1 else None
    if best and winners is not None and int(best[1]) <= classes:
        targets = _largest(winners, outputs, int(best[1]))
    try:
        asked = Targets(targets, outputs)
    except (IndexError, ValueError) as error:
        raise Failure(f"--targets: {error}") from error
    index = asked.index if asked.index is not None else outputs.new_zeros((len(outputs), asked.count), dtype=torch.long)
    totals = outputs if outputs.dim() == 2 else outputs.reshape(len(outputs), classes, -1).sum(2)
    scores = totals.gather(1, index).double()
    return Chosen(targets, index.tolist(), scores.tolist(), winners)


def _largest(winners: Tensor, outputs: Tensor, count: int) -> Tensor:
    """The classes that win at most places, ``(B, count)``; of those that win nowhere the ones of the largest scores."""
    classes = outputs.shape[1]
    areas = torch.nn.functional.one_hot(winners.flatten(1), classes).sum(1)
    order = outputs.flatten(2).sum(2).argsort(1, descending=True)
    best = areas.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, best)[:, :count]


def of_items(items: Sequence[Item], classes: int, like: Tensor) -> Tensor:
    """Each item's own class, ``(B, 1)``; 0 where :func:`check` has refused it."""
    fitting = [item.target if item.target is not None and item.target < classes else 0 for item in items]
    return torch.tensor(fitting, device=like.device).unsqueeze(1)


def check(spec: str | list[int], item: Item, classes: int) -> None:
    """Raises:
    InputFailure: if the item's class in a list is none of the model's, or is not there.
    """
    if spec != CLASS:
        return
    if item.target is None:
        raise InputFailure(f"the list has no class for {item.path}: write PATH CLASS")
    if item.target >= classes:
        raise InputFailure(
            f"class {item.target} of {item.path} is out of range: the model has {classes} classes, 0 to {classes - 1}"
        )


def at_most(spec: str | list[int], classes: int) -> str | list[int]:
    """The best targets that nobody asked for: not more than there are."""
    best = re.fullmatch(r"top(\d+)", spec) if isinstance(spec, str) else None
    return f"top{max(1, min(int(best[1]), classes))}" if best else spec


def count(outputs: Tensor) -> int:
    """Number of classes of an output ``(B, C, …)``; ``(B,)`` has one."""
    return outputs.shape[1] if outputs.dim() > 1 else 1
