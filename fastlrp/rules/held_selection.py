"""The rule of MambaLRP at products: what selects is held fixed."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.rules.value_only import ValueOnly


@dataclass(frozen=True)
class HeldSelection(ValueOnly):
    """In a state-space layer, all of a product's relevance to the factor that carries the sequence.

    Of ``h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t`` and ``y_t = C_t h_t`` the factors ``exp(Delta A)``, ``Delta``,
    ``B`` and ``C`` count as constants, so that the layer is a linear recurrence, whose transpose leads back to ``u``:
    ``c_u_t = Delta_t B_t c_h_t``, ``c_h_t = C_t c_y_t + exp(Delta_{t+1} A) c_h_{t+1}``. Any other product gives half to
    each of two signals and nothing to gates: of ``y silu(z)``, half to ``y`` and half to ``z``.

    Which factors select: :mod:`fastlrp.capture.patterns.selection`.

    Args:
        stabilizer: of the denominators, a number or a :class:`~fastlrp.Stabilizer`. At an element-wise product nothing
            is divided, and it has no effect.

    Example::

        mine = composites.attnlrp().with_entries((composites.kind("product"), rules.HeldSelection()))

    Source: Rezaei Jafari et al. 2024, MambaLRP: Explaining Selective State Space Sequence Models, section 4: the SSM
    layer, SiLU and the multiplicative gate.
    """
