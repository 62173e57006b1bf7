"""``at=``: at which positions of an output targets stand."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.targets.spellings import Each, described, warn_if_ambiguous


@dataclass(frozen=True, eq=False)
class Positions:
    """P places of an output for each sample, and which of its axes has the classes.

    Attributes:
        cells: ``(B, P, A)`` numbers of positions. A is 1, or the size of an area whose cells stand together.
        last: whether the classes are the last axis, ``(B, S, V)``; they are axis 1 otherwise, ``(B, C, H, W)``.
        count: how many positions there are. classes: how many classes.
        inside: ``(B, P, A)`` ones, and zeros where the area of a sample is smaller than A; None if all are inside.
    """

    cells: Tensor
    last: bool
    count: int
    classes: int
    inside: Tensor | None = None

    def flat(self, classes: Tensor) -> Tensor:
        """``(B, P, T, M)`` classes to their places in the flattened output, ``(B, P, T, A * M)``."""
        cells = self.cells[:, :, None, :, None]
        classes = classes.unsqueeze(3)
        places = cells * self.classes + classes if self.last else cells + classes * self.count
        return places.flatten(3)

    def scores(self, output: Tensor) -> Tensor:
        """``(B, P, classes)``: all scores of each position, summed over its area."""
        batch = output.shape[0]
        if self.last:
            where = self.cells[:, :, 0, None].expand(-1, -1, self.classes)
            return output.gather(1, where)
        where = self.cells.flatten(1).unsqueeze(1).expand(-1, self.classes, -1)
        found = output.reshape(batch, self.classes, self.count).gather(2, where)
        found = found.unflatten(2, self.cells.shape[1:]).transpose(1, 2)
        return (found if self.inside is None else found * self.inside.unsqueeze(2)).sum(3)


def positions(at: Any, output: Tensor) -> Positions:
    """What ``at`` names in an output.

    Args:
        at: for an output ``(B, S, V)`` a position (negative ones count from the end), a sequence or 1-D tensor of
            them, ``(B, P)`` or :func:`fastlrp.each` for positions of each sample's own, ``"all"``. For outputs
            ``(B, C, *S)``, whose classes are axis 1: a tuple with a number for each axis of S, a list of such tuples,
            or a bool mask ``S`` or ``(B, *S)``, whose cells stand together as one place.

    Raises:
        IndexError: for a position that the output does not have.
        TypeError, ValueError: for anything else that does not fit; the message says what would.
    """
    shape = tuple(output.shape)
    if len(shape) < 3:
        raise ValueError(
            f"at={described(at)} names positions of an output (B, S, V), and the output explained here is {shape}, "
            "without an axis of positions: leave at= out"
        )
    if isinstance(at, Each) and not isinstance(at.items, Tensor):
        return _of_each_sample(at, shape, output.device)
    if isinstance(at, tuple) or (isinstance(at, list) and at and all(isinstance(item, tuple) for item in at)):
        cells = torch.tensor([_cell(item, shape) for item in ([at] if isinstance(at, tuple) else at)])
        cells = cells.view(1, -1, 1).expand(shape[0], -1, 1)
        return Positions(cells.to(output.device), False, math.prod(shape[2:]), shape[1])
    if getattr(at, "dtype", None) in (torch.bool, bool):
        return _area(torch.as_tensor(at), shape, output.device)
    if len(shape) != 3:
        mask = tuple(getattr(at, "shape", ())) in (shape[2:], (shape[0], *shape[2:]))
        hint = f"; this one is of {at.dtype}, write mask == 1 or mask > 0.5" if mask else ""
        raise ValueError(
            f"at={described(at)}: the output is {shape}, whose axis 1 are classes, so a place is a tuple of "
            f"{len(shape) - 2} numbers, one for each further axis, or a bool mask {shape[2:]}{hint}"
        )
    return Positions(_along(at, shape, output.device).unsqueeze(2), True, shape[1], shape[2])


def _along(at: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """``(B, P)`` positions on axis 1."""
    batch, count = shape[:2]
    if isinstance(at, str):
        if at != "all":
            raise ValueError(f"at={at!r} is not known: use a position, a list of them, 'all' or 'pairs'")
        return torch.arange(count, device=device).expand(batch, -1)
    warn_if_ambiguous(at, batch, "at")
    if isinstance(at, Each):
        at = at.items
    try:
        index = torch.as_tensor(list(at) if isinstance(at, range) else at)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"at= must be a position, a list of positions, 'all', 'pairs' or fastlrp.each(…), got {described(at)}"
        ) from error
    if index.dim() and index.shape[-1] == 0:
        raise ValueError("at= is empty: name at least one position")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"at= names positions by integers, got {index.dtype}")
    index = index.long().to(device)
    index = index.reshape(1, -1).expand(batch, -1) if index.dim() < 2 else index
    if index.dim() != 2 or index.shape[0] != batch:
        raise ValueError(f"at= per sample must be (B, P) = ({batch}, P), got {tuple(index.shape)}")
    return _in_range(index, count, shape)


def _in_range(index: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    if index.numel() and (int(index.min()) < -count or int(index.max()) >= count):
        wrong = int(index.min()) if int(index.min()) < -count else int(index.max())
        raise IndexError(
            f"position {wrong} is out of range: the output {shape} has {count} positions, {-count} to {count - 1}"
        )
    return torch.where(index < 0, index + count, index)


def _of_each_sample(at: Each, shape: tuple[int, ...], device: torch.device) -> Positions:
    items = at.items
    if len(items) != shape[0]:
        raise ValueError(f"at=fastlrp.each(…) has {len(items)} entries for {shape[0]} samples")
    cells = torch.tensor([_cell(item, shape) for item in items], device=device).view(-1, 1, 1)
    return Positions(cells, False, math.prod(shape[2:]), shape[1])


def _cell(place: Any, shape: tuple[int, ...]) -> int:
    """The number of the position at which a tuple stands, in the axes behind the classes."""
    sizes = shape[2:]
    if not isinstance(place, tuple) or len(place) != len(sizes):
        several = "; for several positions of an output (B, S, V) write a list, at=[3, 5]" if len(sizes) == 1 else ""
        raise ValueError(
            f"at={place!r}: as a tuple it is one place in the axes behind the classes of the output {shape}, and needs "
            f"{len(sizes)} number{'s' if len(sizes) > 1 else ''}{several}"
        )
    return flat_index(place, sizes, f"at={place!r}", shape)


def flat_index(place: Any, sizes: tuple[int, ...], label: str, shape: tuple[int, ...], first: int = 2) -> int:
    """The number of a place in flattened ``sizes``. ``first``: the axis of the output that these begin at."""
    number = 0
    for axis, (item, size) in enumerate(zip(place, sizes, strict=True), start=first):
        try:
            n = operator.index(item)
        except TypeError:
            raise TypeError(f"{label} must hold integers, got {type(item).__name__}") from None
        if isinstance(item, bool):
            raise TypeError(f"{label} must hold integers, got bool")
        if not -size <= n < size:
            raise IndexError(f"{label} is out of range: axis {axis} of the output {shape} has {size} entries")
        number = number * size + n % size
    return number


def _area(mask: Tensor, shape: tuple[int, ...], device: torch.device) -> Positions:
    """All cells of a mask as one place."""
    batch, sizes = shape[0], shape[2:]
    if len(shape) == 3:
        raise ValueError(
            "at= is a bool mask, which stands for an area of an output (B, C, H, W): for positions of an output "
            "(B, S, V) give integers, at=mask.nonzero()[:, 0].tolist()"
        )
    if tuple(mask.shape) not in (sizes, (batch, *sizes)):
        raise ValueError(f"at= as a mask must be {sizes} or {(batch, *sizes)}, got {tuple(mask.shape)}")
    rows = mask.to(device).expand(batch, *sizes).flatten(1)
    lengths = rows.sum(1)
    if batch and int(lengths.min()) == 0:
        raise ValueError("at= is a mask without a cell: mark at least one, of each sample")
    longest = int(lengths.max()) if batch else 1
    cells = rows.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :longest]
    inside = torch.arange(longest, device=device) < lengths.unsqueeze(1)
    cells = torch.where(inside, cells, cells[:, :1])  # Cells of no weight stand where others are.
    whole = bool(inside.all())
    return Positions(cells.unsqueeze(1), False, rows.shape[1], shape[1], None if whole else inside.unsqueeze(1))
