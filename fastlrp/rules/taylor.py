"""The first-order rule of AttnLRP at a softmax."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule


@dataclass(frozen=True)
class Taylor(Rule):
    """At a softmax ``p = softmax(s)``: ``R_i = s_i (R_i^p - p_i sum_j R_j^p)``, its Taylor expansion at ``s``.

    In chained form this is the softmax's own gradient, ``c_s = p * (c_p - sum p c_p)``. It does not conserve: the
    expansion's constant term keeps its share, which the ledger shows as bias.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.kind("attention_weights"), rules.Taylor()))

    Source: Achtibat et al. 2024 (AttnLRP), prop. 3.1.
    """

    means = ("attention_weights",)
