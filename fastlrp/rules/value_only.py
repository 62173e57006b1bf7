"""The rule of CP-LRP at attention and products: all to the values, nothing to the weights."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.rule import Rule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class ValueOnly(Rule):
    """Attention weights and gates are held constant: ``R_V = V * (P^T (R / st(y)))``, nothing to queries and keys.

    At a product of two activations: all to the factor that is no attention weight, half to each where none is; nothing
    to the kernel of a convolution that is computed from the input. At an element-wise product: all to the signal, where
    what an activation made counts as a gate too (``act(g) * u``: all to ``u``), also if it is written out
    (``g * sigmoid(g)``), masked, clamped, or times a constant.

    Args:
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`. At an element-wise product nothing
            is divided, and it has no effect.

    Example::

        mine = composites.attnlrp().with_entries((composites.kind("attention"), rules.ValueOnly()))

    Source: Ali et al. 2022 (CP-LRP), eq. 9 and 10: the attention head with constant weights.
    """

    stabilizer: float | Stabilizer = 1e-6
    means = ("attention", "product", "mul")
