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
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, *L, I)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes or devices that do not fit, u and v both None, an input that is needed and None.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        weight, inputs = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 2.0]])
        u, _ = functional.elementwise_coefficients(inputs @ weight.T, epsilon=0.0)
        sent = functional.linear_relevance(torch.ones(1, 1, 1), weight, u, input=inputs, multiply=True)
        assert sent.tolist() == [[[3.0, -2.0]]]

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


def linear_one_hot_relevance(
    value: Tensor,
    index: Tensor,
    weight: Tensor,
    u: Tensor | None = None,
    v: Tensor | None = None,
    input: Tensor | None = None,
    signed: bool = False,
    multiply: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """:func:`linear_relevance` of one class per target, ``F[b, k, index[b, k]] = value[b, k]``: a row of W each.

    Args:
        value: relevance of each target's class, ``(B, K)``.
        index: the classes, ``(B, K)`` int64, each in ``[0, O)`` (not checked on a CUDA device).
        weight: ``W``, ``(O, I)``. u, v: coefficients ``(B, O)``; at least one is given. input: ``x``, ``(B, I)``.
        signed, multiply: as for :func:`linear_relevance`.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, I)``.

    Raises:
        TypeError: for a dtype that is not floating-point (index: int64) or differs between arguments.
        ValueError: for shapes or devices that do not fit, u and v both None, an input that is needed and None.
        IndexError: for a class outside ``[0, O)``, on the CPU.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        weight, u = torch.randn(10, 4), torch.rand(2, 10)
        classes = torch.tensor([[3, 1, 4], [1, 5, 9]])
        sent = functional.linear_one_hot_relevance(torch.ones(2, 3), classes, weight, u)  # (2, 3, 4)

    Source: DESIGN.md, section 3.5.
    """
    op = "linear_one_hot_relevance"
    check_float(op, "value", value)
    check_dim(op, "value", value, "(B, K)", 2, 2)
    check_float(op, "weight", weight)
    check_dim(op, "weight", weight, "(O, I)", 2, 2)
    (B, K), (O, I) = value.shape, weight.shape
    check_terms(op, u, v, input, signed, multiply)
    if index is None:
        raise TypeError(f"{op}: index must be a tensor, got None")
    check_like(op, "index", index, "(B, K)", (B, K), value, torch.int64)
    for name, given, layout, shape in (
        ("weight", weight, "(O, I)", (O, I)),
        ("u", u, "(B, O)", (B, O)),
        ("v", v, "(B, O)", (B, O)),
        ("input", input, "(B, I)", (B, I)),
    ):
        check_like(op, name, given, layout, shape, value, value.dtype)
    if value.device.type == "cpu" and index.numel():  # On a GPU, looking would wait for the device.
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= O:
            raise IndexError(f"{op}: index must be in [0, {O}), got {low} to {high}")
    result: Tensor = torch.ops.fastlrp.linear_one_hot_relevance(
        value, index, weight, u, v, input, signed, multiply, backend=backend
    )
    return result
