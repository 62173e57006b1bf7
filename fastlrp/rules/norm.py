"""In proportion to the contribution."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Norm(Rule):
    """In proportion to the contribution: ``R_i = x_i (dy/dx)^T R / st(y)``: sums, average pools, linear maps.

    Args:
        of_sum: at an average pool the denominator is the sum of the window, not its mean: ``x_i / st(sum_i x_i)``.
            They differ in what epsilon weighs; the LRP Toolbox takes the sum.
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.kind("adaptive_avg_pool"), rules.Norm(0.0)))

    Source: Bach et al. 2015, eq. 56; Zennit's rule of this name.
    """

    stabilizer: float | Stabilizer = 1e-6
    of_sum: bool = False
