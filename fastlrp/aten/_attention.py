"""Tiles of attention: which heads, query rows and targets are taken at once, and the probabilities of a tile.

Query heads that share a key head (r of them) stand one after the other, as if they were more query rows: Q = r rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_WORK = 2**18
"""Numbers of the largest intermediate result of a tile, all targets together: 1 MiB of float32."""
_WORK_DEVICE = 2**24
"""The same where each operation is a launch."""
_ROWS = 256
"""Query rows, and keys, of a tile at most."""
_ROW_BLOCK = 2**21
"""Probabilities that are kept at once: those of a tile's query rows with all keys."""


@dataclass(frozen=True)
class Block:
    """Query rows of key heads of a sample, and how many keys and targets its tiles have."""

    sample: int
    heads: slice
    rows: slice
    reach: int
    """How many keys these rows may attend to."""
    keys: int
    targets: int

    @property
    def queries(self) -> tuple[int | slice, ...]:
        """In (B, G, r, S, …)."""
        return self.sample, self.heads, slice(None), self.rows

    def of(self, targets: slice) -> tuple[int | slice, ...]:
        """In (B, K, G, r, S, …)."""
        return self.sample, targets, self.heads, slice(None), self.rows


def ranges(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def grouped(t: Tensor, heads: int, axis: int = 1) -> Tensor:
    """(B, H, S, …) -> (B, G, r, S, …), a view; with targets (axis 2) (B, K, G, r, S, …)."""
    return t.unflatten(axis, (heads, t.shape[axis] // heads))


def heads_last(t: Tensor) -> bool:
    """Whether (B, H, S, D) is a view of memory (B, S, H, D), as projections make it."""
    return t.shape[1] > 1 and t.shape[2] > 1 and t.stride(1) < t.stride(2)


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Memory for (…, H, S, D), its heads and positions in the order that ``like`` has them in memory."""
    if heads_last(like):
        *first, H, S, D = shape
        return like.new_empty((*first, S, H, D), dtype=dtype).transpose(-2, -3)
    return like.new_empty(shape, dtype=dtype)


@dataclass(frozen=True)
class Scores:
    """What the scores of a call are made of."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    causal: bool
    scale: float
    cap: float

    def blocks(self, targets: int, all_keys: bool = False) -> Iterator[Block]:
        """Blocks that fit the work space; ``all_keys``: tiles are not cut along the keys."""
        B, H, S, _ = self.query.shape
        G, T = self.key.shape[1:3]
        work, group = _WORK if self.query.device.type == "cpu" else _WORK_DEVICE, H // G
        keys = T if all_keys else min(T, _ROWS)
        rows = max(1, min(S, _ROWS // group, _ROW_BLOCK // (T * group), work // (keys * group)))
        tile = keys * rows * group
        at_once = max(1, min(targets, work // tile))
        heads = max(1, min(work // (tile * at_once), _ROW_BLOCK // (T * group * rows)))
        for sample in range(B):
            for some in ranges(G, heads):
                for at in ranges(S, rows):
                    yield Block(sample, some, at, min(T, at.stop) if self.causal else T, keys, at_once)

    def of(self, block: Block) -> tuple[Tensor, Tensor]:
        """``u = scale q k^T`` before cap and mask, and the scores, (n, T, Q) both; one tensor if they are the same."""
        keys = self.key[block.sample, block.heads, : block.reach].to(wide(self.key.dtype)) * self.scale
        u = keys @ rows_of(grouped(self.query, self.key.shape[1])[block.queries]).mT
        scores = u if self.cap <= 0 else torch.tanh(u / self.cap) * self.cap
        masked = scores.unflatten(2, (-1, block.rows.stop - block.rows.start))  # (n, T, r, S)
        if self.mask is not None:
            whole = self.mask.expand(*self.query.shape[:3], self.key.shape[2])
            mask = grouped(whole, self.key.shape[1])[block.queries][..., : block.reach].movedim(3, 1)
            masked = masked.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else masked + mask
        if self.causal:
            later = torch.ones(masked.shape[1::2], dtype=torch.bool, device=u.device).tril_(-1 - block.rows.start)
            masked = masked.masked_fill(later.unsqueeze(1), -torch.inf)
        return u, masked.flatten(2)

    def probabilities(self, block: Block, log_sum: Tensor) -> tuple[Tensor, Tensor]:
        """``u`` and ``P = exp(s - log_sum)``, (n, T, Q) both; 0 for rows that attend to nothing."""
        u, scores = self.of(block)
        sums = grouped(log_sum, self.key.shape[1])[block.queries].flatten(1)  # (n, Q)
        return u, (scores - finite(sums).unsqueeze(1)).exp_()


def finite(log_sum: Tensor) -> Tensor:
    """Infinity where a row attends to nothing, so that its exponentials are 0."""
    return log_sum.masked_fill(log_sum == -torch.inf, torch.inf)


def rows_of(t: Tensor) -> Tensor:
    """(n, r, S, D) -> (n, Q, D), to compute with."""
    return t.flatten(1, 2).to(wide(t.dtype))


class Sum:
    """Relevance of keys or values, (B, K, G, T, D), which each block of query rows adds to."""

    def __init__(self, key: Tensor, targets: int, size: int, dtype: torch.dtype, blocks: list[Block]) -> None:
        B, G, T, _ = key.shape
        self.dtype = dtype
        several = any(block.rows.start > 0 for block in blocks)
        self.sum = empty(key, (B, targets, G, T, size), wide(dtype) if several else dtype)
        if not blocks:
            self.sum.zero_()

    def add(self, block: Block, targets: slice, keys: slice, found: Tensor) -> None:
        """``found``: (n, T, K, D), of these keys. The first rows of a head also clear the keys beyond their reach."""
        whole = self.sum[block.sample, targets, block.heads]  # (K, n, T, D)
        found = found.permute(2, 0, 1, 3)
        if block.rows.start > 0:
            whole[:, :, keys].add_(found)
            return
        whole[:, :, keys].copy_(found)
        if keys.stop == block.reach:
            whole[:, :, keys.stop :].zero_()

    def finish(self) -> Tensor:
        return self.sum.to(self.dtype)
