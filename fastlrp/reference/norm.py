"""Relevance through layer norm, RMS norm and group norm with sigma held fixed."""

from __future__ import annotations

from torch import Tensor


def norm_relevance(relevance: Tensor, gain: Tensor | None, inverse_sigma: Tensor, centre: bool) -> Tensor:
    """``c = centre(gain g / sigma)``, the transpose of ``y = gain (x - mean(x)) / sigma + b`` at a fixed sigma.

    ``centre`` subtracts the mean over the normalised axis, as a layer norm does to its input; an RMS norm does not.

    Args:
        relevance: ``g``, relevance per unit of the output, ``(B, K, *L, N)``; ``L`` stands for any number of axes.
        gain: the weight, ``(N)`` or whatever broadcasts to ``(B, *L, N)``; None is 1.
        inverse_sigma: ``1 / sigma``, ``(B, *L, 1)``.
        centre: whether the norm subtracts the mean.

    Returns:
        ``(B, K, *L, N)`` in the dtype of ``relevance``; computed in float64.

    Source: Achtibat et al. 2024 (AttnLRP), section 3.3.3; Ali et al. 2022, section 3.2.
    """
    factor = inverse_sigma.double()  # (B, *L, 1)
    if gain is not None:
        factor = factor * gain.double()  # (B, *L, N)
    c = relevance.double() * factor.unsqueeze(1)
    if centre:
        c = c - c.mean(-1, keepdim=True)
    return c.to(relevance.dtype)
