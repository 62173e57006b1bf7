"""Targets as classes, or weighted sums of classes, before it is known what an output has for them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.targets.spellings import Each, described, warn_if_ambiguous

Key = Callable[[Any], int]
"""From what a contrast names to the number of a class (or of an entry of the output), with its errors."""

TARGETS = "an int, classes, 'all', 'top5' or initial relevance, or contrasts {3: 1.0, 17: -1.0}"


@dataclass(frozen=True, eq=False)
class Terms:
    """T targets of M weighted classes each.

    Attributes:
        index: ``(B, P, T, M)`` classes, P = 1 where they are the same at all positions. weight: of the same shape;
            None where all are 1.
    """

    index: Tensor
    weight: Tensor | None = None


def plain(targets: Any, batch: int, classes: int) -> Tensor | None:
    """``(B, K)`` on the CPU of classes that need no second look; None for everything else.

    They are a tensor ``(B, K)`` of int64, an int or a list of ints, all in range, or ``"all"``.
    """
    kind = type(targets)
    if kind is Tensor:
        if targets.dim() != 2 or targets.dtype != torch.int64 or not targets.is_cpu:
            return None
        rows, count = targets.shape
        return targets if rows == batch and count not in (0, classes) else None
    if kind is str:
        return torch.arange(classes, device="cpu").expand(batch, -1) if targets == "all" and classes > 0 else None
    if kind is int:
        targets = (targets,)
    elif kind is not list:
        return None
    for item in targets:
        if type(item) is not int or not 0 <= item < classes:
            return None
    return torch.tensor(targets, device="cpu").expand(batch, -1) if targets else None


def is_relevance(targets: Any, shape: tuple[int, ...]) -> bool:
    """Whether ``targets`` are initial relevance, not classes, for an output of this shape ``(B, C, …)``.

    Tensors and arrays of floats or bools always are. Those of integers are where they can't be classes: with three or
    more axes, or as zeros and ones of shape ``(K, C)`` with another K than B. Everything else is classes, lists of
    integers always. Zeros and ones that could be either are refused.

    Raises:
        ValueError: for an integer tensor that may be one-hot relevance as well as classes; the message shows how to
            write the one and the other.
    """
    if not hasattr(targets, "dtype"):
        return False
    tensor = targets if isinstance(targets, Tensor) else torch.as_tensor(targets)
    refuse_special(tensor)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        return True
    if tensor.is_complex() or len(shape) < 2 or tensor.dim() == 0 or not tensor.numel():
        return False
    if tensor.dim() > 2:
        return True
    batch, classes = shape[:2]
    if len(shape) > 2 or tensor.shape[-1] != classes or bool(((tensor != 0) & (tensor != 1)).any()):
        return False
    hot = (tensor == 1).sum(-1)
    if tensor.dim() == 2 and tensor.shape[0] != batch:
        return bool((hot > 0).all())
    if tensor.dim() == 1:  # Two classes, [0, 1], are all classes: (C,) is no form of relevance.
        if classes > 2 and int(hot) == 1:
            raise ValueError(
                f"targets is an integer tensor of {classes} zeros and a one: write targets.tolist() if these are "
                f"{classes} classes, targets[None] * 1.0 if it is the initial relevance of one target"
            )
        return False
    if bool((hot > 0).all()) and (classes > 2 or bool((hot == 1).all())) and classes > 1:
        raise ValueError(
            f"targets is an integer tensor {tuple(tensor.shape)} of zeros and ones, the shape of the output, which may "
            "be classes or one-hot relevance: write targets.tolist() if these are K classes of each sample, "
            "targets.unsqueeze(1) if each sample has one initial relevance, targets.float() if these are K of them "
            "for all samples"
        )
    return False


def refuse_special(targets: Tensor) -> None:
    """Only a dense tensor with numbers says which targets are meant.

    Raises:
        TypeError: for another layout. ValueError: for classes on the meta device.
    """
    if targets.is_nested or targets.layout != torch.strided:
        kind = "nested" if targets.is_nested else targets.layout
        raise TypeError(f"targets is {kind}: give a dense tensor on the model's device, or a list")
    if targets.is_meta and not targets.is_floating_point():
        raise ValueError("targets are on meta, a device without numbers: give them on the model's device, or a list")


def has_contrasts(targets: Any) -> bool:
    """Whether targets are dicts, or have some among them."""
    if isinstance(targets, Each):
        targets = targets.items
    return isinstance(targets, Mapping) or (
        isinstance(targets, (list, tuple)) and any(isinstance(item, Mapping) for item in targets)
    )


def contrasts(targets: Any, batch: int, key: Key, device: torch.device) -> Terms:
    """Dicts from class to weight, and classes among them, as terms.

    Args:
        targets: a dict; a sequence of dicts and classes; :func:`fastlrp.each` of B of them.
        key: reads a class.

    Raises:
        TypeError, ValueError: for a dict that is empty, and weights that are no finite numbers.
    """
    per_sample = isinstance(targets, Each)
    listed = targets.items if isinstance(targets, Each) else targets
    items = [listed] if isinstance(listed, Mapping) else list(listed)
    if per_sample and len(items) != batch:
        raise ValueError(f"targets=fastlrp.each(…) has {len(items)} entries for {batch} samples")
    read = [_contrast(item, key) for item in items]
    longest = max(len(row) for row in read)
    # A row that is shorter is filled up with its own first class, of weight 0.
    rows = [row + [(row[0][0], 0.0)] * (longest - len(row)) for row in read]
    index = torch.tensor([[c for c, _ in row] for row in rows], device=device)
    weight = torch.tensor([[w for _, w in row] for row in rows], dtype=torch.float64, device=device)
    if per_sample:
        return Terms(index[:, None, None], weight[:, None, None])
    return Terms(index.expand(batch, 1, *index.shape), weight.expand(batch, 1, *weight.shape))


def _contrast(item: Any, key: Key) -> list[tuple[int, float]]:
    if not isinstance(item, Mapping):
        return [(key(item), 1.0)]
    if not item:
        raise ValueError("targets has an empty contrast {}: name at least one class, {3: 1.0, 17: -1.0}")
    found: dict[int, float] = {}
    for name, weight in item.items():
        try:
            number = float(weight)
        except (TypeError, ValueError):
            raise TypeError(f"the weight of {name!r} in a contrast must be a number, got {weight!r}") from None
        if not math.isfinite(number):
            raise ValueError(f"the weight of {name!r} in a contrast must be finite, got {number}")
        place = key(name)
        found[place] = found.get(place, 0.0) + number
    return list(found.items())


def integer(name: Any) -> int:
    """A class as an int.

    Raises:
        TypeError: for what is none.
    """
    dtype = getattr(name, "dtype", None)
    try:
        if isinstance(name, bool) or dtype in (torch.bool, bool):
            raise TypeError
        return operator.index(name)
    except TypeError:
        raise TypeError(f"targets given as classes must be integers, got {name!r}") from None


def integers(targets: Any, batch: int, device: torch.device) -> Tensor:
    """``(B, K)`` classes from an int, a sequence, an array or tensor ``(K,)`` or ``(B, K)``, or :func:`fastlrp.each`.

    Raises:
        TypeError, ValueError: for anything else; the message says what would fit.
    """
    if isinstance(targets, Each):
        if len(targets) != batch:
            raise ValueError(f"targets=fastlrp.each(…) has {len(targets)} entries for {batch} samples")
        targets = targets.items
    warn_if_ambiguous(targets, batch, "targets")
    try:
        index = torch.as_tensor(list(targets) if isinstance(targets, range) else targets, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"targets must be {TARGETS}, got {described(targets)}") from error
    if index.dim() and index.shape[-1] == 0:
        raise ValueError("targets is empty: name at least one class")
    if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
        raise TypeError(f"targets given as classes must be integers, got {index.dtype}")
    index = index.long()
    if index.dim() < 2:
        index = index.reshape(1, -1).expand(batch, -1)
    if index.dim() != 2 or index.shape[0] != batch:
        raise ValueError(f"targets per sample must be (B, K) = ({batch}, K), got {tuple(index.shape)}")
    return index


def entries(targets: Any, batch: int, axes: int, device: torch.device, key: Key) -> Terms:
    """``at="pairs"``: every target as an index into all axes of the output behind the batch.

    Args:
        targets: tuples of ``axes`` integers, a tensor ``(K, axes)`` or ``(B, K, axes)``, :func:`fastlrp.each` of B
            tuples or of ``(B, axes)``; or contrasts whose keys are such tuples.
        key: from a tuple to a place in the flattened output.
    """
    wanted = f"targets with at='pairs' must be tuples of {axes} integers, [({', '.join('3745'[:axes])}), …]"
    if has_contrasts(targets):
        return contrasts(targets, batch, lambda name: key(_tuple(name, axes, wanted)), device)
    each = isinstance(targets, Each)
    items: Any = targets.items if isinstance(targets, Each) else targets
    if hasattr(items, "dtype"):
        tensor = torch.as_tensor(items)
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"{wanted}, got {tensor.dtype}")
        items = tensor.unsqueeze(1).tolist() if each else tensor.tolist()
        nested = each or tensor.dim() == 3
        if tensor.dim() not in (2, 3) or tensor.shape[-1] != axes or (nested and len(items) != batch):
            raise ValueError(
                f"targets with at='pairs' must be (K, {axes}) or ({batch}, K, {axes}), got {tuple(tensor.shape)}"
            )
    elif isinstance(items, Sequence) and not isinstance(items, str):
        nested, items = each, [[item] for item in items] if each else list(items)
    else:
        raise TypeError(f"{wanted}, got {items!r}")
    rows = items if nested else [items]
    if not rows or not rows[0]:
        raise ValueError("targets is empty: name at least one entry of the output")
    if nested and len(rows) != batch:
        raise ValueError(f"targets=fastlrp.each(…) has {len(rows)} entries for {batch} samples")
    index = torch.tensor([[key(_tuple(item, axes, wanted)) for item in row] for row in rows], device=device)
    return Terms(index.expand(batch, -1)[:, None, :, None])


def _tuple(item: Any, axes: int, wanted: str) -> tuple[Any, ...]:
    if not isinstance(item, (tuple, list)) or len(item) != axes:
        raise ValueError(f"{wanted}, got {item!r}")
    return tuple(item)
