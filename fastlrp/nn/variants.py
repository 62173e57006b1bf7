"""The Toolbox's names for rules, ``("epsilon", 0.1)``, as composites of the ``toolbox`` profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastlrp.composites import PROFILES, Composite, Layer, Matcher
from fastlrp.rules import Rule

_NAMES = {
    "none": "simple",
    "simple": "simple",
    "epsilon": "epsilon",
    "eps": "epsilon",
    "alphabeta": "alphabeta",
    "alpha": "alphabeta",
    "flat": "flat",
    "ww": "ww",
    "w^2": "ww",
}
_SLOW = "_slow"
KNOWN = (
    "None or 'simple', 'epsilon' or 'eps', 'alphabeta' or 'alpha', 'flat', 'ww' or 'w^2', each with '_slow' or without"
)


@dataclass(frozen=True)
class Variant:
    """A rule by the Toolbox's name.

    Attributes:
        name: ``simple``, ``epsilon``, ``alphabeta``, ``flat`` or ``ww``. parameter: epsilon, or alpha. slow: computed
            by the reference.
    """

    name: str = "simple"
    parameter: float | None = None
    slow: bool = False

    @staticmethod
    def of(lrp_var: str | None, param: float | None = None) -> Variant:
        """From the arguments of ``lrp`` and ``set_lrp_parameters``.

        Raises:
            TypeError, ValueError: for an unknown name, a parameter that is missing, not a number or out of range.
        """
        if lrp_var is not None and not isinstance(lrp_var, str):
            raise TypeError(f"lrp_var must be {KNOWN}, got {lrp_var!r}")
        text = "none" if lrp_var is None else lrp_var.lower()
        name = _NAMES.get(text.removesuffix(_SLOW))
        if name is None:
            raise ValueError(f"unknown lrp_var {lrp_var!r}: expected {KNOWN}")
        if name in ("epsilon", "alphabeta"):
            parameter = _number(name, param)
        else:
            parameter = None  # The Toolbox ignores it too.
        return Variant(name, parameter, text.endswith(_SLOW))

    def composite(self) -> Composite:
        """The rules of a network in which all layers have this variant."""
        toolbox = PROFILES["toolbox"].composite
        if self.name == "simple":
            return toolbox("lrp0")
        if self.name == "epsilon":
            return toolbox("epsilon", epsilon=self.parameter)
        if self.name == "alphabeta":
            assert self.parameter is not None
            return toolbox("alpha_beta", alpha=self.parameter, beta=self.parameter - 1)
        return toolbox("flat" if self.name == "flat" else "wsquare")


def _number(name: str, param: Any) -> float:
    what = {"epsilon": "epsilon, a number >= 0", "alphabeta": "alpha, a number >= 0 (beta is 1 - alpha, and added)"}[
        name
    ]
    if isinstance(param, bool) or not isinstance(param, (int, float)):
        raise TypeError(f"'{name}' needs param = {what}, got {param!r}")
    if not param >= 0 or param == float("inf"):
        raise ValueError(f"'{name}' needs param = {what}, got {param!r}")
    return float(param)


def composite(assigned: Sequence[tuple[str, Variant]]) -> Composite:
    """The rules of a network in which the layers at these module paths have these variants."""
    variants = dict.fromkeys(variant for _, variant in assigned)
    made = {variant: variant.composite() for variant in variants}
    if len(made) == 1:
        return next(iter(made.values()))
    entries: list[tuple[Matcher, Rule]] = []
    for path, variant in assigned:
        for matcher, rule in made[variant].entries:
            assert callable(matcher)
            entries.append((_at(path, matcher), rule))
    rest = made[assigned[0][1]]
    return Composite((*entries, *rest.entries), rest.max_pool, "layer by layer (toolbox)")


def _at(path: str, matcher: Any) -> Matcher:
    def matches(layer: Layer) -> bool:
        return layer.path == path and bool(matcher(layer))

    return matches
