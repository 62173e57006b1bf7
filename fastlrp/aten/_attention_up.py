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

from fastlrp.aten._zeros import leading_zeros
from fastlrp.looking import may_look

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
    first: int | None = None,
) -> Tensor:
    """The cotangent of ``g`` from those of query ``(B, G, H, S, D)``, key ``(B, G, H', T, D)`` and value of its form.

    Args:
        arriving: one that is None is zero. query, key, value, output, log_sum, mask, causal, scale, cap, epsilon: as in
            :func:`fastlrp.reference.attention.attention_relevance`, ``(B, H, S, D)`` and so on; H' divides H.
        shares: of query, key and value.
        first: where no query sees a later key: what arrives are the positions from there on, before which it is zero.

    Returns:
        ``(B, G, H, S, E)``; with ``first`` its positions from there on, before which it is zero too.
    """
    if query.dtype in (torch.float16, torch.bfloat16):  # Weights and sums over keys in float32.
        t_q, t_k, t_v, q, k, v, o = [None if t is None else t.float() for t in (*arriving, query, key, value, output)]
        assert q is not None
        assert k is not None
        assert v is not None
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        narrow = attention_up(
            (t_q, t_k, t_v), q, k, v, o, log_sum.float(), mask, causal, scale, cap, shares, epsilon, first
        )  # fmt: skip
        return narrow.to(query.dtype)
    causal = causal or first is not None or hides_later(mask, query.shape[2], key.shape[2])
    if first is None:
        # Under causal order nothing of a token reaches the positions before it, also where a mask says so.
        first = min(leading_zeros(t, 3) for t in arriving if t is not None) if causal else 0
        if first:
            t_q, t_k, t_v = [None if t is None else t[:, :, :, first:] for t in arriving]
            rows = attention_up(
                (t_q, t_k, t_v), query, key, value, output, log_sum, mask, causal, scale, cap, shares, epsilon, first
            )  # fmt: skip
            return torch.nn.functional.pad(rows, (0, 0, first, 0))
    batch, heads, queries, _ = query.shape
    groups, times = next(t for t in arriving if t is not None).shape[1], heads // key.shape[1]
    keys, values = (_each_head(t, times, 1) for t in (key, value))
    of_query, of_key, of_value = _behind_positions(arriving, times)
    each = batch * heads * groups * keys.shape[2] * query.element_size()
    size = max(1, TILE_BYTES // max(1, each))
    result = query.new_empty(batch, heads, queries - first, groups, value.shape[-1])
    # With a column of ones behind the values the sums over keys come out of the same product.
    with_ones = torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1)
    for start in range(first, queries, size):
        end = min(queries, start + size)
        # Query i sees the keys up to i alone.
        seen = min(end, keys.shape[2]) if causal else keys.shape[2]
        k, q = keys[:, :, :seen], query[:, :, start:end]
        u = scale * q @ k.mT
        part, sums = _part(mask, start, end, seen), log_sum[:, :, start:end]
        p = _weights(_capped(u, cap), part, sums, start if causal else None)
        found: Tensor | None = None
        if of_value is not None:  # (S, T) (T, G E)
            t_v = of_value[:, :, : seen - first].flatten(3)
            found = ((shares[2] * p[..., first:]) @ t_v).unflatten(3, (groups, -1))
        t_q = None if of_query is None else of_query[:, :, start - first : end - first]
        t_k = None if of_key is None else of_key[:, :, :, : seen - first]
        scores = _scores(t_q, t_k, q, k, first, shares)
        if scores is not None:
            assert output is not None
            scores = scores.mul_((p * scale * _share(u, cap, epsilon)).unsqueeze(3))
            found = _through_scores(scores, with_ones[:, :, :seen], output[:, :, start:end], found)
        assert found is not None
        result[:, :, start - first : end - first] = found
    return result.permute(0, 3, 1, 2, 4)


def _behind_positions(
    arriving: tuple[Tensor | None, Tensor | None, Tensor | None], times: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What arrives at queries ``(B, H, S, G, D)``, keys ``(B, H, G, T, D)`` and values ``(B, H, T, G, E)``."""
    query, key, value = arriving
    return (
        None if query is None else query.permute(0, 2, 3, 1, 4).contiguous(),
        None if key is None else _each_head(key, times, 2).transpose(1, 2).contiguous(),
        None if value is None else _each_head(value, times, 2).permute(0, 2, 3, 1, 4).contiguous(),
    )


def _through_scores(scores: Tensor, with_ones: Tensor, output: Tensor, found: Tensor | None) -> Tensor:
    """``found + t_s v - (sum_t t_s) o`` of a tile of scores ``t_s``, ``(B, H, S, G, T)``."""
    through = (scores.flatten(2, 3) @ with_ones).unflatten(2, scores.shape[2:4])
    found = through[..., :-1] if found is None else found.add_(through[..., :-1])
    return torch.addcmul(found, through[..., -1:], output.unsqueeze(3), value=-1)


def hides_later(mask: Tensor | None, queries: int, keys: int) -> bool:
    """Whether a mask lets no query see a later key; not looked at on a GPU, where looking means waiting."""
    if mask is None or not may_look(mask) or queries != keys or mask.shape[-2:] != (queries, keys):
        return False
    seen = mask if mask.dtype == torch.bool else mask != -torch.inf
    return not bool(seen.triu(1).any())


def _scores(
    t_q: Tensor | None, t_k: Tensor | None, q: Tensor, k: Tensor, first: int, shares: tuple[float, float, float]
) -> Tensor | None:
    """``a_q t_q k^T + a_k q t_k^T``, ``(B, H, S, G, T)``; ``t_k`` is of the keys from ``first`` on."""
    scores = None
    if t_q is not None:  # (S G, D) (D, T)
        scores = (shares[0] * (t_q.flatten(2, 3) @ k.mT)).unflatten(2, (t_q.shape[2], -1))
    if t_k is not None:  # (S, D) (D, G T)
        part = ((shares[1] * q) @ t_k.flatten(2, 3).mT).unflatten(3, (t_k.shape[2], -1))
        if scores is None:
            return torch.nn.functional.pad(part, (first, 0))
        scores[..., first:] += part
    return scores


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
