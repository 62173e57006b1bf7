"""Relevance passes unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged: element-wise activations, normalisations, gates.

    Args:
        chained: what flows on is relevance per unit of the input: at an activation ``a = act(u)`` it is
            ``c_u = c_a act(u) / u``, with the derivative ``act'(0)`` where ``u`` is 0; at a product with gates
            ``c_x = c_y`` times the gates. Relevance is the same, ``u c_u = a c_a``, but where ``u`` is 0 and ``act(0)``
            is not, as at ``exp(0)``: that is a constant, which keeps its relevance as a bias does. For rules in the
            limit of epsilon to 0 (:meth:`fastlrp.Stabilizer.limit`), which then need no quotient below.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.kind("activation"), rules.Pass()))

    Source: Achtibat et al. 2024 (AttnLRP), eq. 9 (identity rule).
    """

    chained: bool = False

    def __repr__(self) -> str:
        return "Pass(chained=True)" if self.chained else "Pass()"
