"""From pre-activations to the two coefficients per output neuron that every common rule needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_dim, check_float, check_like, sizes

_NEEDS: dict[str, tuple[str, ...]] = {
    "epsilon": (),
    "zplus": ("positive",),
    "gamma": ("positive", "negative"),
}


def elementwise_coefficients(
    z: Tensor,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
    factor: Tensor | None = None,
    rule: str = "epsilon",
    alpha: float = 1.0,
    epsilon: float = 1e-6,
    *,
    backend: str = "auto",
) -> tuple[Tensor | None, Tensor | None]:
    """``(u, v)`` with ``R_in = x W^T (u R) + x+ W+^T (v R) + x- W-^T (v R)``, times the factor ``f``.

    With ``p = positive``, ``n = negative``, ``st(z) = z + epsilon sgn(z)``, ``sgn(0) = +1``:

    - ``"epsilon"``: ``u = f / st(z)``; v is None.
    - ``"zplus"``: ``v = alpha f / st(p)``; u is None.
    - ``"gamma"`` (gamma is passed as alpha):
      where ``z > 0``: ``d = st(z + gamma p)``, ``u = f / d``, ``v = f gamma / d``;
      where ``z < 0``: ``d = st(z + gamma n)``, ``u = f (1 + gamma) / d``, ``v = -f gamma / d``;
      where ``z = 0``: both are 0.

    A quotient with denominator 0 (only for ``epsilon = 0``) is 0, and where the factor is 0 both are 0, never NaN.

    Alpha-beta is the sum of two such parts: ``"zplus"`` with its alpha, and ``"zplus"`` of ``-W`` and ``-b``, whose
    ``p`` is ``-(N + b-)``, with ``-beta``. One call with ``u = -beta B`` and ``v = alpha A + beta B`` would be equal on
    paper but reads A off a difference with ``B = 1 / epsilon`` where a neuron has no negative part.

    Args:
        z: pre-activation ``W x + b``, ``(B, ...)``.
        positive: ``sum (x w)+ + b+``, shape of z; for ``"zplus"`` and ``"gamma"``.
        negative: ``sum (x w)- + b-``, shape of z; for ``"gamma"``.
        factor: ``f``, what the chained form multiplies by (for example the activation ``a``), shape of z; None is 1.
        rule: one of the three names.
        alpha: share of the part for ``"zplus"``: 1 is z+; gamma for ``"gamma"``; ``"epsilon"`` does not use it.
        epsilon: absolute, in units of z, at least 0.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        u and v, each of the shape of z or None.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for an unknown rule, an argument that the rule needs and is None, shapes or devices that do not
            fit, a negative epsilon.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        u, v = functional.elementwise_coefficients(torch.tensor([[2.0, -4.0]]), epsilon=0.0)
        assert u.tolist() == [[0.5, -0.25]] and v is None

    Source: Bach et al. 2015, eq. 58 and 60; Montavon et al. 2019, section 10.2.3; Andeol et al. 2021.
    """
    op = "elementwise_coefficients"
    _check(op, z, {"positive": positive, "negative": negative, "factor": factor}, rule, epsilon)
    made: list[Tensor] = torch.ops.fastlrp.elementwise_coefficients(
        z, positive, negative, factor, rule, alpha, epsilon, backend=backend
    )
    return _coefficients(rule, made)


def elementwise_pooled_coefficients(
    z: Tensor,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
    rule: str = "epsilon",
    alpha: float = 1.0,
    epsilon: float = 1e-6,
    kernel_size: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """``max_pool(a)`` and its winners with ``a = max(z, 0)``, and the rule's coefficients with the factor ``a``.

    What a layer, its ReLU and the max-pool after it keep for the backward pass, in one sweep over the map.

    Args:
        z: pre-activation ``W x + b`` of the layer, ``(B, C, *S)``.
        positive, negative, rule, alpha, epsilon: as in :func:`elementwise_coefficients`.
        kernel_size, stride, padding, dilation: numbers, or one per spatial axis; stride None is kernel_size.
        ceil_mode: as in :func:`torch.nn.functional.max_pool2d`.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        The pooled activation ``(B, C, *S')``; the winners' flat positions in S ``(B, C, *S')``, int64, by PyTorch's
        rule: the first of equals in each window, the last NaN before all; ``u`` and ``v``, shape of z or None.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for an unknown rule, an argument that the rule needs and is None, shapes, sizes or devices that do
            not fit, a negative epsilon.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        z = torch.randn(1, 3, 8, 8)
        pooled, winners, u, v = functional.elementwise_pooled_coefficients(z, kernel_size=2)
        assert pooled.shape == winners.shape == (1, 3, 4, 4)

    Source: :func:`elementwise_coefficients`; ties as in :func:`torch.nn.functional.max_pool2d`.
    """
    op = "elementwise_pooled_coefficients"
    _check(op, z, {"positive": positive, "negative": negative}, rule, epsilon)
    check_dim(op, "z", z, "(B, C, *S) with one to three spatial sizes S", 3, 5)
    n = z.dim() - 2
    kernel = sizes(op, "kernel_size", kernel_size, n, 1)
    step = kernel if stride is None else sizes(op, "stride", stride, n, 1)
    pad, spread = sizes(op, "padding", padding, n, 0), sizes(op, "dilation", dilation, n, 1)
    reach = [d * (k - 1) + 1 for d, k in zip(spread, kernel, strict=True)]
    if any(2 * p > k for p, k in zip(pad, kernel, strict=True)):
        raise ValueError(f"{op}: padding must be at most half of kernel_size, {kernel}, got {pad}")
    if any(s < 1 or s + 2 * p < r for s, p, r in zip(z.shape[2:], pad, reach, strict=True)):
        raise ValueError(
            f"{op}: z must have spatial sizes of at least 1 that hold a window, which spans {reach} with "
            f"padding={pad}, got {list(z.shape[2:])}"
        )
    pooled, index, *made = torch.ops.fastlrp.elementwise_pooled_coefficients(
        z, positive, negative, rule, alpha, epsilon, kernel, step, pad, spread, ceil_mode, backend=backend
    )
    return pooled, index, *_coefficients(rule, made)


def _check(op: str, z: Tensor, others: dict[str, Tensor | None], rule: str, epsilon: float) -> None:
    check_float(op, "z", z)
    if rule not in _NEEDS:
        raise ValueError(f"{op}: rule must be one of {', '.join(map(repr, _NEEDS))}, got {rule!r}")
    if not epsilon >= 0:
        raise ValueError(f"{op}: epsilon must be a number >= 0, got {epsilon!r}")
    for name, value in others.items():
        if value is None and name in _NEEDS[rule]:
            raise ValueError(f"{op}: {name} must be given for rule {rule!r}, got None")
        check_like(op, name, value, "that of z", tuple(z.shape), z, z.dtype)


def _coefficients(rule: str, made: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    if rule == "epsilon":
        return made[0], None
    return (None, made[0]) if rule == "zplus" else (made[0], made[1])
