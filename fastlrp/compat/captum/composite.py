"""Captum's assignment of rules to modules as a composite, and its two rules that fastlrp has no equal of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from fastlrp import rules
from fastlrp.compat.captum.graph import PART, TIMES, layers_behind
from fastlrp.compat.captum.rules import Asked
from fastlrp.compat.captum.second_pass import changed_forward, changes
from fastlrp.composites import Composite, Layer
from fastlrp.kinds.jacobian import vjp
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer

Forward = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class TimesInput(rules.Rule):
    """``R_in = x R_out``: what arrives from functional code at a tensor that a layer with a rule reads, too."""


@dataclass(frozen=True, eq=False)
class Proportional(rules.Custom):
    """``R_i = x_i (dz/dx_i)^T R / st(z)`` for any module, ``z`` its output under the changed weight.

    Args:
        asked: Captum's rule. path, module: where it is attached.
    """

    linear_in_relevance = True
    asked: Asked
    path: str
    module: nn.Module

    def propagate(
        self, forward: Forward, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        z = output
        if changes(self.module, self.asked):
            forward = partial(changed_forward, self.module, self.asked)
            z = forward(*inputs)
        s = relevance * Stabilizer(self.asked.epsilon).reciprocal(z).unsqueeze(1)
        gradients = vjp(forward, inputs, s)
        return tuple(x.unsqueeze(1) * c for x, c in zip(inputs, gradients, strict=True))


@dataclass(frozen=True, eq=False)
class Same(rules.Custom):
    """``R_in = R_out`` for every input: IdentityRule where it is not simply passed on."""

    linear_in_relevance = True
    path: str

    def propagate(
        self, forward: Forward, inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        for x in inputs:
            if x.shape != output.shape:
                raise ValueError(
                    f"IdentityRule on {self.path}: its input {tuple(x.shape)} and output {tuple(output.shape)} have "
                    "different shapes. Attach another rule to it, EpsilonRule for one"
                )
        return (relevance,) * len(inputs)


@dataclass(frozen=True)
class ModuleRules(Composite):
    """Rules by module, the plain gradient everywhere else.

    Args:
        asked: what is asked of each layer, by path. modules: those layers.
    """

    asked: Mapping[str, Asked] = field(default_factory=dict, hash=False)
    modules: Mapping[str, nn.Module] = field(default_factory=dict, hash=False)

    def rule_for(self, layer: Layer) -> Rule | None:
        """The rule of an operation, which stands in a layer, at its edge, or in functional code.

        Raises:
            TypeError: for a layer that has neither a rule nor a default.
        """
        if layer.operation == TIMES:
            readers = [self.asked[path] for path in layers_behind(layer.path)]
            return TimesInput() if any(reader.multiplies_by_input for reader in readers) else rules.Pass()
        asked = self.asked.get(layer.path)
        if asked is None:
            return rules.Gradient()
        if layer.operation == PART:
            kept = asked.name in ("epsilon", "gamma", "alpha1_beta0")
            return rules.Norm(asked.epsilon) if kept else rules.Pass()
        if asked.name == "own":
            return asked.own
        if asked.name in ("pass", "carry"):
            return rules.Pass()
        if asked.name == "identity":
            passes = layer.kind in ("activation", "normalization", "batch_norm")
            return rules.Pass() if passes else Same(layer.path)
        if asked.name == "none":
            raise TypeError(self._no_rule(layer.path))
        return self._proportional(layer, asked)

    def _proportional(self, layer: Layer, asked: Asked) -> Rule:
        module, e = self.modules[layer.path], asked.epsilon
        if layer.kind in ("conv", "linear") and isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            if asked.name == "gamma":
                return rules.PlainGamma(asked.gamma, e, asked.zero_bias, modify_bias=False)
            if asked.name == "alpha1_beta0":
                return rules.ModifiedWeights(asked.weight, e, asked.zero_bias, str(asked), modify_bias=False)
            return rules.Epsilon(e)
        unchanged = not changes(module, asked)
        if unchanged and layer.kind in ("conv", "linear", "batch_norm"):
            return rules.Epsilon(e)
        if unchanged and layer.kind in ("add", "avg_pool", "adaptive_avg_pool", "linear_map", "max_pool"):
            return rules.Norm(e)
        return Proportional(asked, layer.path, module)

    def _no_rule(self, path: str) -> str:
        name = type(self.modules[path]).__name__
        return (
            f"module {path!r} of type {name} has no rule, and there is no default for that type. Attach one that is "
            f"appropriate, model.{path}.rule = EpsilonRule(), IdentityRule() or a rule of fastlrp.rules; or, for a "
            "rule on each operation inside of it, use fastlrp.Explainer"
        )
