"""Targets of few entries on the way up: where they wait for what comes up, and what they take of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten._zeros import leading_zeros
from fastlrp.plan.plan import Plan
from fastlrp.plan.steps import BackwardStep
from fastlrp.plan.total import in_one_axis
from fastlrp.run.up.ascent import Ascent, on_whole_map
from fastlrp.targets.one_hot import OneHot


@dataclass(frozen=True, eq=False)
class Frontier:
    """Where targets of few entries wait for what comes up: below copies of them, at layers that select rows.

    Attributes:
        final: steps that read them, each with the entries at its register; empty if the output itself is the end.
        hot: the entries at the output.
    """

    final: tuple[tuple[BackwardStep, OneHot], ...]
    hot: OneHot

    @property
    def ends(self) -> frozenset[int]:
        """Registers that the way up has to reach."""
        return frozenset(step.out for step, _ in self.final)


def frontier(plan: Plan, hot: OneHot) -> Frontier:
    """The last layer's rows of the asked-for positions are all that is needed of it."""
    if not plan.takes_one_hot:
        return Frontier((), hot)
    registers: dict[int, OneHot] = {plan.program.top: hot}
    final: list[tuple[BackwardStep, OneHot]] = []
    for step in plan.program.backward:
        if step.ins[0] not in registers:
            continue
        arriving = registers[step.ins[0]]
        if step.keeps_one_hot:
            registers[step.out] = step.run(arriving)
        else:
            final.append((step, arriving))
    return Frontier(tuple(final), hot)


def combine_hot(t: Tensor, hot: OneHot) -> Tensor:
    """``<t, hot>``: ``(B, G, *sizes)`` and K targets to ``(B, G, K)``."""
    flat = in_one_axis(t)
    batch, groups = flat.shape[:2]
    total: Tensor | None = None
    for m in range(hot.terms):
        index = hot.index[..., m]
        if _is_same_for_all(index):
            taken = flat.index_select(2, index[0])
        else:
            taken = flat.gather(2, index.unsqueeze(1).expand(batch, groups, -1))
        part = taken.mul_(hot.value[..., m].unsqueeze(1).to(t.dtype))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _is_same_for_all(index: Tensor) -> bool:
    """Whether every sample has the same targets; of no sample there is no row that could be taken for all."""
    batch = index.shape[0]
    return batch == 1 or (batch > 1 and bool((index == index[:1]).all()))


def _is_everything(hot: OneHot) -> bool:
    """Whether the targets are all entries, each once and in order: all classes of all positions."""
    entries = torch.Size(hot.sizes).numel()
    if hot.terms != 1 or hot.index.shape[1] != entries:
        return False
    return bool((hot.index[..., 0] == torch.arange(entries, device=hot.index.device)).all())


def _at_every_position(step: BackwardStep, hot: OneHot, t: Tensor, slots: Sequence[Any], block_entries: int) -> Tensor:
    """The same for all entries in order, without looking each of them up; nothing before the groups' first position."""
    outputs = hot.sizes[-1]
    whole = torch.Size(hot.sizes[:-1]).numel()
    assert step.up_at is not None
    result = t.new_zeros(*t.shape[:2], whole, outputs)
    value = hot.value.view(-1, 1, whole, outputs)
    first = leading_zeros(t, 2) if t.dim() == 4 and len(hot.sizes) == 2 else 0
    size = max(1, block_entries // max(1, t.shape[0] * t.shape[1] * outputs))
    for start in range(first, whole, size):
        end = min(whole, start + size)
        part = step.up_at(torch.arange(start, end, device=t.device), t, *slots)
        torch.mul(part, value[:, :, start:end], out=result[:, :, start:end])
    return result.flatten(2)


def at_positions(ascent: Ascent, step: BackwardStep, hot: OneHot, t: Tensor, block_entries: int) -> Tensor:
    """``<up(t), hot>`` of a last linear layer, at the positions of the entries alone; ``(B, G, K)``.

    ``block_entries``: about how many entries of the layer's output may be held at once.
    """
    slots = [ascent.state[slot] for slot in step.slots]
    if step.up_at is None or len(hot.sizes) < 2:
        (full,) = ascent.through(step, [t])
        return combine_hot(on_whole_map(full), hot)
    outputs = hot.sizes[-1]
    if _is_everything(hot):
        return _at_every_position(step, hot, t, slots, block_entries)
    position, entry = hot.index // outputs, hot.index % outputs
    wanted = position.unique()
    size = max(1, block_entries // max(1, t.shape[0] * t.shape[1] * outputs))
    result = t.new_zeros(*t.shape[:2], hot.index.shape[1])
    for some in wanted.split(size):
        part = step.up_at(some, t, *slots)  # (B, G, P, O)
        place = torch.searchsorted(some, position).clamp(max=len(some) - 1)
        here = some[place] == position
        columns = here.flatten(2).any(2).any(0).nonzero().squeeze(1)
        whole = columns.numel() == result.shape[2]
        index, value = place * outputs + entry, torch.where(here, hot.value, 0)
        found = combine_hot(part, OneHot(index[:, columns], value[:, columns], (len(some), outputs)))
        result = found if whole and len(some) == len(wanted) else result.index_add_(2, columns, found)
    return result
