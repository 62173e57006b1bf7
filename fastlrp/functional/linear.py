"""Relevance through a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_dim, check_float, check_like, check_terms

_OP = "linear_relevance"


def linear_relevance(
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None = None,
    v: Tensor | None = None,
    input: Tensor | None = None,
    weight_positive: Tensor | None = None,
    signed: bool = False,
    multiply: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """``c = W^T (u F) + W+^T (v F)``, and ``x c`` when ``multiply``.

    With ``signed`` the second term knows the sign of the input: ``[x > 0] W+^T (v F) + [x < 0] W-^T (v F)``. A term
    whose coefficient is None is left out. ``L`` stands for any number of axes (tokens, positions), also none.

    Args:
        relevance: ``F``, what flows down, ``(B, K, *L, O)``.
        weight: ``W``, ``(O, I)``.
        u, v: coefficients from :func:`elementwise_coefficients`, ``(B, *L, O)``; at least one is given.
        input: ``x``, ``(B, *L, I)``; needed by ``multiply``, and by ``signed`` where ``v`` is given.
        weight_positive: ``max(W, 0)``, ``(O, I)``, if it is at hand.
        signed: whether the input may be negative.
        multiply: return ``x c`` (relevance) instead of ``c`` (relevance per unit of activation).
        backend: ``"auto"`` or one of :data:`fastlrp.dispatch.BACKENDS`.

    Returns:
        ``(B, K, *L, I)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes or devices that do not fit, u and v both None, an input that is needed and None.
        BackendError: if the backend cannot run here.

    Source: Bach et al. 2015, eq. 56 to 60; Montavon et al. 2019, section 10.2.
    """
    check_float(_OP, "relevance", relevance)
    check_dim(_OP, "relevance", relevance, "(B, K, *L, O)", 3)
    check_float(_OP, "weight", weight)
    check_dim(_OP, "weight", weight, "(O, I)", 2, 2)
    B, _, *L, O = relevance.shape
    I = weight.shape[1]
    check_terms(_OP, u, v, input, signed, multiply)
    for name, value, layout, shape in (
        ("weight", weight, "(O, I)", (O, I)),
        ("u", u, "(B, *L, O)", (B, *L, O)),
        ("v", v, "(B, *L, O)", (B, *L, O)),
        ("input", input, "(B, *L, I)", (B, *L, I)),
        ("weight_positive", weight_positive, "(O, I)", (O, I)),
    ):
        check_like(_OP, name, value, layout, shape, relevance, relevance.dtype)
    result: Tensor = torch.ops.fastlrp.linear_relevance(
        relevance, weight, u, v, input, weight_positive, signed, multiply, backend=backend
    )
    return result
