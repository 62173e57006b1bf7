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
    input_weight: Tensor | None,
    spread: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`fastlrp.reference.recurrence.recurrence_relevance`, which is the definition."""
    dtype = relevance.dtype
    if dtype in (torch.float16, torch.bfloat16):
        found = [None if t is None else t.float() for t in (relevance, final, weight, entry, scale, carry, gates,
                                                            output_entry, output_scale, reset, projection, input_weight,
                                                            spread)]  # fmt: skip
        s, first, last, to_each = recurrence_relevance(*found)  # type: ignore[arg-type]
        return s.to(dtype), first.to(dtype), last.to(dtype), to_each.to(dtype)
    B, K, T, P = relevance.shape
    H = P if projection is None else projection.shape[1]
    # One step's rows together, so that each step reads dense memory. Nothing is written in place: autograd may follow.
    entered = (relevance * entry.unsqueeze(1)).permute(2, 0, 1, 3).contiguous()
    outside = None if output_entry is None else relevance * output_entry.unsqueeze(1)
    a, memory = relevance.new_zeros(B, K, P), final
    flows: list[Tensor] = []
    sums: list[Tensor] = []
    for t in range(T - 1, -1, -1):
        d = entered[t] + a if scale is None else torch.addcmul(entered[t], scale[:, t, None], a)
        d = d + entry[:, t, None] * sums[-1] if sums else d
        output: Tensor | None = None
        if projection is not None:
            assert output_scale is not None
            v = torch.matmul(d, projection)
            of_output = None if spread is None else (spread[:, t, None, 3, :P] * d).sum(2, keepdim=True)
            d = output_scale[:, t, None, 0] * v
            d = d if of_output is None else d + of_output
            output = output_scale[:, t, None, 1] * v if output_scale.shape[2] == 2 else None
        elif outside is not None:
            assert output_scale is not None
            output = torch.addcmul(outside[:, :, t], output_scale[:, t, None], a)
        d = d if memory is None else d + memory
        memory = None if carry is None else carry[:, t, None] * d
        blocks = d if gates is None else (gates[:, t, None] * d.unsqueeze(2)).flatten(2)
        if spread is not None:
            e = (spread[:, t, None, 0] * d).sum(2, keepdim=True)
            memory = None if memory is None else memory + e
            blocks = blocks + spread[:, t, None, 1] * e
            sums.append((spread[:, t, None, 2] * blocks).sum(2, keepdim=True))
        flow = blocks if output is None else torch.cat([blocks, output], -1)
        flows.append(flow)
        if reset is not None:
            last = flow[..., -H:] * reset[:, t, None]
            flow = torch.cat([flow[..., :-H], last], -1) if flow.shape[-1] > H else last
        a = torch.matmul(flow, weight)
    sent = torch.stack(flows[::-1], 2)
    sent = sent if input_weight is None else torch.matmul(sent, input_weight)
    to_all = torch.cat(sums[::-1], 2) if sums else relevance.new_zeros(0)
    return sent, a, relevance.new_zeros(B, K, H) if memory is None else memory, to_all
