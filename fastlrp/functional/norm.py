"""Relevance through layer norm, RMS norm and group norm with sigma held fixed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_dim, check_float, check_like

_OP = "norm_relevance"


def norm_relevance(
    relevance: Tensor, gain: Tensor | None, inverse_sigma: Tensor, centre: bool, *, backend: str = "auto"
) -> Tensor:
    """``c = centre(gain g / sigma)``, the transpose of ``y = gain (x - mean(x)) / sigma + b`` at a fixed sigma.

    ``centre`` subtracts the mean over the normalised axis, as a layer norm does to its input; an RMS norm does not.
    ``L`` stands for any number of axes (tokens, groups), also none.

    Args:
        relevance: ``g``, relevance per unit of the norm's output, ``(B, K, *L, N)``.
        gain: the norm's weight, ``(N)`` or whatever broadcasts to ``(B, *L, N)``; None is 1.
        inverse_sigma: ``1 / sigma``, ``(B, *L, 1)``, in the dtype of ``relevance`` or in float32.
        centre: whether the norm subtracts the mean.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        Relevance per unit of the norm's input, ``(B, K, *L, N)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes or devices that do not fit.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        inverse_sigma = torch.rand(2, 5, 1)
        sent = functional.norm_relevance(torch.randn(2, 7, 5, 8), torch.rand(8), inverse_sigma, centre=True)

    Source: Achtibat et al. 2024 (AttnLRP), section 3.3.3; Ali et al. 2022, section 3.2.
    """
    check_float(_OP, "relevance", relevance)
    check_dim(_OP, "relevance", relevance, "(B, K, *L, N)", 3)
    check_float(_OP, "inverse_sigma", inverse_sigma)
    B, _, *L, N = relevance.shape
    dtype = torch.float32 if inverse_sigma.dtype == torch.float32 else relevance.dtype
    check_like(_OP, "inverse_sigma", inverse_sigma, "(B, *L, 1)", (B, *L, 1), relevance, dtype)
    if gain is not None:
        check_float(_OP, "gain", gain)
        whole = (B, *L, N)
        if gain.dim() > len(whole) or any(n not in (1, m) for n, m in zip(gain.shape[::-1], whole[::-1], strict=False)):
            raise ValueError(
                f"{_OP}: gain must broadcast to (B, *L, N) = {whole}, got {tuple(gain.shape)}; the weight of a norm "
                "over the last axis has shape (N)"
            )
        check_like(_OP, "gain", gain, "its own", gain.shape, relevance, relevance.dtype)
    result: Tensor = torch.ops.fastlrp.norm_relevance(relevance, gain, inverse_sigma, centre, backend=backend)
    return result
