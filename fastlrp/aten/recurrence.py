"""Relevance through the steps of a recurrent layer, as PyTorch operations: a few for each step, for all targets."""

from __future__ import annotations

import torch
from torch import Tensor


def recurrence_relevance(
    relevance: Tensor,
    final: Tensor | None,
    weight: Tensor,
    entry: Tensor,
    scale: Tensor | None,
    carry: Tensor | None,
    gates: Tensor | None,
    output_entry: Tensor | None,
    output_scale: Tensor | None,
    reset: Tensor | None,
    projection: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`fastlrp.reference.recurrence.recurrence_relevance`, which is the definition."""
    dtype = relevance.dtype
    if dtype in (torch.float16, torch.bfloat16):
        found = [None if t is None else t.float() for t in (relevance, final, weight, entry, scale, carry, gates,
                                                            output_entry, output_scale, reset, projection)]  # fmt: skip
        s, a, memory = recurrence_relevance(*found)  # type: ignore[arg-type]
        return s.to(dtype), a.to(dtype), memory.to(dtype)
    B, K, T, P = relevance.shape
    H = P if projection is None else projection.shape[1]
    count = 1 if gates is None else gates.shape[2]
    arrived = relevance * entry.unsqueeze(1)
    out = relevance * output_entry.unsqueeze(1) if output_entry is not None else None
    # Axes of one step together, so that each step reads and writes dense memory.
    arrived, s = arrived.permute(2, 0, 1, 3).contiguous(), relevance.new_empty(T, B, K, weight.shape[0])
    a = relevance.new_zeros(B, K, P)
    memory = final
    for t in range(T - 1, -1, -1):
        r = arrived[t]
        r = r + a if scale is None else torch.addcmul(r, scale[:, t, None], a)
        output: Tensor | None = None
        if projection is not None:
            assert output_scale is not None
            v = torch.matmul(r, projection)
            r = output_scale[:, t, None, 0] * v
            output = output_scale[:, t, None, 1] * v if output_scale.shape[2] == 2 else None
        elif out is not None:
            assert output_scale is not None
            output = torch.addcmul(out[:, :, t], output_scale[:, t, None], a)
        d = r if memory is None else r + memory
        if gates is None:
            s[t, ..., :H] = d
        else:
            torch.mul(gates[:, t, None], d.unsqueeze(2), out=s[t].view(B, K, weight.shape[0] // H, H)[:, :, :count])
        if output is not None:
            s[t, ..., -H:] = output
        rows = s[t]
        if reset is not None:
            rows = rows.clone()
            rows[..., -H:] *= reset[:, t, None]
        a = torch.matmul(rows, weight)
        memory = None if carry is None else carry[:, t, None] * d
    return s.permute(1, 2, 0, 3), a, relevance.new_zeros(B, K, H) if memory is None else memory
