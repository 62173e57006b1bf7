"""From pre-activations to the two coefficients per output neuron that every common rule needs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def elementwise_coefficients(
    z: Tensor,
    positive: Tensor | None,
    negative: Tensor | None,
    factor: Tensor | None,
    rule: str,
    alpha: float,
    epsilon: float,
) -> tuple[Tensor | None, Tensor | None]:
    """``(u, v)`` with ``R_in = x W^T (u R) + x+ W+^T (v R) + x- W-^T (v R)``, times the factor ``f``.

    With ``p = positive``, ``n = negative`` and ``st(z) = z + epsilon sgn(z)``, ``sgn(0) = +1``:

    - ``"epsilon"``: ``u = f / st(z)``, v None.
    - ``"zplus"``: u None, ``v = alpha f / st(p)``.
    - ``"gamma"`` (gamma is passed as alpha):
      where ``z > 0``: ``d = st(z + gamma p)``, ``u = f / d``, ``v = f gamma / d``;
      where ``z < 0``: ``d = st(z + gamma n)``, ``u = f (1 + gamma) / d``, ``v = -f gamma / d``;
      where ``z = 0``: both are 0.

    Alpha-beta is the sum of two such parts: ``"zplus"`` with its alpha, and ``"zplus"`` of ``-W`` and ``-b``, whose
    ``p`` is ``-(N + b-)``, with ``-beta``. One call with ``u = -beta B`` and ``v = alpha A + beta B`` would be equal on
    paper but reads A off a difference with ``B = 1 / epsilon`` where a neuron has no negative part.

    Args:
        z: pre-activation ``W x + b``, any shape ``(B, ...)``.
        positive: ``sum (x w)+ + b+``, shape of z; for ``zplus`` and ``gamma``.
        negative: ``sum (x w)- + b-``, shape of z; for ``gamma``.
        factor: ``f``, what the chained form multiplies by (for example the activation ``a``), shape of z; None is 1.
        rule: one of the three names.
        alpha: share of the part for ``zplus``: 1 is z+; gamma for ``gamma``; ``epsilon`` does not use it.
        epsilon: absolute, at least 0. With 0 the quotient by 0 is 0.

    Returns:
        ``u`` and ``v``, shape and dtype of ``z`` or None; 0, never NaN, where the factor is 0. Computed in float64.

    Raises:
        ValueError: if the rule is unknown, or a sum it needs is None.

    Source: DESIGN.md, section 3.1; Bach et al. 2015, eq. 58 and 60; Montavon et al. 2019, section 10.2.3.
    """
    needs = {"epsilon": (), "zplus": ("positive",), "gamma": ("positive", "negative")}
    if rule not in needs:
        raise ValueError(f"rule: expected one of {sorted(needs)}, got {rule!r}")
    for name, value in (("positive", positive), ("negative", negative)):
        if name in needs[rule] and value is None:
            raise ValueError(f"{name}: rule {rule!r} needs it, got None")

    total = z.double()
    zero = torch.zeros_like(total)
    p = zero if positive is None else positive.double()
    n = zero if negative is None else negative.double()
    f = torch.ones_like(total) if factor is None else factor.double()

    def inverse(denominator: Tensor) -> Tensor:
        stabilized = denominator + epsilon * torch.where(denominator < 0, -1.0, 1.0).double()
        return torch.where(stabilized == 0, 0.0, 1 / stabilized)

    def finish(coefficient: Tensor) -> Tensor:
        return torch.where(f == 0, 0.0, f * coefficient).to(z.dtype)

    if rule == "epsilon":
        return finish(inverse(total)), None
    if rule == "zplus":
        return None, finish(alpha * inverse(p))
    gamma = alpha
    above, below = inverse(total + gamma * p), inverse(total + gamma * n)
    u = torch.where(total > 0, above, torch.where(total < 0, (1 + gamma) * below, zero))
    v = torch.where(total > 0, gamma * above, torch.where(total < 0, -gamma * below, zero))
    return finish(u), finish(v)


def elementwise_pooled_coefficients(
    z: Tensor,
    positive: Tensor | None,
    negative: Tensor | None,
    rule: str,
    alpha: float,
    epsilon: float,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """``max_pool(a)`` and its winners with ``a = max(z, 0)``, and the rule's coefficients with the factor ``a``.

    Args:
        z: pre-activation ``W x + b`` of the layer whose ReLU is pooled, ``(B, C, *S)``.
        positive, negative, rule, alpha, epsilon: as in :func:`elementwise_coefficients`.
        kernel_size, stride, padding, dilation: one number per spatial axis.
        ceil_mode: as in ``torch.nn.functional.max_pool2d``.

    Returns:
        The pooled activation ``(B, C, *S')``; the winners' flat positions in S ``(B, C, *S')``, int64, by PyTorch's
        rule: the first of equals in each window, the last NaN before all; ``u`` and ``v``, shape of z or None.

    Raises:
        ValueError: if the rule is unknown, or a sum it needs is None.

    Source: :func:`elementwise_coefficients` and PyTorch's max-pool.
    """
    a = z.clamp(min=0)
    u, v = elementwise_coefficients(z, positive, negative, a, rule, alpha, epsilon)
    pool = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}[z.dim()]
    # At least one image: max_pool1d takes no empty batch.
    images = a.double() if len(a) else torch.zeros(1, *a.shape[1:], dtype=torch.float64, device=a.device)
    pooled, index = pool(images, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    return pooled[: len(a)].to(z.dtype), index[: len(a)], u, v
