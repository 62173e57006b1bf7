"""The presets by name."""

from __future__ import annotations

from collections.abc import Callable

from fastlrp.composites.composite import Composite
from fastlrp.composites.one_rule import alpha_beta, deep_taylor, epsilon, flat, gamma, lrp0, wsquare, zplus
from fastlrp.composites.transformers import attnlrp, cp_lrp, mamba_lrp
from fastlrp.composites.zennit import (
    deconvnet,
    epsilon_alpha2_beta1,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    excitation_backprop,
    gradient,
    guided_backprop,
)

PRESETS: dict[str, Callable[..., Composite]] = {
    f.__name__: f
    for f in (
        epsilon_plus, epsilon_plus_flat, epsilon_gamma_box, epsilon_alpha2_beta1, epsilon_alpha2_beta1_flat,
        deconvnet, guided_backprop, excitation_backprop, gradient, lrp0, epsilon, gamma, alpha_beta,
        zplus, wsquare, flat, deep_taylor, attnlrp, cp_lrp, mamba_lrp,
    )
}  # fmt: skip
"""Name -> function of every preset, as :class:`fastlrp.Explainer` takes them by name."""
