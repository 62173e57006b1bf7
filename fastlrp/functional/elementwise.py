"""From pre-activations to the two coefficients per output neuron that every common rule needs."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_float, check_like

_OP = "elementwise_coefficients"
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
        backend: ``"auto"`` or one of :data:`fastlrp.dispatch.BACKENDS`.

    Returns:
        u and v, each of the shape of z or None.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for an unknown rule, an argument that the rule needs and is None, shapes or devices that do not
            fit, a negative epsilon.
        BackendError: if the backend cannot run here.

    Source: Bach et al. 2015, eq. 58 and 60; Montavon et al. 2019, section 10.2.3; Andeol et al. 2021.
    """
    check_float(_OP, "z", z)
    if rule not in _NEEDS:
        raise ValueError(f"{_OP}: rule must be one of {', '.join(map(repr, _NEEDS))}, got {rule!r}")
    if not epsilon >= 0:
        raise ValueError(f"{_OP}: epsilon must be a number >= 0, got {epsilon!r}")
    for name, value in (("positive", positive), ("negative", negative), ("factor", factor)):
        if value is None and name in _NEEDS[rule]:
            raise ValueError(f"{_OP}: {name} must be given for rule {rule!r}, got None")
        check_like(_OP, name, value, "that of z", tuple(z.shape), z, z.dtype)
    made: list[Tensor] = torch.ops.fastlrp.elementwise_coefficients(
        z, positive, negative, factor, rule, alpha, epsilon, backend=backend
    )
    if rule == "epsilon":
        return made[0], None
    return (None, made[0]) if rule == "zplus" else (made[0], made[1])
