"""How far relevance is from its reference, and how far it may be."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fastlrp.capture.graph import Value

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest relative error of one layer that passes, by dtype.

Looser than what operations are tested to (1e-5 in float32): where a denominator is nearly zero, the rounding of the
forward pass itself moves it. Measured on random networks: 2.3e-4 in a layer of VGG-11-BN, 4e-7 to 7e-6 end to end.
"""

ROUNDINGS = 4
"""Roundings of what arrives in a layer that pass wherever it cancels: relevance of exactly 0 has no relative error."""

ALONE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 0.1, torch.float16: 0.3, torch.bfloat16: 0.3}
"""Largest relative difference between a sample in a batch and alone that passes, by dtype.

Rounding depends on the batch size, and where sums of both signs are divided by their total it can move the result of a
whole network by 1e-2 in float32. An operation that mixes samples moved it by 0.4 to 1.1.
"""


def coarsest(dtypes: Iterable[torch.dtype | None], own: torch.dtype) -> torch.dtype:
    """The floating-point dtype with the fewest digits: parts of a model may compute in another one than its input's."""
    known = [dtype for dtype in dtypes if dtype in TOLERANCE]
    return max((own, *known), key=lambda dtype: TOLERANCE.get(dtype, 1e-4))


def floor(dtype: torch.dtype) -> float:
    """What an error is at least relative to, per unit of what arrives: :data:`ROUNDINGS` of it just pass."""
    return ROUNDINGS * torch.finfo(dtype).eps / TOLERANCE.get(dtype, 1e-4)


def sizes(relevance: Tensor) -> Tensor:
    """The 2-norm of each sample, over its targets. (B, K, …) -> (B)"""
    return relevance.flatten(1).norm(dim=1)


def most(largest: dict[Value, Tensor], value: Value, *parts: Tensor) -> None:
    """Enters into ``largest`` the largest size of all that comes to a value, before it is added up."""
    for part in parts:
        found = sizes(part)
        largest[value] = torch.maximum(largest[value], found) if value in largest else found


def relative(ours: Tensor, reference: Tensor, least: Tensor | None = None) -> float:
    """Largest ``||ours - reference|| / ||reference||`` of a sample, over its targets; 0 where both are 0.

    Not target by target: a score near zero is itself the difference of large numbers, and no kernel can do better.

    Args:
        least: (B), what the error is relative to where the reference is smaller.
    """
    if ours.numel() == 0:
        return 0.0
    difference, size = sizes(ours - reference), sizes(reference)
    if not bool((difference + size).isfinite().all()):
        return math.nan
    size = size if least is None else torch.maximum(size, least)
    return float(torch.where(difference == 0, 0.0, difference / size).max())
