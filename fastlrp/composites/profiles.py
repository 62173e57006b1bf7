"""Profiles: whose conventions a preset follows. Stabilizers, biases and pools differ from software to software.

============== =================== ========================= ================================================
profile        stabilizer          pools                     what else
============== =================== ========================= ================================================
``zennit``     1e-6                in proportion; winner     the default: the presets as they are
``toolbox``    1e-16, pools 1e-12  the rule of the layers;   w2 and flat have neither bias nor stabilizer
                                   equal winners share
``tutorial``   +1e-9, always       max-pools as averages     epsilon is 0.25 of the root mean square; gamma is
               added                                         ``w + gamma w+`` for weight and bias
``captum``     1e-9                in proportion; winner     gamma and z+ clamp the weight alone, bias as it is
``innvestigate`` none (0/0 is 0)   in proportion; winner     epsilon is 1e-7
============== =================== ========================= ================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fastlrp import rules
from fastlrp.composites.advice import no_composite, unknown_preset
from fastlrp.composites.composite import Composite, MaxPoolMode, kind
from fastlrp.composites.everything_else import Number, everything_else
from fastlrp.composites.presets import PRESETS
from fastlrp.reference.redistribution import positive_part
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer

UNIFORM = ("lrp0", "epsilon", "gamma", "alpha_beta", "zplus", "wsquare", "flat")
"""Presets that give all layers with a weight one rule."""


def _same(rule: Rule) -> Rule:
    return rule


@dataclass(frozen=True)
class Profile:
    """The conventions of one piece of software.

    Attributes:
        name: of the software. stabilizer: of all rules but epsilon. epsilon: of that rule where none is given.
        pool_stabilizer: of average and sum pools. pools_follow: average pools take the rule of the layers with a
            weight where the preset has one for all. of_sum: see :class:`fastlrp.rules.Norm`. max_pool: see
            :class:`~fastlrp.composites.Composite`. adapt: this software's version of a rule.
    """

    name: str
    stabilizer: Number = 1e-6
    epsilon: Number = 1e-6
    pool_stabilizer: Number = 1e-6
    pools_follow: bool = False
    of_sum: bool = False
    max_pool: MaxPoolMode = "winner"
    adapt: Callable[[Rule], Rule] = _same

    def composite(self, preset: str, **parameters: Any) -> Composite:
        """A preset under these conventions.

        Args:
            preset: name of one of :data:`fastlrp.composites.PRESETS`.
            parameters: the preset's own, which have precedence over the profile's.

        Raises:
            ValueError: for an unknown preset. TypeError: for a parameter that it does not have.
        """
        make = PRESETS.get(preset)
        if make is None:
            raise ValueError(unknown_preset(preset, PRESETS))
        known = inspect.signature(make).parameters
        unknown = sorted(parameters.keys() - known.keys())
        if unknown:
            raise TypeError(f"{preset} has no parameter {unknown[0]!r}: it takes {', '.join(known) or 'none'}")
        if self.name == "zennit":
            return make(**parameters)
        defaults = {"stabilizer": self.stabilizer, "epsilon": self.epsilon, "max_pool": self.max_pool}
        given = {**{key: value for key, value in defaults.items() if key in known}, **parameters}
        base = make(**given)
        name = f"{preset} ({self.name})"
        if preset in UNIFORM:
            weighted, average, best = self._uniform(preset, base, "epsilon" in parameters)
            pools = ((kind("avg_pool", "adaptive_avg_pool"), average), (kind("max_pool"), best))
            entries = ((kind("conv", "linear"), weighted), *pools, *everything_else(self.stabilizer))
            return replace(base, entries=entries, name=name)
        if any(isinstance(rule, rules.Gradient) for _, rule in base.entries):
            return base
        pools = (
            (kind("avg_pool", "adaptive_avg_pool"), rules.Norm(self.pool_stabilizer, self.of_sum)),
            (kind("max_pool"), rules.Norm(self.pool_stabilizer)),
        )
        adapted = ((matcher, self.adapt(rule)) for matcher, rule in base.entries)
        return replace(base, entries=(*pools, *adapted), name=name)

    def _uniform(self, preset: str, base: Composite, explicit: bool) -> tuple[Rule, Rule, Rule]:
        """The rules of layers with a weight, average pools and max-pools; explicit: the user gave an epsilon."""
        rule = rules.Epsilon(self.stabilizer) if preset == "lrp0" else self.adapt(base.entries[0][1])
        follows = self.pools_follow and explicit and isinstance(rule, rules.Epsilon)
        stabilizer = rule.stabilizer if follows else self.pool_stabilizer  # type: ignore[attr-defined]
        average: Rule = rules.Norm(stabilizer, self.of_sum)
        best: Rule = rules.Norm(stabilizer)
        shares = rule.at_pools() if self.pools_follow and isinstance(rule, rules.WeightRule) else None
        if isinstance(shares, tuple):
            average = rule
        elif shares == "equal":
            average = best = rules.Flat(0.0)
        return rule, average, best


def _as_toolbox(rule: Rule) -> Rule:
    if isinstance(rule, rules.WSquare):
        return rules.WSquare(0.0, zero_bias=True)
    return rules.Flat(0.0) if isinstance(rule, rules.Flat) else rule


def _as_captum(rule: Rule) -> Rule:
    if isinstance(rule, rules.Gamma):
        return rules.PlainGamma(rule.gamma, rule.stabilizer, rule.zero_bias, modify_bias=False)
    if isinstance(rule, rules.ZPlus):
        name = "Alpha1_Beta0"
        return rules.ModifiedWeights(positive_part, rule.stabilizer, rule.zero_bias, name, modify_bias=False)
    return rule


def _as_tutorial(rule: Rule) -> Rule:
    if isinstance(rule, rules.Gamma):
        return rules.PlainGamma(rule.gamma, rule.stabilizer, rule.zero_bias)
    return rule


_ADDED = Stabilizer(1e-9, signed=False)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("zennit"),
        Profile("toolbox", 1e-16, 1e-16, 1e-12, True, True, "ties", _as_toolbox),
        Profile(
            "tutorial", _ADDED, Stabilizer(0.25, relative="tensor", signed=False), _ADDED,
            max_pool="average", adapt=_as_tutorial,
        ),
        Profile("captum", 1e-9, 1e-9, 1e-9, adapt=_as_captum),
        Profile("innvestigate", 0.0, 1e-7, 0.0),
    )
}  # fmt: skip
"""Profiles by name."""


def preset(name: str, profile: str = "zennit", **parameters: Any) -> Composite:
    """A preset under a profile's conventions, ``preset("epsilon", "toolbox", epsilon=0.1)``.

    Args:
        name: of a preset, a key of ``PRESETS``.
        profile: a key of ``PROFILES``; None is Zennit's conventions.
        parameters: of the preset.

    Raises:
        ValueError: for an unknown preset or profile. TypeError: for a parameter that the preset does not have.

    Example::

        as_the_toolbox_does = composites.preset("epsilon", "toolbox", epsilon=0.1)
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: expected one of {', '.join(PROFILES)}")
    return PROFILES[profile].composite(name, **parameters)


def resolve(composite: str | Composite, profile: str | None = None) -> Composite:
    """A composite from its name and a profile, or itself.

    Args:
        composite: a composite or the name of a preset.
        profile: see :func:`preset`.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), for a preset that needs parameters, or for
            a profile beside a composite that is already made. TypeError: for what is neither a name nor a composite.

    Example::

        assert composites.resolve("epsilon_plus").name == "epsilon_plus"
    """
    if isinstance(composite, Composite):
        if profile is not None:
            raise ValueError(
                f"a profile gives presets their numbers, and {composite.name!r} is already made: "
                f"use fastlrp.composites.preset(name, {profile!r}, …)"
            )
        return composite
    if not isinstance(composite, str):
        raise TypeError(no_composite(composite, PRESETS))
    if composite not in PRESETS:
        raise ValueError(unknown_preset(composite, PRESETS, ", or a Composite"))
    if composite == "epsilon_gamma_box":
        raise ValueError(
            "epsilon_gamma_box needs the bounds of the model's input: pass "
            "composite=fastlrp.composites.epsilon_gamma_box(low=…, high=…)"
        )
    return preset(composite, profile or "zennit")
