"""In proportion to the contribution."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Norm(Rule):
    """In proportion to the contribution: ``R_i = x_i (dy/dx)^T R / st(y)``: sums, average pools, linear maps.

    Args:
        of_sum: at average pools, adaptive ones too, and means the denominator is the sum of the entries, not their
            mean: ``x_i / st(sum_i x_i)``. They differ in what epsilon weighs; the LRP Toolbox takes the sum. Where
            nothing is averaged the denominator is the sum already.
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`. At max-pools it counts where the
            composite has ``max_pool="average"`` or ``"sum"``; at ``logsumexp`` shares are those of a softmax, whose
            denominators are above zero and have none.

    Raises:
        TypeError: when a model is captured, for ``of_sum`` at bags of embeddings and ``scatter_reduce`` with means.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.kind("adaptive_avg_pool"), rules.Norm(0.0)))

    Source: Bach et al. 2015, eq. 56; Zennit's rule of this name.
    """

    stabilizer: float | Stabilizer = 1e-6
    of_sum: bool = False
