"""The rule of AttnLRP at normalisations: their scale is held fixed."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class FixedSigma(Rule):
    """At ``y = w (x - mean(x)) / sigma + b`` the standard deviation ``sigma`` counts as a constant.

    What is left is an affine map, through which relevance goes in proportion:
    ``R_x = x * centre(w / sigma * R / st(y))`` where ``centre`` takes away the mean over what is normalised (an RMS
    norm takes none away, and there the rule is the identity). The bias ``b`` keeps its share.

    Args:
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.kind("normalization"), rules.FixedSigma()))

    Source: Achtibat et al. 2024 (AttnLRP), prop. 3.4, with the variance as a constant; Ali et al. 2022, eq. 11.
    """

    stabilizer: float | Stabilizer = 1e-6
    means = ("normalization",)
