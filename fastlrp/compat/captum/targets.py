"""Captum's target forms: which entry of each sample's output is explained."""

from __future__ import annotations

import math
import operator
import re
from typing import Any

import torch
from torch import Tensor


def position(output: Tensor, target: Any) -> Tensor:
    """``(B,)``: the place of the explained entry in each sample's flattened output ``(B, …)``.

    Args:
        target: None for one score per sample; an integer, or a tensor of one integer, on axis 1; a tuple of integers,
            one for each axis after the batch; a list or 1-D tensor of B integers for an output ``(B, C)``; a list of B
            tuples.

    Raises:
        IndexError: for an entry that the output does not have.
        TypeError, ValueError: for any other form, or one that leaves more than one entry per sample.
    """
    places = torch.arange(math.prod(output.shape[1:]), device=output.device)
    places = places.view(1, *output.shape[1:]).expand(output.shape)
    try:
        chosen = _chosen(places, target)
    except IndexError as error:
        raise IndexError(f"target {target!r} is out of range for an output {tuple(output.shape)}") from error
    chosen = chosen.flatten(1) if chosen.dim() > 1 else chosen.unsqueeze(1)
    if chosen.shape[1] != 1:
        raise ValueError(
            f"target {target!r} leaves {chosen.shape[1]} entries of the output {tuple(output.shape)} for each sample, "
            "and one is explained: give an index for every axis after the batch, target=(c, i, j); for many targets "
            "in one call use targets="
        )
    return chosen[:, 0]


def _chosen(places: Tensor, target: Any) -> Tensor:
    if target is None:
        return places
    if isinstance(target, Tensor) and target.numel() > 1:
        _integers(target)
        if target.dim() != 1:
            raise ValueError(f"target as a tensor must be one integer or (B,), got {tuple(target.shape)}")
        target = target.tolist()
    if isinstance(target, list):
        return _per_sample(places, target)
    if isinstance(target, tuple):
        if len(target) > places.dim() - 1:
            raise ValueError(f"target {target!r} has {len(target)} indices, the output has {places.dim() - 1} axes")
        return places[(slice(None), *(i if isinstance(i, slice) else _integer(i) for i in target))]
    if places.dim() < 2:
        raise ValueError(f"the output {tuple(places.shape)} has one score per sample: leave target out")
    return places[:, _integer(target)]


def _per_sample(places: Tensor, target: list[Any]) -> Tensor:
    if len(target) != len(places):
        raise ValueError(
            f"target as a list or tensor has one entry for each sample: got {len(target)} for {len(places)} samples. "
            "For several targets of every sample use targets="
        )
    if all(isinstance(item, tuple) for item in target):
        rows = [places[(i, *map(_integer, item))].reshape(1, -1) for i, item in enumerate(target)]
        return torch.cat(rows) if rows else places.reshape(0, 1)
    if places.dim() != 2:
        raise ValueError(f"a list of integers needs an output (B, C), got {tuple(places.shape)}: use a list of tuples")
    rows = [places[i, _integer(item)].reshape(1, 1) for i, item in enumerate(target)]
    return torch.cat(rows) if rows else places.reshape(0, 1)


def _integer(item: Any) -> int:
    if isinstance(item, (bool, float)) or (isinstance(item, Tensor) and item.numel() != 1):
        raise TypeError(f"a target is an integer, got {item!r}")
    if isinstance(item, Tensor):
        _integers(item)
        return int(item)
    try:
        return operator.index(item)
    except TypeError as error:
        raise TypeError(f"a target is an integer or a tuple of integers, got {type(item).__name__}") from error


def _integers(tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"a target is an integer, got a tensor of {tensor.dtype}")


def positions(output: Tensor, targets: Any) -> Tensor:
    """``(B, K)``: the places of K explained entries.

    Args:
        targets: a sequence of K targets, each in a form of :func:`position`; a tensor of integers ``(K,)`` or
            ``(B, K)``; ``"all"`` or ``"top5"`` (any number) on an output ``(B, C)``.
    """
    if isinstance(targets, str):
        return _named(output, targets)
    if not isinstance(targets, Tensor) and hasattr(targets, "__array__"):
        targets = torch.as_tensor(targets)
    if isinstance(targets, Tensor):
        _integers(targets)
        _refuse_one_hot(targets, output)
        if targets.dim() == 2 and len(targets) == len(output):
            targets = list(targets.unbind(1))
        elif targets.dim() != 1:
            raise ValueError(f"targets as a tensor must be (K,) or ({len(output)}, K), got {tuple(targets.shape)}")
    if not isinstance(targets, (list, tuple, range, Tensor)):
        raise TypeError(f"targets must be a sequence of targets, 'all' or 'top5', got {type(targets).__name__}")
    if not len(targets):
        raise ValueError("targets is empty: name at least one")
    return torch.stack([position(output, target) for target in targets], 1)


def _refuse_one_hot(targets: Tensor, output: Tensor) -> None:
    """Zeros and ones of the output's shape are hardly ever classes."""
    if output.dim() != 2 or output.shape[1] < 2 or targets.shape != output.shape:
        return
    zeros, ones = (targets == 0).sum(1), (targets == 1).sum(1)
    if targets.numel() and bool((ones == 1).all()) and bool((zeros + ones == targets.shape[1]).all()):
        raise ValueError(
            f"targets is a tensor {tuple(targets.shape)} of zeros and ones, the output's shape, and may be one-hot: "
            "write targets.argmax(1, keepdim=True) for the class that is one, list(targets.unbind(1)) if these are "
            "K classes of each sample"
        )


def _named(output: Tensor, name: str) -> Tensor:
    if output.dim() != 2:
        raise ValueError(f"targets={name!r} needs an output (B, C), got {tuple(output.shape)}")
    if name == "all":
        return torch.arange(output.shape[1], device=output.device).expand(output.shape)
    match = re.fullmatch(r"top([1-9]\d*)", name)
    if match is None:
        raise ValueError(f"targets {name!r} is not known: use 'all' or 'top5' (any number)")
    if int(match[1]) > output.shape[1]:
        raise IndexError(f"targets {name!r} asks for {match[1]} classes, the output has {output.shape[1]}")
    return output.topk(int(match[1]), dim=1).indices
