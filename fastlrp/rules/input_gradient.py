"""The input times the operation's own gradient."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.plan.step_names import NO_RULE
from fastlrp.rules.rule import Rule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class InputGradient(Rule):
    """The input times the operation's gradient, per unit of its output: ``R_x = x * (dy/dx)^T (R / st(y))``.

    For any operation. It is exact for sums and linear maps, and conserves relevance where the operation has degree one
    (``f(t x) = t f(x)``); what the inputs do not get otherwise stands in the ledger's column "bias".

    Args:
        missing: True where the operation had no rule and ``unsupported="gradient"`` gave it this one.
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.operation("hypot"), rules.InputGradient()))

    Source: the first-order Taylor expansion without its constant term, as input times gradient has it for a whole
    network; Montavon et al. 2019, section 10.3.
    """

    stabilizer: float | Stabilizer = 1e-6
    missing: bool = False

    def __str__(self) -> str:
        return NO_RULE if self.missing else repr(self)
