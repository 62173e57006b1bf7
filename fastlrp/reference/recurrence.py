"""Relevance through the steps of a recurrent layer, one direction of it, from the last step to the first."""

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
    """What flows to the gates' sums, ``s``, for a block of targets, step by step against time.

    With ``a`` what the later step sent to the hidden state and ``d`` what flows in a unit's memory, from ``t = T - 1``
    down to 0, all products of two vectors entry by entry:

        d_t = entry_t relevance_t + scale_t a_t + carry_{t+1} d_{t+1},    carry_T d_T = final, a_{T-1} = 0
        s_t = (gates_t,1 d_t, …, gates_t,G d_t, output_entry_t relevance_t + output_scale_t a_t)
        a_{t-1} = weight^T s'_t,   s' is s with its last block times reset_t

    A projected state (``proj_size``) has ``P`` entries and ``v_t = projection^T (entry_t relevance_t + scale_t a_t)``:
    then ``d_t = output_scale_t[0] v_t + …`` and the output's block is ``output_scale_t[1] v_t``.

    With ``input_weight`` the first result is ``input_weight^T s_t``. With ``spread``, for one block of gates, parts of
    relevance go to all lower units alike: ``e_t = spread_t[0] . d_t`` is added to ``carry_t d_t``, ``spread_t[1] e_t``
    to ``s_t``, and ``g_t = spread_t[2] . s_t`` to ``relevance_{t-1}``; with a projection also
    ``spread_t[3] . (entry_t relevance_t + scale_t a_t)``, of its first ``P`` entries, to ``d_t``.

    What the coefficients are says the rule: see :mod:`fastlrp.kinds.recurrence`.

    Args:
        relevance: what flows at the hidden states, ``(B, K, T, P)``; ``P = H`` without a projection.
        final: what flows into the memory after the last step, ``(B, K, H)``; None is 0.
        weight: the recurrent weight of the sums that get relevance, ``(J H, P)`` for ``J`` blocks.
        entry: ``(B, T, P)``.
        scale: ``(B, T, P)``; None is 1.
        carry: ``(B, T, H)``; None for a layer without a memory.
        gates: ``(B, T, G, H)``; None is one block of 1.
        output_entry: ``(B, T, H)``; None for no output block, and with a projection.
        output_scale: ``(B, T, H)``, None without an output block; with a projection ``(B, T, O, H)``, where O is 2 with
            an output block and else 1.
        reset: ``(B, T, H)``; None is 1.
        projection: ``(P, H)``; None for none.
        input_weight: ``(J H, C)``; None to get ``s``.
        spread: ``(B, T, 3, H)``, with a projection ``(B, T, 4, H)``; None for none.

    Returns:
        ``s (B, K, T, J H)`` or ``(B, K, T, C)``, ``a_{-1} (B, K, P)`` for the first hidden state, ``carry_0 d_0 (B, K,
        H)`` for the first memory and ``g (B, K, T)``, or ``(0,)`` without ``spread``, in the dtype of ``relevance``;
        computed in float64.

    Source: Arras et al. 2017, section 3.2, and Arras et al. 2019, section 2.2, written for relevance per unit.
    """
    dtype = relevance.dtype
    B, K, T, P = relevance.shape
    H = P if projection is None else projection.shape[1]
    wide = [None if t is None else t.double() for t in (entry, scale, carry, gates, output_entry, output_scale, reset)]
    entry_, scale_, carry_, gates_, output_entry_, output_scale_, reset_ = wide
    assert entry_ is not None
    R, W = relevance.double(), weight.double()
    a = R.new_zeros(B, K, P)
    memory = R.new_zeros(B, K, H) if final is None else final.double()
    flows = R.new_zeros(B, K, T, W.shape[0])
    to_all = R.new_zeros(B, K, T + 1)  # g; nothing comes from behind the last step
    for t in range(T - 1, -1, -1):
        R_t = R[:, :, t] + to_all[:, :, t + 1, None]
        arrived = entry_[:, t, None] * R_t + (a if scale_ is None else scale_[:, t, None] * a)  # (B, K, P)
        out: Tensor | None = None
        if projection is not None:
            assert output_scale_ is not None
            v = arrived @ projection.double()  # (B, K, H)
            of_output = 0.0 if spread is None else (arrived * spread.double()[:, t, None, 3, :P]).sum(2, keepdim=True)
            arrived = output_scale_[:, t, None, 0] * v + of_output
            if output_scale_.shape[2] == 2:
                out = output_scale_[:, t, None, 1] * v
        elif output_scale_ is not None:
            assert output_entry_ is not None
            out = output_entry_[:, t, None] * R[:, :, t] + output_scale_[:, t, None] * a
        d = arrived + memory
        memory = torch.zeros_like(d) if carry_ is None else carry_[:, t, None] * d
        blocks = [d] if gates_ is None else list((gates_[:, t, None] * d.unsqueeze(2)).unbind(2))
        if spread is not None:
            e = (spread.double()[:, t, None, 0] * d).sum(2, keepdim=True)
            memory = memory if carry_ is None else memory + e
            blocks = [blocks[0] + spread.double()[:, t, None, 1] * e]
            to_all[:, :, t] = (spread.double()[:, t, None, 2] * blocks[0]).sum(2)
        blocks += [] if out is None else [out]
        flows[:, :, t] = torch.cat(blocks, -1)
        if reset_ is not None:
            blocks[-1] = blocks[-1] * reset_[:, t, None]
        a = torch.cat(blocks, -1) @ W
    flows = flows if input_weight is None else flows @ input_weight.double()
    sums = R.new_zeros(0) if spread is None else to_all[:, :, :T].contiguous()
    return flows.to(dtype), a.to(dtype), memory.to(dtype), sums.to(dtype)
