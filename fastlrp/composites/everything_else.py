"""What all LRP presets do with layers that have no weight."""

from __future__ import annotations

from fastlrp import rules
from fastlrp.composites.composite import Matcher, kind
from fastlrp.kinds.registry import KIND
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer

Number = float | Stabilizer


def everything_else(stabilizer: Number) -> tuple[tuple[Matcher, Rule], ...]:
    """The rule of every kind that has one in the presets."""
    proportional = rules.Norm(stabilizer)
    given = [(known.name, known.preset(proportional)) for known in KIND.values() if known.preset is not None]
    return tuple((kind(name), rule) for name, rule in given)
