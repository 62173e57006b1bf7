"""The product at an edge where groups from below meet targets from above."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp.plan.compact import Compact
from fastlrp.plan.total import in_one_axis
from fastlrp.run.up.ascent import Cotangent, on_whole_map
from fastlrp.run.up.boxes import Boxed

Arrived = tuple[int, Tensor | Compact]
"""First target, and the targets' registers ``(B, K, …)`` at the edge; compact where dead neurons are left out."""


def combine(result: Tensor, targets: Sequence[Arrived], groups: Sequence[tuple[int, Cotangent]]) -> None:
    """Write ``<register, cotangent>`` of these targets and groups into ``result (B, K, G)``.

    Args:
        groups: first group, and the cotangents ``(B, G, …)``, all zero where a compact register leaves entries out.
    """
    for k, register in targets:
        for g, t in groups:
            part = result[:, k : k + register.shape[1], g : g + _count(t)]
            if isinstance(register, Compact):
                _combine_compact(part, register, t)
            elif isinstance(t, Boxed):
                for n, where in enumerate(t.slices):
                    own = t.rows[:, n].flatten(1).unsqueeze(2)
                    part[:, :, n] = (register[where].flatten(2) @ own).squeeze(2)
            else:
                part.copy_(in_one_axis(register) @ in_one_axis(on_whole_map(t)).mT)


def _count(t: Cotangent) -> int:
    return t.rows.shape[1] if isinstance(t, Boxed) else t.shape[1]


def _combine_compact(part: Tensor, register: Compact, t: Cotangent) -> None:
    """Of the alive neurons alone, whose rows of targets stand in the order of positions and then of channels."""
    pattern, values = register.pattern, register.values[:, : register.count]
    positions = torch.Size(pattern.sizes[1:]).numel()
    for b in range(pattern.batch):
        offsets = pattern.offsets[b * positions : (b + 1) * positions + 1]
        if isinstance(t, Boxed):
            for n, (start, own) in enumerate(zip(_starts(t), t.rows[b], strict=True)):
                inside = _inside(pattern.sizes[1:], start, own.shape[1:])
                rows, position = _rows_at(offsets, inside)
                weights = own.flatten(1)[pattern.channels[rows].long(), position]
                torch.mv(_rows(register, values, rows).t(), weights, out=part[b, :, n])
        else:
            rows, position = _rows_at(offsets, torch.arange(positions))
            weights = on_whole_map(t)[b].flatten(2)[:, pattern.channels[rows].long(), position]
            part[b] = (weights @ _rows(register, values, rows)).t()


def _rows(register: Compact, values: Tensor, rows: Tensor) -> Tensor:
    return values[rows] if register.rows is None else values[register.rows[rows]]


def _starts(t: Boxed) -> list[list[int]]:
    return t.box.starts[t.first : t.first + t.rows.shape[1]].tolist()


def _inside(sizes: Sequence[int], start: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """The flattened positions of a box in a map."""
    found = torch.zeros((), dtype=torch.int64)
    for size, first, length in zip(sizes, start, lengths, strict=True):
        found = found.unsqueeze(-1) * size + torch.arange(first, first + length)
    return found.flatten()


def _rows_at(offsets: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The entries at these positions, and each one's place among ``positions``."""
    begin, end = offsets[positions], offsets[positions + 1]
    counts = end - begin
    place = torch.repeat_interleave(torch.arange(len(positions)), counts)
    before = counts.cumsum(0) - counts
    return begin[place] + torch.arange(len(place)) - before[place], place
