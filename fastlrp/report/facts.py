"""What a report says of a sample beside its relevance: the class that it really is, and probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.targets.targets import Targets

PROBABILITIES = ("softmax", "sigmoid")


def probabilities_of(scores: Tensor, asked: Targets, kind: str | None) -> tuple[str, list[list[float] | None]]:
    """What the numbers are, and those of each sample's targets, or None.

    Args:
        scores: the model's output ``(B, C)``; others have no probabilities here.
        kind: of :data:`PROBABILITIES`, or None.
    """
    if kind is not None and kind not in PROBABILITIES:
        raise ValueError(f"probability must be one of {', '.join(PROBABILITIES)}, or None, got {kind!r}")
    batch = len(scores)
    if kind is None or asked.index is None or asked.position is not None or scores.dim() != 2 or scores.shape[1] < 2:
        return "probability", [None] * batch
    values = scores.detach().double()
    inside = bool(((values >= 0) & (values <= 1)).all())
    if inside and torch.allclose(values.sum(1), values.new_ones(batch), atol=1e-3):
        kind = "probability"
    else:
        values = values.softmax(1) if kind == "softmax" else values.sigmoid()
    return kind, values.gather(1, asked.index.to(values.device)).cpu().tolist()


def named_truth(
    truth: Sequence[int | str | None] | None, batch: int, known: Mapping[int, str]
) -> list[tuple[str, int | None]]:
    """Name and number of the class that each sample really is; the number is None where only a name is known."""
    if truth is None:
        return [("", None)] * batch
    given: list[Any] = truth.tolist() if isinstance(truth, Tensor) else list(truth)
    if isinstance(truth, str) or len(given) != batch:
        raise ValueError(f"truth must have one class, or None, for each of {batch} samples, got {truth!r:.80}")
    numbers = {name: number for number, name in reversed(list(known.items()))}
    found: list[tuple[str, int | None]] = []
    for one in given:
        if one is None or isinstance(one, str):
            found.append(("" if one is None else one, None if one is None else numbers.get(one)))
        else:
            found.append((str(known.get(int(one), int(one))), int(one)))
    return found
