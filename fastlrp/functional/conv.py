"""Relevance through a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_dim, check_float, check_like, check_map, check_output_size, check_terms
from fastlrp.functional._checks import sizes as _sizes

_OP = "conv_relevance"


def conv_relevance(
    relevance: Tensor,
    weight: Tensor,
    u: Tensor | None = None,
    v: Tensor | None = None,
    input: Tensor | None = None,
    weight_positive: Tensor | None = None,
    input_size: Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    signed: bool = False,
    multiply: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """``c = W^T (u F) + W+^T (v F)``, and ``x c`` when ``multiply``; ``W^T`` is the transpose of the convolution.

    With ``signed`` the second term knows the sign of the input: ``[x > 0] W+^T (v F) + [x < 0] W-^T (v F)``. A term
    whose coefficient is None is left out. ``S`` and ``S'`` are one to three spatial sizes of input and output.

    Args:
        relevance: ``F``, what flows down, ``(B, K, Co, *S')``.
        weight: ``W``, ``(Co, Ci / groups, *k)``; transposed: ``(Ci, Co / groups, *k)``.
        u, v: coefficients from :func:`elementwise_coefficients`, ``(B, Co, *S')``; at least one is given.
        input: ``x``, ``(B, Ci, *S)``; needed by ``multiply``, and by ``signed`` where ``v`` is given.
        weight_positive: ``max(W, 0)``, shape of ``weight``, if it is at hand.
        input_size: ``S``; None takes it from ``input``.
        stride, padding, dilation, output_padding: numbers, or one per spatial axis; ``output_padding`` is read by
            transposed convolutions only. Zero padding: pad first for the other modes.
        transposed: whether the layer is a transposed convolution.
        groups: number of groups.
        signed: whether the input may be negative.
        multiply: return ``x c`` (relevance) instead of ``c`` (relevance per unit of activation).
        backend: ``"auto"`` or one of :data:`fastlrp.dispatch.BACKENDS`.

    Returns:
        ``(B, K, Ci, *S)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes, sizes or devices that do not fit, u and v both None, an input that is needed and None.
        BackendError: if the backend cannot run here.

    Source: Bach et al. 2015, eq. 56 to 60; Montavon et al. 2019, section 10.2.
    """
    n = check_map(_OP, relevance)
    check_float(_OP, "weight", weight)
    check_dim(_OP, "weight", weight, f"(Co, Ci / groups, *k) with {n} kernel sizes", n + 2, n + 2)
    check_terms(_OP, u, v, input, signed, multiply)
    if input_size is None:
        if input is None:
            raise ValueError(f"{_OP}: input_size must be given where input is None; pass the spatial sizes S")
        check_dim(_OP, "input", input, f"(B, Ci, *S) with {n} spatial sizes", n + 2, n + 2)
        input_size = list(input.shape[2:])
    S = _sizes(_OP, "input_size", input_size, n, 0)
    step = _sizes(_OP, "stride", stride, n, 1)
    pad = _sizes(_OP, "padding", padding, n, 0)
    spread = _sizes(_OP, "dilation", dilation, n, 1)
    extra = _sizes(_OP, "output_padding", output_padding, n, 0)
    B, _, Co, *_ = relevance.shape
    if groups < 1 or Co % groups or (transposed and weight.shape[0] % groups):
        raise ValueError(f"{_OP}: groups must divide the channels Co = {Co} and Ci, got {groups}")
    Ci = weight.shape[0] if transposed else weight.shape[1] * groups
    shape = (Ci, Co // groups) if transposed else (Co, Ci // groups)
    layout = "(Ci, Co / groups, *k)" if transposed else "(Co, Ci / groups, *k)"
    output = [
        (s - 1) * t - 2 * p + d * (k - 1) + e + 1 if transposed else (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, t, p, d, e, k in zip(S, step, pad, spread, extra, weight.shape[2:], strict=True)
    ]
    check_output_size(_OP, relevance, output, S)
    out = (B, Co, *output)
    for name, value, expected, size in (
        ("weight", weight, layout, (*shape, *weight.shape[2:])),
        ("u", u, "(B, Co, *S')", out),
        ("v", v, "(B, Co, *S')", out),
        ("input", input, "(B, Ci, *S)", (B, Ci, *S)),
        ("weight_positive", weight_positive, layout, tuple(weight.shape)),
    ):
        check_like(_OP, name, value, expected, size, relevance, relevance.dtype)
    geometry = (S, step, pad, spread, transposed, extra, groups)
    result: Tensor = torch.ops.fastlrp.conv_relevance(
        relevance, weight, u, v, input, weight_positive, *geometry, signed, multiply, backend=backend
    )
    return result
