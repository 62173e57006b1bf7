"""Spellings of targets and positions that say what a bare tensor does not: one per sample, or the next tokens."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Each:
    """One entry, or several, for each sample of the batch; made by :func:`each`.

    Attributes:
        items: an integer tensor ``(B, K)``, or a tuple of B entries that are no plain integers.
    """

    items: Tensor | tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, eq=False)
class NextTokens:
    """The tokens of a text as targets at the positions before them; made by :func:`next_tokens`.

    Attributes:
        ids: ``(B, S)``.
    """

    ids: Tensor


def each(values: Any) -> Each:
    """One target (or, for ``at=``, one position) per sample.

    Args:
        values: B integers, one for each sample of the batch: a sequence, an array or a tensor ``(B,)``; or ``(B, K)``,
            K for each. A sequence of B contrasts (dicts from class to weight) or names gives each sample its own.

    Returns:
        what ``targets=`` and ``at=`` take.

    Raises:
        TypeError: for anything else. ValueError: without an entry, or for a tensor with other axes.

    Example::

        explainer(x, fastlrp.each([3, 1]))                      # (2, 1, …): each sample's own class
        reader(ids, "top5", at=fastlrp.each([3, 1]))            # (2, 5, …): at each sample's own position
    """
    if isinstance(values, Each):
        return values
    if not hasattr(values, "dtype"):
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, (Sequence, range)):
            raise TypeError(f"each() takes one entry for each sample, (B,), got {type(values).__name__}")
        if any(isinstance(item, (Mapping, tuple, str)) for item in values):
            return Each(tuple(values))
    try:
        tensor = torch.as_tensor(list(values) if isinstance(values, range) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"each() takes one integer for each sample, (B,), got {described(values)}") from error
    if tensor.numel() == 0:
        raise ValueError("each() is empty: give one entry for each sample")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"each() takes integers, got {tensor.dtype}")
    if tensor.dim() not in (1, 2):
        raise ValueError(f"each() takes (B,) or (B, K), one entry or K for each sample, got {tuple(tensor.shape)}")
    return Each(tensor.long().unsqueeze(1) if tensor.dim() == 1 else tensor.long())


def next_tokens(ids: Any) -> NextTokens:
    """Each token of a text as the target of the position before it, ``targets="next"`` for ids given here.

    Args:
        ids: ``(B, S)`` integers, the text whose positions the output ``(B, S, V)`` has.

    Returns:
        what ``targets=`` takes: K = S - 1 targets, the one at position t being ``ids[:, t + 1]``.

    Raises:
        TypeError, ValueError: for anything but integers ``(B, S)``.

    Example::

        relevance = reader(ids, fastlrp.next_tokens(ids))  # (2, 3, 4): token t + 1 at position t
    """
    if isinstance(ids, NextTokens):
        return ids
    try:
        tensor = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"next_tokens() takes token ids (B, S), got {described(ids)}") from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"next_tokens() takes token ids (B, S), which are integers, got {tensor.dtype}")
    if tensor.dim() != 2:
        raise ValueError(f"next_tokens() takes token ids (B, S), got {tuple(tensor.shape)}")
    return NextTokens(tensor.long())


def described(values: Any) -> str:
    """What was given, in few words: its text if that is short, else its type."""
    if hasattr(values, "dtype") and math.prod(values.shape) > 10:
        return f"{type(values).__name__} {tuple(values.shape)} of {values.dtype}"
    if isinstance(values, tuple) and hasattr(values, "values") and hasattr(values, "indices"):
        return f"what {type(values).__name__} returns: give its .indices"
    text = repr(values)
    return text if len(text) <= 60 else f"{type(values).__name__} {text[:50]}…"


_WARNED: set[str] = set()


def warn_if_ambiguous(values: Any, batch: int, name: str) -> None:
    """Say once per process that a 1-D tensor of B integers is shared by the batch.

    Args:
        name: of the argument, ``"targets"`` or ``"at"``.
    """
    shape = tuple(getattr(values, "shape", ()))
    if not hasattr(values, "dtype") or shape != (batch,) or batch < 2 or name in _WARNED:
        return
    _WARNED.add(name)
    what = "classes" if name == "targets" else "positions"
    warnings.warn(
        f"{name} is a 1-D tensor of {batch} integers for a batch of {batch}, and is taken as {batch} {what} for every "
        f"sample. If each sample has its own, write {name}=fastlrp.each({name}) or {name}={name}[:, None]; if they are "
        f"for all samples, {name}={name}.tolist() says so without this warning, which is given once",
        UserWarning,
        stacklevel=2,
    )


def warn_if_shared(relevance: Tensor, batch: int) -> None:
    """Say once per process that initial relevance of the output's own shape is K targets, shared by the batch."""
    if relevance.shape[0] != batch or batch < 2 or "relevance" in _WARNED:
        return
    _WARNED.add("relevance")
    warnings.warn(
        f"targets is initial relevance {tuple(relevance.shape)}, the output's own shape, and is taken as {batch} "
        "targets for every sample. If each sample has its own, write targets=targets.unsqueeze(1); if all are for all "
        f"samples, targets=targets.expand({batch}, *targets.shape) says so without this warning, which is given once",
        UserWarning,
        stacklevel=2,
    )
