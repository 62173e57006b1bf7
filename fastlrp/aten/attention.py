"""Attention for a block of targets, as matrix products over tiles of the probabilities.

The probabilities of some query rows of some heads are made once, transposed, ``(n, T, Q)``: n key heads, T keys, Q
query rows. With the targets of the block beside each other the rest is four large products for each tile of keys, and
what lies between them stays in a cache:

    c_s = v g^T            (n, T, K Q)      c_query = c_s^T k  (n, K Q, D)
    c_s = P (c_s - delta)                   c_key   = c_s q    (n, T K, D)
                                            c_value = P g      (n, T, K E)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp.aten import _attention_up
from fastlrp.aten._attention import Block, Scores, Sum, empty, finite, grouped, ranges, rows_of, wide
from fastlrp.looking import may_look


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
) -> tuple[Tensor, Tensor]:
    """``softmax(s) v`` and its log-sum-exp; see :func:`fastlrp.reference.attention.attention_forward`."""
    if _flash_takes(query, key, value, mask, cap):
        return _flash(query, key, value, mask, causal, scale)
    output = empty(query, (*query.shape[:3], value.shape[3]))
    log_sum = query.new_full(query.shape[:3], -torch.inf, dtype=wide(query.dtype))
    if not key.shape[2]:
        return output.zero_(), log_sum
    scores, heads = Scores(query, key, mask, causal, scale, cap), key.shape[1]
    for block in scores.blocks(1, all_keys=True):
        s = scores.of(block)[1]  # (n, T, Q)
        sums = s.logsumexp(1)  # (n, Q)
        p = (s - finite(s.amax(1, keepdim=True))).exp_()  # Of a huge finite mask the sums lose their last digits.
        p = p.div_(p.sum(1, keepdim=True).clamp_(min=1 / 2))  # It is 1 at least, or 0.
        o = p.mT @ value[block.sample, block.heads, : block.reach].to(p.dtype)  # (n, Q, E)
        for whole, found in ((output, o), (log_sum, sums)):
            at = grouped(whole, heads)[block.queries]  # (n, r, S, …)
            at.copy_(found.unflatten(1, at.shape[1:3]))
    return output, log_sum


def attention_relevance(
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    share_query: float,
    share_key: float,
    share_value: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``c_query, c_key, c_value``; see :func:`fastlrp.reference.attention.attention_relevance`."""
    (B, K, *_, E), heads, dtype = relevance.shape, key.shape[1], relevance.dtype
    scores = Scores(query, key, mask, causal, scale, cap)
    blocks = list(scores.blocks(K)) if relevance.numel() and key.shape[2] else []
    c_query = empty(query, (B, K, *query.shape[1:]))
    c_key, c_value = (Sum(t, K, t.shape[3], dtype, blocks) for t in (key, value))
    flows, out, queries, c_queries = (grouped(t, heads, t.dim() - 3) for t in (relevance, output, query, c_query))
    for block in blocks:
        u, p = scores.probabilities(block, log_sum)  # (n, T, Q)
        factor = p * _share(u, cap, epsilon) if cap > 0 or epsilon > 0 else p
        o, q = rows_of(out[block.queries]), rows_of(queries[block.queries]) * (scale * share_key)
        for targets in ranges(K, block.targets):
            g = _with_targets(flows[block.of(targets)])  # (n, K, Q, E)
            delta = (g * o.unsqueeze(1)).sum(-1).unsqueeze(1)  # (n, 1, K, Q)
            rows, columns = g.flatten(1, 2).mT, _columns(g)  # (n, E, K Q), (n, Q, K E)
            c_q = torch.zeros((), dtype=p.dtype, device=p.device)
            for keys in ranges(block.reach, block.keys):
                at = (block.sample, block.heads, keys)
                k, v = key[at].to(p.dtype) * (scale * share_query), value[at].to(p.dtype)
                c_s = (v @ rows).unflatten(2, delta.shape[2:])  # (n, T, K, Q)
                c_s.sub_(delta).mul_(factor[:, keys].unsqueeze(2))
                c_q = c_q + c_s.flatten(2).mT @ k  # (n, K Q, D)
                c_key.add(block, targets, keys, (c_s.flatten(1, 2) @ q).unflatten(1, c_s.shape[1:3]))
                c_v = (p[:, keys] @ columns).mul_(share_value)
                c_value.add(block, targets, keys, c_v.unflatten(2, (-1, E)))
            whole = c_queries[block.of(targets)]  # (K, n, r, S, D)
            whole.copy_(c_q.unflatten(1, (len(whole), *whole.shape[2:4])).transpose(0, 1))
    if not blocks:
        c_query.zero_()
    return c_query, c_key.finish(), c_value.finish()


def attention_value_relevance(
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    log_sum: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
) -> Tensor:
    """``c_value = P^T g``; see :func:`fastlrp.reference.attention.attention_value_relevance`."""
    K, E = relevance.shape[1], relevance.shape[4]
    scores = Scores(query, key, mask, causal, scale, cap)
    blocks: list[Block] = list(scores.blocks(K)) if relevance.numel() and key.shape[2] else []
    c_value = Sum(key, K, E, relevance.dtype, blocks)
    flows = grouped(relevance, key.shape[1], 2)
    for block in blocks:
        p = scores.probabilities(block, log_sum)[1]  # (n, T, Q)
        for targets in ranges(K, block.targets):
            c_v = p @ _columns(_with_targets(flows[block.of(targets)]))  # (n, T, K E)
            c_value.add(block, targets, slice(0, block.reach), c_v.unflatten(2, (-1, E)))
    return c_value.finish()


def _with_targets(flow: Tensor) -> Tensor:
    """(K, n, r, S, E) -> (n, K, Q, E), to compute with."""
    return flow.transpose(0, 1).flatten(2, 3).to(wide(flow.dtype))


def _columns(g: Tensor) -> Tensor:
    """(n, K, Q, E) -> (n, Q, K E)."""
    return g.transpose(1, 2).flatten(2)


def _share(u: Tensor, cap: float, epsilon: float) -> Tensor:
    """``tanh(u / cap) / (u / cap)`` of the soft cap, times ``u / st(u)`` of the product."""
    share = torch.ones_like(u)
    if cap > 0:
        part = u / cap
        share = torch.where(part == 0, share, torch.tanh(part) / part)
    return share * (u / torch.where(u < 0, u - epsilon, u + epsilon)) if epsilon > 0 else share


def _flash_takes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cap: float) -> bool:
    """Whether PyTorch's own kernel for CPUs, which gives the log-sum-exp too, computes this."""
    return (
        query.device.type == "cpu"
        and cap <= 0
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
        and query.shape[3] == value.shape[3]
        and min(*query.shape, *key.shape) > 0  # It divides by the number of keys.
        and (mask is None or mask.dtype in (torch.bool, query.dtype))
    )


def _flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))  # It reads rows as they lie.
    shape = (*query.shape[:3], key.shape[2])
    bias = mask
    if mask is not None and mask.dtype == torch.bool:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    whole = None if bias is None else bias.expand(shape)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, log_sum = flash(q, k, v, 0.0, causal, attn_mask=whole, scale=scale)
    # It gives 0 for a row that attends to nothing.
    if whole is not None and (not may_look(log_sum) or bool((log_sum == 0).any())):
        attends = whole > -torch.inf
        if causal:
            attends = attends.tril()
        log_sum = log_sum.masked_fill(~attends.any(-1), -torch.inf)
    return output, log_sum


def attention_up(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    up_query: Tensor | None,
    up_key: Tensor | None,
    up_value: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    share_query: float,
    share_key: float,
    share_value: float,
    epsilon: float,
) -> Tensor:
    """The way up, by tiles of queries; see :func:`fastlrp.reference.attention.attention_up`."""
    shares = share_query, share_key, share_value
    groups = next(t.shape[1] for t in (up_query, up_key, up_value) if t is not None)
    if not groups or not query.numel():
        return query.new_zeros(query.shape[0], groups, *query.shape[1:3], value.shape[3])
    return _attention_up.attention_up(
        (up_query, up_key, up_value), query, key, value, output, log_sum, mask, causal, scale, cap, shares, epsilon
    )
