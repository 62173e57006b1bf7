"""Captum's rule classes under their names, and what a rule object asks for as plain data.

Captum's own objects are recognised by the names of their classes, so that Captum need not be imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from fastlrp import rules
from fastlrp.stabilizer import Stabilizer

DEFAULT_EPSILON = 1e-9
"""What Captum adds to every denominator, with the denominator's sign."""

Name = Literal["epsilon", "gamma", "alpha1_beta0", "identity", "pass", "carry", "own", "none"]


class PropagationRule:
    """Base of the rules below.

    Attributes:
        STABILITY_FACTOR: epsilon of the denominator, ``z + STABILITY_FACTOR * sgn(z)``, ``sgn(0) = +1``.
    """

    STABILITY_FACTOR: float = DEFAULT_EPSILON

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({shown})"


class EpsilonRule(PropagationRule):
    """``R_i = x_i sum_j w_ij R_j / (z_j + epsilon sgn(z_j))``; any layer, ``w`` its derivative.

    Args:
        epsilon: of the denominator.

    Example::

        from fastlrp.compat.captum import EpsilonRule

        rule = EpsilonRule(1e-3)  # module.rule = rule
    """

    def __init__(self, epsilon: float = DEFAULT_EPSILON) -> None:
        self.STABILITY_FACTOR = epsilon


class GammaRule(PropagationRule):
    """:class:`EpsilonRule` with ``w + gamma max(w, 0)`` for the weight. The bias stays as it is, or is left out.

    Args:
        gamma: of the positive weights. set_bias_to_zero: leave the bias out.

    Example::

        from fastlrp.compat.captum import GammaRule

        rule = GammaRule(0.1)  # module.rule = rule
    """

    def __init__(self, gamma: float = 0.25, set_bias_to_zero: bool = False) -> None:
        self.gamma = gamma
        self.set_bias_to_zero = set_bias_to_zero


class Alpha1_Beta0_Rule(PropagationRule):  # noqa: N801
    """:class:`EpsilonRule` with ``max(w, 0)`` for the weight. The bias stays as it is, or is left out.

    Args:
        set_bias_to_zero: leave the bias out.

    Example::

        from fastlrp.compat.captum import Alpha1_Beta0_Rule

        rule = Alpha1_Beta0_Rule()  # module.rule = rule
    """

    def __init__(self, set_bias_to_zero: bool = False) -> None:
        self.set_bias_to_zero = set_bias_to_zero


class IdentityRule(EpsilonRule):
    """The relevance of the output is that of the input. Only for layers whose input and output have one shape.

    Args:
        epsilon: not used.

    Example::

        from fastlrp.compat.captum import IdentityRule

        rule = IdentityRule()  # module.rule = rule
    """


class Addition_Module(nn.Module):  # noqa: N801
    """``x1 + x2`` as a module, so that its relevance is shared in proportion.

    Example::

        from fastlrp.compat.captum import Addition_Module

        total = Addition_Module()(x, x)
    """

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return x1 + x2


_NAMES: dict[str, Name] = {
    "IdentityRule": "identity",
    "EpsilonRule": "epsilon",
    "GammaRule": "gamma",
    "Alpha1_Beta0_Rule": "alpha1_beta0",
}
_BEHAVIOUR = (
    "forward_hook", "forward_hook_weights", "forward_pre_hook_activations", "backward_hook_activation",
    "_manipulate_weights", "_create_backward_hook_input", "_create_backward_hook_output",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What happens to relevance at one module.

    Attributes:
        name: the rule; ``pass`` and ``carry`` are defaults of activations and of what only moves entries, ``own`` a
            rule of fastlrp's, ``none`` a module without rule and default.
        epsilon, gamma, zero_bias: the rule's numbers. own: fastlrp's rule.
        given_again: whether Captum gives an activation its first inputs again, as it does layers with a rule.
    """

    name: Name
    epsilon: float = DEFAULT_EPSILON
    gamma: float = 0.0
    zero_bias: bool = False
    own: rules.Rule | None = None
    given_again: bool = False

    @property
    def multiplies_by_input(self) -> bool:
        """Whether all that arrives at the module's input tensor is multiplied by it."""
        return self.name in ("epsilon", "gamma", "alpha1_beta0", "own")

    @property
    def changes_weights(self) -> bool:
        return self.name in ("gamma", "alpha1_beta0")

    def weight(self, w: Tensor) -> Tensor:
        """The weight that the rule sees."""
        if self.name == "gamma":
            return w + self.gamma * w.clamp(min=0)
        return w.clamp(min=0) if self.name == "alpha1_beta0" else w

    def __str__(self) -> str:
        bias = ", set_bias_to_zero=True" if self.zero_bias else ""
        return {
            "epsilon": f"EpsilonRule({self.epsilon:g})",
            "gamma": f"GammaRule({self.gamma:g}{bias})",
            "alpha1_beta0": f"Alpha1_Beta0_Rule({bias.removeprefix(', ')})",
            "identity": "IdentityRule()",
            "own": str(self.own),
        }.get(self.name, self.name)


def _from_captum(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "captum"


def is_rule(rule: Any) -> bool:
    """A rule of Captum's, one of the classes above, or a rule of fastlrp's."""
    bases = type(rule).__mro__
    foreign = any(cls.__name__ == "PropagationRule" and _from_captum(cls) for cls in bases)
    return isinstance(rule, (PropagationRule, rules.Rule)) or foreign


def is_addition(module: nn.Module) -> bool:
    """Captum's ``Addition_Module``, or the one above."""
    return isinstance(module, Addition_Module) or any(
        cls.__name__ == "Addition_Module" and _from_captum(cls) for cls in type(module).__mro__
    )


def check_rule(rule: Any, path: str) -> None:
    """Raise TypeError, as Captum does, if a module's attribute ``rule`` is no propagation rule."""
    if not is_rule(rule):
        raise TypeError(
            f"{path or 'the model'}.rule must be a propagation rule (EpsilonRule, GammaRule, Alpha1_Beta0_Rule, "
            f"IdentityRule, or a rule of fastlrp.rules), got {type(rule).__name__}: {rule!r}"
        )


def read_rule(rule: Any, path: str) -> Asked:
    """What a rule object asks for.

    Raises:
        TypeError: for what is no rule, and for subclasses with a behaviour of their own.
        ValueError: for numbers that no rule can have.
    """
    check_rule(rule, path)
    if isinstance(rule, rules.Rule):
        return Asked("own", own=rule)
    base = next((cls for cls in type(rule).__mro__ if cls.__name__ in _NAMES and _is_known(cls)), None)
    if base is None or any(getattr(type(rule), m, None) is not getattr(base, m, None) for m in _BEHAVIOUR):
        raise TypeError(
            f"{path}.rule is a {type(rule).__name__}, whose way of changing weights or gradients fastlrp cannot read. "
            f"Attach a rule of fastlrp instead, {path}.rule = fastlrp.rules.ModifiedWeights(rho, modify_bias=False) "
            "for a function of the weight, or a subclass of fastlrp.rules.Custom; or use captum.attr.LRP"
        )
    epsilon = float(rule.STABILITY_FACTOR)
    gamma, zero_bias = float(getattr(rule, "gamma", 0.0)), bool(getattr(rule, "set_bias_to_zero", False))
    try:
        Stabilizer(epsilon)
        rules.PlainGamma(gamma)
    except ValueError as error:
        raise ValueError(f"{path}.rule, {type(rule).__name__}: {error}") from error
    return Asked(_NAMES[base.__name__], epsilon, gamma, zero_bias)


def _is_known(cls: type) -> bool:
    return _from_captum(cls) or cls.__module__ == __name__
