"""Attention with explicit probabilities: the forward pass, and relevance to queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
) -> tuple[Tensor, Tensor]:
    """``o = softmax(s) v`` and the log-sum-exp of each row of the scores ``s``.

    ``u = scale q k^T``, soft-capped to ``cap tanh(u / cap)`` if ``cap > 0``; ``s`` is that under the mask. A row that
    attends to nothing has output 0 and log-sum-exp ``-inf``.

    Args:
        query: ``q``, ``(B, H, S, D)``.
        key: ``k``, ``(B, G, T, D)``; G divides H, and head h reads key head ``h // (H / G)``.
        value: ``v``, ``(B, G, T, E)``.
        mask: None, bool (True attends) or a number to add to the score; broadcastable to ``(B, H, S, T)``.
        causal: query i attends to the keys ``j <= i`` alone, both counted from the first, as PyTorch counts.
        scale: factor of the scores, often ``1 / sqrt(D)``.
        cap: soft cap of the scores; 0 is none.

    Returns:
        The output ``(B, H, S, E)`` in the dtype of ``query``; the log-sum-exp ``(B, H, S)``, float64 if ``query`` is
        and else float32, because the other operations take exponentials of it. Computed in float64.

    Source: Vaswani et al. 2017, eq. 1; the soft cap: Gemma Team 2024, section 2.
    """
    scores = _masked(_capped(_scores(query, key, scale), cap), mask, causal)
    log_sum = scores.logsumexp(-1)
    weights = torch.where(log_sum.unsqueeze(-1) == -torch.inf, 0.0, scores.softmax(-1))
    output = weights @ _for_each_head(value, query)
    return output.to(query.dtype), log_sum.to(torch.float64 if query.dtype == torch.float64 else torch.float32)


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
    """Relevance per unit of query, key and value, from relevance per unit of the output, ``g``.

    With ``P = exp(s - log_sum)`` and ``u = scale q k^T``:

    - ``c_value = share_value P^T g``,
    - ``delta = sum_e g o``; ``c_s = P (g v^T - delta)``, the softmax's own gradient,
    - times ``tanh(u / cap) / (u / cap)`` if ``cap > 0``: relevance passes the soft cap unchanged,
    - times ``u / st(u)``, ``st(u) = u + epsilon sgn(u)``, if ``epsilon > 0``,
    - ``c_query = share_query scale c_s k``, ``c_key = share_key scale c_s^T q``.

    The uniform rule has the shares 1/4, 1/4, 1/2. ``c_key`` and ``c_value`` sum over the heads that read them.

    Args:
        relevance: ``g``, ``(B, K, H, S, E)``.
        query, key, value, mask, causal, scale, cap: as in :func:`attention_forward`.
        output, log_sum: what :func:`attention_forward` gives, ``(B, H, S, E)`` and ``(B, H, S)``. An attention sink
            (a score without a key) shows in these two alone.
        share_query, share_key, share_value: what each operand gets.
        epsilon: of the product of queries and keys, absolute; 0 is none.

    Returns:
        ``c_query`` ``(B, K, H, S, D)``, ``c_key`` ``(B, K, G, T, D)``, ``c_value`` ``(B, K, G, T, E)``, in the dtype of
        ``relevance``; computed in float64.

    Source: Achtibat et al. 2024 (AttnLRP), eq. 7 and proposition 3.1; DESIGN.md, section 3.8.
    """
    g, q = relevance.double(), query.double().unsqueeze(1)  # (B, K, H, S, E), (B, 1, H, S, D)
    k, v = (_for_each_head(t, query).unsqueeze(1) for t in (key, value))  # (B, 1, H, T, D), (B, 1, H, T, E)
    u = _scores(query, key, scale)  # (B, H, S, T)
    p = _probabilities(_masked(_capped(u, cap), mask, causal), log_sum.double())
    delta = (g * output.double().unsqueeze(1)).sum(-1, keepdim=True)  # (B, K, H, S, 1)
    c_s = p.unsqueeze(1) * (g @ v.mT - delta)  # (B, K, H, S, T)
    c_s = c_s * (_cap_share(u, cap) * _epsilon_share(u, epsilon)).unsqueeze(1)
    c_query = share_query * scale * c_s @ k
    c_key = share_key * scale * c_s.mT @ q
    c_value = share_value * p.unsqueeze(1).mT @ g
    heads = key.shape[1]
    found = c_query, _over_group(c_key, heads), _over_group(c_value, heads)
    c_query, c_key, c_value = (c.to(relevance.dtype) for c in found)
    return c_query, c_key, c_value


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
    """``c_value = P^T g``: the probabilities are constants, all relevance is the values'.

    Args:
        relevance: ``g``, ``(B, K, H, S, E)``.
        query, key, log_sum, mask, causal, scale, cap: as in :func:`attention_relevance`.

    Returns:
        ``(B, K, G, T, E)`` in the dtype of ``relevance``; computed in float64.

    Source: Ali et al. 2022 (CP-LRP), section 3.2.
    """
    p = _probabilities(_masked(_capped(_scores(query, key, scale), cap), mask, causal), log_sum.double())
    return _over_group(p.unsqueeze(1).mT @ relevance.double(), key.shape[1]).to(relevance.dtype)


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
    """The transpose of :func:`attention_relevance`: what groups bring to the output.

    With ``t_q``, ``t_k``, ``t_v`` what stands at query, key and value:

    - ``t_s = P scale (share_query t_q k^T + share_key q t_k^T)``, times the shares of cap and epsilon as there,
    - ``t_g = share_value P t_v + t_s v - (sum_t t_s) o``.

    Args:
        query, key, value, output, log_sum, mask, causal, scale, cap: as in :func:`attention_relevance`.
        up_query, up_key, up_value: ``(B, K, H, S, D)``, ``(B, K, G, T, D)`` and ``(B, K, G, T, E)`` for K groups; one
            that is None is zero, not all of them are.
        share_query, share_key, share_value, epsilon: as there; of :func:`attention_value_relevance` 0, 0, 1 and 0.

    Returns:
        ``(B, K, H, S, E)`` in the dtype of ``query``; computed in float64.

    Raises:
        ValueError: if all three are None.

    Source: DESIGN.md, section 3.9.
    """
    if up_query is None and up_key is None and up_value is None:
        raise ValueError("up_query, up_key and up_value: at least one must be given, got None for all")
    k, v = (_for_each_head(t, query).unsqueeze(1) for t in (key, value))
    u = _scores(query, key, scale)
    p = _probabilities(_masked(_capped(u, cap), mask, causal), log_sum.double())
    left = (p * _cap_share(u, cap) * _epsilon_share(u, epsilon)).unsqueeze(1)  # (B, 1, H, S, T)
    t_g = torch.zeros((), dtype=torch.float64, device=query.device)
    if up_value is not None:
        t_g = t_g + share_value * p.unsqueeze(1) @ _of_each_head(up_value, query)
    t_s: Tensor | None = None
    if up_query is not None:
        t_s = share_query * up_query.double() @ k.mT
    if up_key is not None:
        part = share_key * query.double().unsqueeze(1) @ _of_each_head(up_key, query).mT
        t_s = part if t_s is None else t_s + part
    if t_s is not None:
        t_s = scale * left * t_s
        t_g = t_g + t_s @ v - t_s.sum(-1, keepdim=True) * output.double().unsqueeze(1)
    return t_g.to(query.dtype)


def _of_each_head(t: Tensor, query: Tensor) -> Tensor:
    """``(B, K, G, T, D)`` -> ``(B, K, H, T, D)``, float64."""
    return t.double().repeat_interleave(query.shape[1] // t.shape[2], 2)


def _for_each_head(t: Tensor, query: Tensor) -> Tensor:
    """``(B, G, T, D)`` -> ``(B, H, T, D)``, float64."""
    return t.double().repeat_interleave(query.shape[1] // t.shape[1], 1)


def _over_group(c: Tensor, heads: int) -> Tensor:
    """``(B, K, H, T, D)`` -> ``(B, K, G, T, D)``, summed over the heads that read the same key."""
    return c.unflatten(2, (heads, -1)).sum(3)


def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return scale * query.double() @ _for_each_head(key, query).mT


def _capped(u: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(u / cap) if cap > 0 else u


def _masked(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    if causal:
        S, T = scores.shape[-2:]
        later = torch.ones(S, T, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def _probabilities(scores: Tensor, log_sum: Tensor) -> Tensor:
    """``exp(s - log_sum)``; 0 in rows that attend to nothing."""
    log_sum = log_sum.unsqueeze(-1)
    return torch.where(log_sum == -torch.inf, 0.0, (scores - log_sum).exp())


def _cap_share(u: Tensor, cap: float) -> Tensor:
    """``tanh(u / cap) / (u / cap)``, 1 at 0."""
    if cap <= 0:
        return torch.ones_like(u)
    return torch.where(u == 0, 1.0, torch.tanh(u / cap) / (u / cap))


def _epsilon_share(u: Tensor, epsilon: float) -> Tensor:
    """``u / (u + epsilon sgn(u))``."""
    return torch.ones_like(u) if epsilon <= 0 else u / (u + epsilon * torch.where(u < 0, -1.0, 1.0).double())
