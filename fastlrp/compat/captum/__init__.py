"""Captum's ``LRP`` and ``LayerLRP`` with its rules, its numbers and its return types, computed by fastlrp.

In place of ``from captum.attr import LRP, LayerLRP``::

    from fastlrp.compat.captum import LRP, LayerLRP

Rules are attached to modules as with Captum, ``module.rule = EpsilonRule(1e-3)``: Captum's own rule objects where it
is installed, those of the same names from here, or any rule of :mod:`fastlrp.rules`. Captum is never imported.
``docs/from_captum.md`` lists what is different.
"""

from fastlrp.compat.captum.layer_lrp import LayerLRP
from fastlrp.compat.captum.lrp import LRP
from fastlrp.compat.captum.rules import (
    Addition_Module,
    Alpha1_Beta0_Rule,
    EpsilonRule,
    GammaRule,
    IdentityRule,
    PropagationRule,
)

__all__ = [
    "LRP",
    "Addition_Module",
    "Alpha1_Beta0_Rule",
    "EpsilonRule",
    "GammaRule",
    "IdentityRule",
    "LayerLRP",
    "PropagationRule",
]
