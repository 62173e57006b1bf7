"""Relevance through norms with sigma held fixed, as PyTorch operations."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_relevance(relevance: Tensor, gain: Tensor | None, inverse_sigma: Tensor, centre: bool) -> Tensor:
    """``centre(gain g / sigma)``, (B, K, *L, N); see :func:`fastlrp.reference.norm.norm_relevance`."""
    half = relevance.dtype in (torch.float16, torch.bfloat16)
    flow, inverse = (relevance.float(), inverse_sigma.float()) if half else (relevance, inverse_sigma)
    factor = inverse if gain is None else inverse * (gain.float() if half else gain)  # (B, *L, 1 or N)
    c = flow * factor.unsqueeze(1)
    if centre:
        c = c.sub_(c.mean(-1, keepdim=True))
    return c.to(relevance.dtype)
