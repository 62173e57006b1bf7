"""Attention forward and for a block of targets, composed of PyTorch operations."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Output ``(B, H, S, E)`` and log-sum-exp of the scores ``(B, H, S)``; 0 and -inf in rows that attend to nothing."""
    groups = query.shape[1] // key.shape[1]
    scores = _masked(_capped(_scores(query, key, scale), cap), mask, causal)
    log_sum = scores.logsumexp(-1)
    weights = _weights(scores, log_sum)
    return weights @ _repeated(value, groups), log_sum


def attention_relevance(
    relevance: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor,
    mask: Tensor | None, causal: bool, scale: float, cap: float, share_query: float, share_key: float,
    share_value: float, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Relevance ``(B, K, H, S, E)`` per unit of the output to that per unit of query, key and value."""
    groups = query.shape[1] // key.shape[1]
    scores = _scores(query, key, scale)
    capped = _capped(scores, cap)
    P = _weights(_masked(capped, mask, causal), log_sum).unsqueeze(1)
    keys, values = _repeated(key, groups).unsqueeze(1), _repeated(value, groups).unsqueeze(1)
    delta = (relevance * output.unsqueeze(1)).sum(-1, keepdim=True)
    c = P * (relevance @ values.transpose(-1, -2) - delta)
    if cap > 0:
        c = c * torch.where(scores == 0, 1.0, capped / torch.where(scores == 0, 1.0, scores)).unsqueeze(1)
    if epsilon > 0:
        c = c * (scores / (scores + epsilon * torch.where(scores < 0, -1.0, 1.0).to(scores.dtype))).unsqueeze(1)
    c_query = share_query * scale * (c @ keys)
    c_key = share_key * scale * _grouped(c.transpose(-1, -2) @ query.unsqueeze(1), groups)
    c_value = share_value * _grouped(P.transpose(-1, -2) @ relevance, groups)
    return c_query, c_key, c_value


def attention_value_relevance(
    relevance: Tensor, query: Tensor, key: Tensor, log_sum: Tensor, mask: Tensor | None, causal: bool, scale: float,
    cap: float,
) -> Tensor:  # fmt: skip
    """``P^T g``: all relevance to the values."""
    P = _weights(_masked(_capped(_scores(query, key, scale), cap), mask, causal), log_sum).unsqueeze(1)
    return _grouped(P.transpose(-1, -2) @ relevance, query.shape[1] // key.shape[1])


def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    keys = _repeated(key, query.shape[1] // key.shape[1])
    return scale * (query @ keys.transpose(-1, -2))


def _capped(scores: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(scores / cap) if cap > 0 else scores


def _masked(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if mask is None:
        return scores
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def _weights(scores: Tensor, log_sum: Tensor) -> Tensor:
    attends = log_sum.isfinite().unsqueeze(-1)
    return torch.where(attends, (scores - torch.where(attends, log_sum.unsqueeze(-1), 0.0)).exp(), 0.0)


def _repeated(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(2, (-1, groups)).sum(3)
