"""Relevance of queries, keys and values, written to where the layer that made them wants it.

Neither what arrives nor what leaves is copied: heads stay as they lie, and axes in front of the heads (the windows of a
picture) are the batch of a kernel, which goes over the samples one by one where there are such axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.looking import may_wait
from fastlrp.plan.window import Rooms

_EXACT = {torch.float64: 2.0**20}
"""Log-sum-exps below minus this lose digits of the logarithm of the number of keys; masks make them so, not scores."""
_EXACT_NARROW = 2.0**10
"""The same for those of float32."""


def write_results(
    rooms: Rooms,
    times: Sequence[float],
    g: Tensor,
    operands: tuple[Tensor, Tensor, Tensor, Tensor],
    log_sum: Tensor,
    mask: Tensor | None,
    key_rows: Callable[[Tensor], Tensor],
    write: Callable[..., None],
) -> Any:
    """Fill the rooms of query, key and value; returns what :data:`~fastlrp.plan.window.Rooms` says.

    Args:
        g: ``(B, K, *heads, S, E)``, with one or two axes of heads, or none. times: what each result is multiplied with.
        operands: query, key, value and output, ``(B, *heads, S, D)``. log_sum: ``(B, H, S)``. mask: broadcasts to
            ``(B, *heads, S, T)``. key_rows: from the layout of the key's relevance to positions before channels.
        write: ``(times, c_query, c_key, c_value, g, query, key, value, output, log_sum, mask)`` for one axis of heads.
    """
    whole, found = rooms(g)
    split = _split_of(found, operands)
    if split is not None:  # The moves below split the heads into windows and heads of each.
        operands = tuple(t.unflatten(1, split) for t in operands)
        g, mask = g.unflatten(2, split), None if mask is None else _mask_split(mask, split)
    turns = (_as_it_is, key_rows, _as_it_is)
    places = [_Place.of(*each, g, split) for each in zip(found, operands[:3], turns, strict=True)]
    registers = (*(place.rows for place in places), g)
    for some, tensors, sums, masks in _calls(registers, operands, log_sum, mask):
        write(times, *some, *tensors, sums, masks)
    for place in places:
        if place.room is not None:
            place.room.copy_(place.rows.reshape(place.room.shape))
    own = [place.own for place in places if place.own is not None]
    return (whole, *own) if own else whole


@dataclass(frozen=True)
class _Place:
    """Where a kernel writes the relevance of one operand: rows of channels behind one axis of heads, or behind two.

    Attributes:
        rows: what the kernel fills. own: the same as the result of the step, where it has no room in the whole.
        room: what the rows are copied into, where a kernel cannot write there.
    """

    rows: Tensor
    own: Tensor | None = None
    room: Tensor | None = None

    @staticmethod
    def of(
        room: Tensor | None, operand: Tensor, turn: Callable[[Tensor], Tensor], g: Tensor, split: tuple[int, int] | None
    ) -> _Place:
        """``turn``: brings the layout of the result to positions before channels, and back. ``split``: sizes of the two
        axes into which heads are split."""
        if room is None:
            rows = _lying_like(operand, g)
            return _Place(rows, own=turn(rows if split is None else rows.flatten(2, 3)))
        rows = turn(room)
        rows = rows if split is None or rows.dim() == operand.dim() + 1 else rows.unflatten(2, split)
        if rows.dim() == operand.dim() + 1 and (rows.shape[-1] == 1 or rows.stride(-1) == 1):
            return _Place(rows)
        return _Place(g.new_empty(*g.shape[:2], *operand.shape[1:]), room=rows)


def _as_it_is(result: Tensor) -> Tensor:
    return result


def _split_of(rooms: Sequence[Tensor | None], operands: Sequence[Tensor]) -> tuple[int, int] | None:
    """The two sizes into which rooms split the one axis of heads of all operands; None where there are none."""
    found = {(room.shape[2], room.shape[3]) for room in rooms if room is not None and room.dim() == 6}
    heads = {t.shape[1] if t.dim() == 4 else 0 for t in operands}
    split = next(iter(found), None)
    return split if split is not None and len(found) == 1 and heads == {split[0] * split[1]} else None


def _mask_split(mask: Tensor, split: tuple[int, int]) -> Tensor:
    full = mask.reshape(*[1] * (4 - mask.dim()), *mask.shape)
    return full.unsqueeze(1) if full.shape[1] == 1 else full.unflatten(1, split)


def _lying_like(operand: Tensor, g: Tensor) -> Tensor:
    """New memory for relevance of an operand ``(B, …)``, whose axes follow one another as the operand's do: the moves
    that brought it here are then undone without a copy."""
    sizes, strides = operand.shape[1:], operand.stride()[1:]
    order = sorted(range(len(sizes)), key=lambda axis: -strides[axis])
    if order[-1] != len(sizes) - 1:  # A kernel writes rows.
        return g.new_empty(*g.shape[:2], *sizes)
    memory = g.new_empty(*g.shape[:2], *(sizes[axis] for axis in order))
    return memory.permute(0, 1, *(order.index(axis) + 2 for axis in range(len(sizes))))


def _calls(
    registers: Sequence[Tensor], tensors: Sequence[Tensor], log_sum: Tensor, mask: Tensor | None
) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor], Tensor, Tensor | None]]:
    axes = tensors[0].dim() - 3
    if axes == 1:
        yield registers, tensors, log_sum, mask
    elif axes == 0:
        full = mask if mask is None else mask.reshape(*[1] * (3 - mask.dim()), *mask.shape).unsqueeze(1)
        yield [r.unsqueeze(2) for r in registers], [t.unsqueeze(1) for t in tensors], log_sum, full
    else:
        full = mask if mask is None else mask.reshape(*[1] * (5 - mask.dim()), *mask.shape)
        for sample in range(len(log_sum)):
            own = None if full is None else full[sample if full.shape[0] > 1 else 0]
            yield (
                [r[sample].transpose(0, 1) for r in registers],
                [t[sample] for t in tensors],
                log_sum[sample].unflatten(0, tensors[0].shape[1:3]),
                own,
            )


def told_apart(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    log_sum: Tensor,
    g: Tensor | None,
) -> tuple[Tensor | None, Tensor]:
    """A mask and a log-sum-exp that give the same probabilities, also in rows that are masked by huge finite numbers.

    A row that is masked everywhere by -1e9 or ``torch.finfo(dtype).min`` is uniform, ``1 / T``, and has the
    log-sum-exp ``min + ln T``, in which rounding loses ``ln T``: ``exp(s - log_sum)`` would be 1 there. If such a row
    has relevance (``g``; None if that is not known), its logarithms of probabilities are told to the kernels by the
    mask.
    """
    if mask is None or mask.dtype == torch.bool:
        return mask, log_sum
    lost = (log_sum < -_EXACT.get(log_sum.dtype, _EXACT_NARROW)) & log_sum.isfinite()
    if may_wait(query) and not (bool(lost.any()) and (g is None or bool((lost & (g != 0).any(-1).any(1)).any()))):
        return mask, log_sum
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = scale * (query @ keys.transpose(-1, -2))
    scores = cap * torch.tanh(scores / cap) if cap > 0 else scores
    allowed = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    whole = (scores + mask).masked_fill(~allowed, -math.inf) if causal else scores + mask
    told = torch.where(lost.unsqueeze(-1), whole.log_softmax(-1) - scores, mask)
    return told, log_sum.masked_fill(lost, 0)
