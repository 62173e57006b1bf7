"""The way up through attention: the transpose of its relevance for a block of groups, with the weights P made once.

Down, with ``g`` relevance per unit of the output ``o`` (:func:`fastlrp.reference.attention.attention_relevance`)::

    c_v = a_v P^T g,   c_s = M P (g v^T - sum_e g o),   c_q = a_q scale c_s k,   c_k = a_k scale c_s^T q

Up, with cotangents ``t`` of queries, keys and values::

    t_s = M P scale (a_q t_q k^T + a_k q t_k^T),   t_g = a_v P t_v + t_s v - (sum_t t_s) o

``M = u / st(u)``, times the share of a soft cap. Groups stand behind the positions, ``(B, H, S, G, .)``, so that all of
them go through one product with the keys that they share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp.plan.layer import leading_zeros

TILE_BYTES = 16 << 20
"""Largest tile of scores of all groups: queries are cut so that it stays in a cache or near it."""


def attention_up(
    arriving: tuple[Tensor | None, Tensor | None, Tensor | None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor | None,
    log_sum: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    shares: tuple[float, float, float],
    epsilon: float,
) -> Tensor:
    """The cotangent of ``g`` from those of query ``(B, G, H, S, D)``, key ``(B, G, H', T, D)`` and value of its form.

    Args:
        arriving: one that is None is zero. query, key, value, output, log_sum, mask, causal, scale, cap, epsilon: as in
            :func:`fastlrp.reference.attention.attention_relevance`, ``(B, H, S, D)`` and so on; H' divides H.
        shares: of query, key and value.

    Returns:
        ``(B, G, H, S, E)``.
    """
    if query.dtype in (torch.float16, torch.bfloat16):  # Weights and sums over keys in float32.
        wide = [None if t is None else t.float() for t in (*arriving, query, key, value, output)]
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        t_q, t_k, t_v, q, k, v, o = wide
        assert q is not None
        assert k is not None
        assert v is not None
        given = (t_q, t_k, t_v), q, k, v, o, log_sum.float(), mask
        return attention_up(*given, causal, scale, cap, shares, epsilon).to(query.dtype)
    batch, heads, queries, _ = query.shape
    first = next(t for t in arriving if t is not None)
    groups, times = first.shape[1], heads // key.shape[1]
    keys, values = (_each_head(t, times, 1) for t in (key, value))
    of_query = _behind(arriving[0])
    of_key, of_value = (None if t is None else _behind(_each_head(t, times, 2)) for t in arriving[1:])
    each = batch * heads * groups * keys.shape[2] * query.element_size()
    rows = max(1, TILE_BYTES // max(1, each))
    result = query.new_empty(batch, heads, queries, groups, value.shape[-1])
    # Under causal order nothing of a token reaches the positions before it, also where a mask says so.
    causal = causal or hides_later(mask, queries, keys.shape[2])
    before = min(leading_zeros(t, 3) for t in arriving if t is not None) if causal else 0
    result[:, :, :before] = 0
    for start in range(before, queries, rows):
        end = min(queries, start + rows)
        # Query i sees the keys up to i alone.
        seen = min(end, keys.shape[2]) if causal else keys.shape[2]
        k, v, q = keys[:, :, :seen], values[:, :, :seen], query[:, :, start:end]
        u = scale * q @ k.mT
        part, sums = _part(mask, start, end, seen), log_sum[:, :, start:end]
        p = _weights(_capped(u, cap), part, sums, start if causal else None)
        found = None
        if of_value is not None:  # (S, T) (T, G E)
            t_v = of_value[:, :, :seen].flatten(3)
            found = (shares[2] * p @ t_v).unflatten(3, (groups, -1))
        scores = _scores(of_query, of_key, q, k, start, end, seen, shares)
        if scores is not None:
            scores = scores.mul_((p * scale * _share(u, cap, epsilon)).unsqueeze(3))
            through = (scores.flatten(2, 3) @ v).unflatten(2, (end - start, groups))
            found = through if found is None else found.add_(through)
            assert output is not None
            found = found.addcmul_(scores.sum(-1, keepdim=True), output[:, :, start:end].unsqueeze(3), value=-1)
        assert found is not None
        result[:, :, start:end] = found
    return result.permute(0, 3, 1, 2, 4)


def hides_later(mask: Tensor | None, queries: int, keys: int) -> bool:
    """Whether a mask lets no query see a later key; not looked at on a GPU, where looking means waiting."""
    if mask is None or mask.device.type != "cpu" or queries != keys or mask.shape[-2:] != (queries, keys):
        return False
    seen = mask if mask.dtype == torch.bool else mask != -torch.inf
    return not bool(seen.triu(1).any())


def _scores(
    of_query: Tensor | None, of_key: Tensor | None, q: Tensor, k: Tensor, start: int, end: int, seen: int,
    shares: tuple[float, float, float],
) -> Tensor | None:  # fmt: skip
    """``a_q t_q k^T + a_k q t_k^T``, ``(B, H, S, G, T)``."""
    scores = None
    if of_query is not None:  # (S G, D) (D, T)
        scores = (shares[0] * of_query[:, :, start:end].flatten(2, 3) @ k.mT).unflatten(2, (end - start, -1))
    if of_key is not None:  # (S, D) (D, T G)
        part = ((shares[1] * q) @ of_key[:, :, :seen].flatten(2, 3).mT).unflatten(3, (seen, -1)).transpose(3, 4)
        scores = part.contiguous() if scores is None else scores.add_(part)
    return scores


def _behind(t: Tensor | None) -> Tensor | None:
    """``(B, G, H, S, D)`` to ``(B, H, S, G, D)``, in this order in memory."""
    return None if t is None else t.permute(0, 2, 3, 1, 4).contiguous()


def _each_head(t: Tensor, times: int, axis: int) -> Tensor:
    return t if times == 1 else t.repeat_interleave(times, axis)


def _part(mask: Tensor | None, start: int, end: int, seen: int) -> Tensor | None:
    """The rows and columns of a mask that broadcasts to ``(B, H, S, T)``."""
    if mask is None:
        return None
    mask = mask.reshape(*[1] * (4 - mask.dim()), *mask.shape) if mask.dim() < 4 else mask
    mask = mask[:, :, start:end] if mask.shape[2] > 1 else mask
    return mask[..., :seen] if mask.shape[3] > 1 else mask


def _weights(u: Tensor, mask: Tensor | None, log_sum: Tensor, first: int | None) -> Tensor:
    """``exp(s - log_sum)`` of the scores under the mask; ``first``: the first query under causal order."""
    scores = u.to(log_sum.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if first is not None:
        queries, keys = u.shape[-2:]
        later = torch.ones(queries, keys, dtype=torch.bool, device=u.device).triu(1 + first)
        scores = scores.masked_fill(later, -torch.inf)
    log_sum = log_sum.unsqueeze(-1)
    return torch.where(log_sum == -torch.inf, 0.0, (scores - log_sum).exp()).to(u.dtype)


def _capped(u: Tensor, cap: float) -> Tensor:
    return torch.tanh(u / cap).mul_(cap) if cap > 0 else u


def _share(u: Tensor, cap: float, epsilon: float) -> Tensor | float:
    """``u / st(u)``, times ``tanh(u / cap) / (u / cap)`` of a soft cap."""
    share: Tensor | float = 1.0 if epsilon <= 0 else u / torch.where(u < 0, u - epsilon, u + epsilon)
    return share if cap <= 0 else share * torch.where(u == 0, 1.0, torch.tanh(u / cap) / (u / cap))
