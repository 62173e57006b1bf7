"""The fastlrp rule that does at one operation what one of Zennit's hooks does at its module."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from fastlrp import rules
from fastlrp.compat.zennit.own_rules import AsItIs, BetaSmooth, Proportional
from fastlrp.compat.zennit.recognise import Recognised, recognise, stabilizer
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer

Number = float | Stabilizer

_PASSES = ("activation", "batch_norm", "normalization", "conv", "linear", "unknown")
_SHARES = ("avg_pool", "adaptive_avg_pool", "linear_map", "add")


@dataclasses.dataclass(eq=False)
class Hooked:
    """One module with one of Zennit's hooks."""

    path: str
    module: nn.Module
    template: Any
    recognised: Recognised | None

    @staticmethod
    def of(path: str, module: nn.Module, template: Any) -> Hooked:
        # A composite puts a copy of the template on the module; a hook that copies badly is what its copy is.
        return Hooked(path, module, template, recognise(template.copy()))

    @property
    def passes(self) -> bool:
        return self.recognised is not None and self.recognised.name == "Pass"

    def rule(self, kind: str, operation: str) -> Rule:
        """The rule for an operation of this kind that is the whole module, or all of it that needs a rule."""
        r = self.recognised
        found = None if r is None else self._plain(r, kind, operation) or self._with_stabilizer(r, kind)
        return found or AsItIs(self.template, self.module, self.path)

    def for_weight(self) -> Rule | None:
        """The rule for the module's own weight, if the hook is one of those and treats weight and bias alone."""
        r = self.recognised
        st = _number(r)
        return None if r is None or st is None else self._weighted(r, st)

    def _plain(self, r: Recognised, kind: str, operation: str) -> Rule | None:
        if r.name == "Pass" and kind in _PASSES:
            return rules.Pass()
        if r.name == "ReLUDeconvNet" and kind == "activation":
            return rules.Deconvnet()
        if r.name == "ReLUGuidedBackprop" and operation == "relu":
            return rules.GuidedBackprop()
        if r.name == "ReLUBetaSmooth":
            return BetaSmooth(float(r.numbers["beta_smooth"]))
        return None

    def _with_stabilizer(self, r: Recognised, kind: str) -> Rule | None:
        st = _number(r)
        if st is None:
            return None
        if kind in ("conv", "linear"):
            return self._weighted(r, st)
        if r.name not in ("Epsilon", "Norm") or any(map(r.zeroes, self._parameters())):
            return None
        if kind == "batch_norm":
            return rules.Epsilon(st)
        return rules.Norm(st) if kind in _SHARES else Proportional(Stabilizer.ensure(st))

    def _parameters(self) -> list[str]:
        return [name for name, _ in self.module.named_parameters(recurse=False)]

    def _weighted(self, r: Recognised, st: Number) -> Rule | None:
        names = self._parameters()
        if "weight" not in names or set(names) - {"weight", "bias"} or r.zeroes("weight"):
            return None  # Zennit modifies whatever parameters the module has of its own.
        zero_bias = "bias" in names and r.zeroes("bias")
        if r.name in ("Epsilon", "Norm"):
            return rules.Epsilon(st, zero_bias)
        if r.name == "ZPlus":
            return rules.ZPlus(st, zero_bias)
        if r.name == "AlphaBeta":
            return rules.AlphaBeta(float(r.numbers["alpha"]), float(r.numbers["beta"]), st, zero_bias)
        if r.name == "Gamma" and not zero_bias:  # With it, Zennit goes by the sign of the output with its bias.
            return rules.Gamma(float(r.numbers["gamma"]), st)
        if r.name == "WSquare":
            return rules.WSquare(st, zero_bias)
        if r.name == "Flat":
            return rules.Flat(st)
        return self._box(r, st) if r.name == "ZBox" else None

    def _box(self, r: Recognised, st: Number) -> Rule | None:
        weight: Any = self.module.weight
        low, high = (_bound(r.numbers[key], weight.dim()) for key in ("low", "high"))
        return None if low is None or high is None else rules.ZBox(low, high, st)


def _number(r: Recognised | None) -> Number | None:
    """The hook's stabilizer, as a plain number where it is one."""
    st = None if r is None or r.stabilizer is None else stabilizer(r.stabilizer)
    return None if st is None else _simplest(st)


def _simplest(st: Stabilizer) -> Number:
    return st.epsilon if st.is_absolute else st


def _bound(bound: Any, dims: int) -> float | Tensor | None:
    """Zennit's bound, which may have a batch axis and may lack the last axes, as one of ours: ``(1, C, 1, 1)``."""
    if isinstance(bound, (int, float)):
        return float(bound)
    if not isinstance(bound, Tensor) or bound.dim() > dims:
        return None
    if bound.dim() == 0:
        return bound.detach()
    bound = bound.detach().reshape(*bound.shape, *(1,) * (dims - bound.dim()))
    if bound.shape[0] == 1:
        return bound
    return bound[:1] if bool((bound == bound[:1]).all()) else None


def scaled(rule: Rule, scale: float) -> Rule | None:
    """The same rule for a layer whose weight and bias are ``scale`` times as large; None if there is no such rule.

    Its denominators are ``scale`` times as large too (squares for w2), so the stabilizer must be.
    """
    if isinstance(rule, rules.Flat):
        return rule
    known = (rules.Epsilon, rules.ZPlus, rules.AlphaBeta, rules.Gamma, rules.ZBox, rules.WSquare)
    if type(rule) not in known:
        return None
    st = Stabilizer.ensure(rule.stabilizer)  # type: ignore[attr-defined]
    if st.relative is None:
        st = dataclasses.replace(st, epsilon=st.epsilon * (scale**2 if isinstance(rule, rules.WSquare) else scale))
    key = "epsilon" if isinstance(rule, rules.Epsilon) else "stabilizer"
    return dataclasses.replace(rule, **{key: _simplest(st)})  # type: ignore[type-var]
