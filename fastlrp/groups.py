"""Parts of the input whose relevance is asked for as a whole: tokens, patches, superpixels, features, whole inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["features", "labels", "patches"]

Groups = Any
"""``"tokens"``, ``"inputs"``, what the functions of this module return, or weights ``(G, *x.shape[1:])``."""


@dataclass(frozen=True)
class Part:
    """One input of the model that has relevance.

    Attributes:
        name: for errors. sizes: of one sample. is_float: False for ids. batch: samples. device: where it is.
    """

    name: str
    sizes: tuple[int, ...]
    is_float: bool
    batch: int
    device: torch.device


@dataclass(frozen=True)
class Patches:
    """See :func:`patches`."""

    size: int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Labels:
    """See :func:`labels`."""

    map: Tensor
    count: int | None = None


@dataclass(frozen=True)
class Features:
    """See :func:`features`."""

    indices: tuple[tuple[int, ...], ...]


def patches(size: int | Sequence[int]) -> Patches:
    """Squares (intervals, boxes) of that many entries along each axis behind the channels, row by row.

    What is left over at the far end of an axis is a smaller patch.

    Args:
        size: one for all axes, or one for each.

    Raises:
        ValueError: for a size below 1.

    Example::

        relevance = explainer(x, "all", groups=groups.patches(8))  # (2, 10, 4)
    """
    sizes = (size,) if isinstance(size, (int, float)) else tuple(size)
    if not sizes or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"patches needs a size of at least 1, or one for each axis, got {size!r}")
    return Patches(size if isinstance(size, int) else sizes)


def labels(map: Any, count: int | None = None) -> Labels:
    """Entries with the same number in ``map`` are one group; a negative number is none.

    Args:
        map: integers of the shape of one sample ``(C, *S)`` or of its places ``(*S)``, or the same with a batch axis in
            front, for each sample its own. With as many samples as channels, where ``(B, *S)`` and ``(C, *S)`` are one,
            give ``(B, 1, *S)`` or ``(1, C, *S)``.
        count: how many groups there are; None: the largest number plus 1.

    Raises:
        TypeError: for numbers that are not integers.

    Example::

        halves = (torch.arange(16) >= 8).long().expand(16, 16)
        relevance = explainer(x, "all", groups=groups.labels(halves))  # (2, 10, 2): left and right
    """
    tensor = torch.as_tensor(map)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"labels needs integers, got {tensor.dtype}")
    return Labels(tensor.long(), count)


def features(indices: Sequence[int | Sequence[int]]) -> Features:
    """Each item is one group: an index, or several, along the input's first axis behind the batch.

    Args:
        indices: an index or a list of indices for each group; negative ones count from the end.

    Raises:
        TypeError: for indices that are not integers. ValueError: if there are none.

    Example::

        relevance = explainer(x, "all", groups=groups.features([0, [1, 2]]))  # (2, 10, 2): red, and the others
    """
    found = tuple((item,) if isinstance(item, int) else tuple(item) for item in indices)
    if not found:
        raise ValueError("features needs at least one group of indices")
    if any(not isinstance(i, int) or isinstance(i, bool) for group in found for i in group):
        raise TypeError(f"features needs integers or lists of integers, got {indices!r}")
    return Features(found)


@dataclass(frozen=True, eq=False)
class Resolved:
    """Groups as they are for the inputs of one record.

    Attributes:
        count: G. maps: for each input the number of each entry's group, ``(1 or B, *sizes)``, -1 for none; or weights
            ``(G, *sizes)``.
    """

    count: int
    maps: tuple[Tensor, ...]

    @cached_property
    def firsts(self) -> Tensor | None:
        """``(G,)``, the first position of each group of ids ``(B, S)`` or vectors ``(B, S, D)``; None for others."""
        found = self.maps[0]
        if len(self.maps) != 1 or not 2 <= found.dim() <= 3:
            return None
        whole = found.shape[1]
        if found.is_floating_point():
            alive = (found != 0).flatten(2).any(2) if found.dim() == 3 else found != 0  # (G, S)
            return torch.where(alive.any(1), alive.int().argmax(1), whole)
        positions = torch.arange(whole, device=found.device).view(1, -1, *[1] * (found.dim() - 2)).expand_as(found)
        inside = found >= 0
        result = torch.full((self.count,), whole, device=found.device)
        return result.scatter_reduce(0, found[inside], positions[inside], "amin")

    def in_order(self) -> tuple[Resolved, Tensor | None]:
        """The same groups by their first positions, and where each of these stood; None if they are in order."""
        firsts = self.firsts
        if firsts is None or bool((firsts[1:] >= firsts[:-1]).all()):
            return self, None
        order = firsts.argsort(stable=True)
        (found,) = self.maps
        if found.is_floating_point():
            return Resolved(self.count, (found[order],)), order
        number = torch.empty_like(order).scatter_(0, order, torch.arange(self.count, device=order.device))
        return Resolved(self.count, (torch.where(found < 0, found, number[found.clamp(min=0)]),)), order

    @property
    def is_partition(self) -> bool:
        """Whether each entry belongs to one group at most."""
        return all(not t.is_floating_point() for t in self.maps)

    def weights(self, position: int, first: int, length: int, dtype: torch.dtype) -> Tensor:
        """Of the input's entries in the groups from ``first`` on, ``(1 or B, length, *sizes)``."""
        found = self.maps[position]
        if found.is_floating_point():
            return found[first : first + length].to(dtype).unsqueeze(0)
        numbers = torch.arange(first, first + length, device=found.device)
        return (found.unsqueeze(1) == numbers.view(1, -1, *[1] * (found.dim() - 1))).to(dtype)

    def total(self, relevance: Sequence[Tensor]) -> Tensor:
        """``(B, K, *sizes)`` of each input, summed over the groups: ``(B, K, G)``."""
        batch, count = relevance[0].shape[:2]
        result = relevance[0].new_zeros(batch, count, self.count)
        for R, found in zip(relevance, self.maps, strict=True):
            flat = R.flatten(2)
            if found.is_floating_point():
                result += flat @ found.flatten(1).to(R.dtype).t()
                continue
            for sample in range(batch):
                own = found[sample % len(found)].flatten()
                # Rows of all targets are added at once. Entries of no group go to one more, which is left out.
                rows, numbers = flat[sample].t(), torch.where(own < 0, self.count, own)
                total = flat.new_zeros(self.count + 1, count).index_add_(0, numbers, rows.contiguous())
                result[sample] += total[: self.count].t()
        return result


def resolve(groups: Groups, parts: Sequence[Part]) -> Resolved:
    """What was asked for, for these inputs.

    Raises:
        ValueError: for groups that do not fit the input. TypeError: for anything that is no groups at all.
    """
    if isinstance(groups, str) and groups == "inputs":
        maps = [torch.full((1, *p.sizes), i, device=p.device) for i, p in enumerate(parts)]
        return Resolved(len(parts), tuple(maps))
    if len(parts) != 1:
        raise ValueError(
            f"groups={groups!r} are parts of one input, and {len(parts)} inputs have relevance "
            f"({', '.join(p.name for p in parts)}): use groups='inputs', or ask for relevance without groups"
        )
    part = parts[0]
    if isinstance(groups, str):
        if groups != "tokens":
            raise ValueError(
                f"groups must be 'tokens', 'inputs', fastlrp.groups.… or a tensor of weights, got {groups!r}"
            )
        return _partition(_tokens(part), part)
    if isinstance(groups, Patches):
        return _partition(_patches(groups.size, part), part)
    if isinstance(groups, Labels):
        return _labelled(groups, part)
    if isinstance(groups, Features):
        return _features(groups, part)
    if isinstance(groups, (Tensor, list)) or hasattr(groups, "__array__"):
        return _weighted(torch.as_tensor(groups), part)
    raise TypeError(
        f"groups must be 'tokens', 'inputs', fastlrp.groups.patches(…), labels(…), features(…) or a tensor of weights "
        f"(G, {_dims(part.sizes)}), got {type(groups).__name__}"
    )


def _partition(numbers: Tensor, part: Part) -> Resolved:
    count = int(numbers.max()) + 1 if numbers.numel() else 0
    return Resolved(count, (numbers.to(part.device).expand(1, *part.sizes),))


def _tokens(part: Part) -> Tensor:
    """Ids, or vectors of a sequence, each one group."""
    positions = part.sizes[:-1] if part.is_float else part.sizes
    if not positions or (part.is_float and len(part.sizes) != 2):
        raise ValueError(
            f"groups='tokens' needs ids (B, S) or vectors (B, S, D), and input {part.name!r} is "
            f"(B, {_dims(part.sizes)}): use fastlrp.groups.patches(…) or labels(…)"
        )
    numbers = torch.arange(math.prod(positions)).view(1, *positions)
    return numbers.unsqueeze(-1) if part.is_float else numbers


def _patches(size: int | tuple[int, ...], part: Part) -> Tensor:
    axes = part.sizes[1:]
    sizes = (size,) * len(axes) if isinstance(size, int) else size
    if not 1 <= len(axes) <= 3 or len(sizes) != len(axes):
        raise ValueError(
            f"patches({size}) needs an input (B, C, *S) with {'1 to 3' if isinstance(size, int) else len(sizes)} axes "
            f"behind the channels, and input {part.name!r} is (B, {_dims(part.sizes)})"
        )
    numbers = torch.zeros((), dtype=torch.int64)
    for length, step in zip(axes, sizes, strict=True):
        along = torch.arange(length) // step
        numbers = numbers.unsqueeze(-1) * (-(-length // step)) + along
    return numbers.view(1, 1, *axes)


def _labelled(groups: Labels, part: Part) -> Resolved:
    numbers, sizes = groups.map.to(part.device), part.sizes
    shape = tuple(numbers.shape)
    of_samples = (part.batch, *sizes[1:])
    if shape == sizes == of_samples and len(sizes) > 1 and bool((numbers != numbers[:1]).any()):
        raise ValueError(
            f"labels of shape {shape} may be entries of input {part.name!r} ({_dims(sizes)}), or places for each of "
            f"{part.batch} samples, ({_dims(of_samples)}): give labels.unsqueeze(0) for entries that all samples "
            "share, labels.unsqueeze(1) for each sample's own places"
        )
    if shape == sizes:
        numbers = numbers.unsqueeze(0)
    elif shape == sizes[1:]:
        numbers = numbers.unsqueeze(0).unsqueeze(0)
    elif shape == of_samples and len(sizes) > 1:
        numbers = numbers.unsqueeze(1)
    elif shape not in ((1, *sizes), (part.batch, *sizes), (part.batch, 1, *sizes[1:])):
        raise ValueError(
            f"labels of shape {shape} do not fit input {part.name!r} (B, {_dims(sizes)}): give one number for each "
            f"entry ({_dims(sizes)}), for each place behind the channels, or the same for each of {part.batch} samples"
        )
    largest = int(numbers.max()) + 1 if numbers.numel() else 0
    count = largest if groups.count is None else groups.count
    if largest < 1 and groups.count is None:
        raise ValueError("labels have no number of 0 or more, so that no entry belongs to a group: groups begin with 0")
    if largest > count or count < 1:
        raise ValueError(f"labels go up to {largest - 1}, and count is {count}: it must be at least {max(1, largest)}")
    return Resolved(count, (numbers.expand(numbers.shape[0], *sizes),))


def _features(groups: Features, part: Part) -> Resolved:
    n = part.sizes[0] if part.sizes else 0
    wrong = [i for group in groups.indices for i in group if not -n <= i < n]
    if wrong:
        raise IndexError(f"features: index {wrong[0]} is out of range for input {part.name!r} with {n} features")
    weights = torch.zeros(len(groups.indices), *part.sizes, device=part.device, dtype=torch.float64)
    for row, group in zip(weights, groups.indices, strict=True):
        row[list(group)] = 1
    return Resolved(len(weights), (weights,))


def _weighted(weights: Tensor, part: Part) -> Resolved:
    if weights.dim() != len(part.sizes) + 1 or tuple(weights.shape[1:]) != part.sizes:
        raise ValueError(
            f"groups as weights must be (G, {_dims(part.sizes)}) for input {part.name!r}, got {tuple(weights.shape)}"
        )
    if weights.is_complex() or weights.shape[0] == 0:
        raise ValueError("groups as weights must be real numbers of at least one group")
    if weights.is_floating_point() and not bool(torch.isfinite(weights).all()):
        raise ValueError("groups as weights contain NaN or infinity: give finite numbers")
    weights = weights.to(part.device)
    return Resolved(len(weights), (weights if weights.is_floating_point() else weights.double(),))


def _dims(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
