"""The uniform rule of AttnLRP at products of two activations and at attention."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Uniform(Rule):
    """Both factors of a product get half: ``R_A = A * ((R / st(y)) B^T) / 2``, ``R_B = B * (A^T (R / st(y))) / 2``.

    For ``y = A B`` where both factors are activations: matrix products, einsum, convolutions with a computed kernel.
    With ``epsilon = 0`` the two halves add up to ``R``. At attention ``softmax(Q K^T) V`` both products have it, and
    the softmax in between has :class:`~fastlrp.rules.Taylor`: in terms of gradients the shares of ``Q``, ``K``, ``V``
    are 1/4, 1/4, 1/2.

    Args:
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.kind("attention", "product"), rules.Uniform()))

    Source: Achtibat et al. 2024 (AttnLRP), eq. 7.
    """

    stabilizer: float | Stabilizer = 1e-6
    means = ("attention", "product")
