"""Relevance through a linear layer, from the coefficients of :mod:`fastlrp.reference.elementwise`."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_relevance(
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    weight_positive: Tensor | None,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """``c = W^T (u F) + W+^T (v F)``, and ``x c`` when ``multiply``.

    With ``signed`` the second term knows the sign of the input: ``[x > 0] W+^T (v F) + [x < 0] W-^T (v F)``. The axes
    ``L`` (tokens, positions) may be absent. A term whose coefficient is None is left out; with neither ``c = W^T F``,
    which with ``multiply`` and the roles of input and output exchanged is a layer's way up, ``u (W t)``.

    Args:
        relevance: ``F``, what flows down, ``(B, K, *L, O)``.
        weight: ``W``, ``(O, I)``.
        u, v: coefficients ``(B, *L, O)`` or None.
        input: ``x``, ``(B, *L, I)``; needed by ``signed`` (where ``v`` is given) and by ``multiply``.
        weight_positive: ``max(W, 0)``, ``(O, I)``, for backends that keep it; the definition makes its own.
        signed: whether the input may be negative.
        multiply: return ``x c`` (relevance) instead of ``c`` (relevance per unit of activation).

    Returns:
        ``(B, K, *L, I)`` in the dtype of ``relevance``; computed in float64.

    Raises:
        ValueError: if ``input`` is needed and None.

    Source: DESIGN.md, section 3.1; Bach et al. 2015, eq. 56 to 60.
    """
    check_input(v, input, signed, multiply)
    flow = relevance.double()
    matrix = weight.double()
    x = None if input is None else input.double().unsqueeze(1)
    c = torch.zeros(*flow.shape[:-1], matrix.shape[1], dtype=torch.float64, device=flow.device)
    if u is not None or v is None:
        c = c + (flow if u is None else u.double().unsqueeze(1) * flow) @ matrix
    if v is not None:
        s = v.double().unsqueeze(1) * flow
        positive = s @ matrix.clamp(min=0)
        if signed and x is not None:
            negative = s @ matrix.clamp(max=0)
            c = c + torch.where(x > 0, positive, 0.0) + torch.where(x < 0, negative, 0.0)
        else:
            c = c + positive
    if multiply and x is not None:
        c = x * c
    return c.to(relevance.dtype)


def linear_one_hot_relevance(
    value: Tensor,
    index: Tensor,
    weight: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    input: Tensor | None,
    signed: bool,
    multiply: bool,
) -> Tensor:
    """:func:`linear_relevance` of one class per target: ``F[b, k, index[b, k]] = value[b, k]``, zero elsewhere.

    Args:
        value, index: ``(B, K)``, relevance and (int64) class of each target.
        weight: ``(O, I)``. u, v: ``(B, O)`` or None. input: ``(B, I)`` or None. signed, multiply: as there.

    Returns:
        ``(B, K, I)`` in the dtype of ``value``; computed in float64.
    """
    flow = value.new_zeros(*value.shape, weight.shape[0]).scatter(2, index.unsqueeze(2), value.unsqueeze(2))
    return linear_relevance(flow, weight, u, v, input, None, signed, multiply)


def check_input(v: Tensor | None, input: Tensor | None, signed: bool, multiply: bool) -> None:
    """What every affine operation asks of its optional arguments.

    Raises:
        ValueError: if ``input`` is needed and None.
    """
    if input is None and (multiply or (signed and v is not None)):
        raise ValueError("input: needed by multiply=True, and by signed=True where v is given; got None")
