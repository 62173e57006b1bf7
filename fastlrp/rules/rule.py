"""What all rules have in common, and what the rules for layers with a weight have.

Notation: ``x`` layer input, ``z = Wx + b`` pre-activation, ``R`` relevance of the output, ``st`` the
:class:`~fastlrp.stabilizer.Stabilizer`; ``w+ = max(w, 0)``, ``w- = min(w, 0)``, and for any sign of ``x``

    P = sum_i (x_i w_i)+,   N = sum_i (x_i w_i)-      (no bias; z = P + N + b)

A rule is data: a small frozen dataclass in a file of its own, with its formula and its source. The file states the rule
twice, independently: ``textbook`` in plain z, s, c, R steps (float64, the definition), and ``lower`` as steps whose
coefficients are computed once per sample. :meth:`fastlrp.Explainer.verify` compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from fastlrp.plan.builder import Builder
from fastlrp.plan.coefficients import Coefficients
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.steps import Flow
from fastlrp.plan.two_coefficients import scale_batch_norm, send_two_coefficients
from fastlrp.reference.redistribution import Affine, Ledger
from fastlrp.stabilizer import Stabilizer

_LONG_NUMBER = re.compile(r"\d+\.\d{8,}(e[+-]?\d+)?")

PoolShares = Literal["equal"] | tuple[float, float]
"""What a rule for weights comes to where every weight is one, as in the window of a pool: ``"equal"`` shares; or, as
``(alpha, beta)``, shares in proportion among the entries above zero and, apart from them, among those below."""


class Rule:
    """Base of all rules. See :class:`fastlrp.rules.ModifiedWeights` and :class:`fastlrp.rules.Custom` for your own."""

    linear_in_relevance = True
    """False where propagation clips relevance (deconvnet, guided backprop): such plans cannot propagate a basis."""

    means: ClassVar[tuple[str, ...] | None] = None
    """The kinds that a path or a module type means with this rule: it may stand for a part of a model with many kinds
    of operation, of which the rule is for some. None for all of them."""

    @property
    def grows(self) -> str:
        """Why relevance may become too large for a dtype by the rule's own definition, and what to do; for errors."""
        return ""

    @property
    def inner(self) -> tuple[Rule, ...]:
        """The rules that it is made of, if it is made of others."""
        return ()

    def __post_init__(self) -> None:
        """Called by every rule's constructor: a stabilizer that is none is noticed there, not at the first capture."""
        if hasattr(self, "stabilizer"):
            Stabilizer.ensure(self.stabilizer)

    def __str__(self) -> str:
        """As plans show it: numbers with as many digits as people read, 0.3 for 0.1 + 0.2."""
        return _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.6g}", repr(self))


def all_rules(rules: Iterable[Rule | None]) -> Iterator[Rule]:
    """The rules, and those that they are made of."""
    for rule in rules:
        if rule is not None:
            yield rule
            yield from all_rules(rule.inner)


def stabilizers(rules: Iterable[Rule | None]) -> Iterator[Stabilizer]:
    """Every stabilizer that one of the rules has."""
    for rule in rules:
        values: list[object] = [getattr(rule, field.name) for field in fields(rule)] if is_dataclass(rule) else []
        yield from (value for value in values if isinstance(value, Stabilizer))
        yield from stabilizers(rule.inner if rule is not None else ())


class WeightRule(Rule):
    """A rule for layers with a weight, and for pools, whose windows have a weight of one."""

    stabilizer: Any

    def textbook(self, layer: Affine, x: Tensor, R: Tensor) -> tuple[Tensor, Ledger]:
        """Relevance of the input ``x (B, ...)`` from that of the output ``R (B, K, ...)``, and what does not arrive."""
        raise NotImplementedError

    def lower(self, b: Builder, layer: AffineLayer, flow: Flow) -> None:
        """Append the steps that send ``flow`` from the layer's output to its input."""
        raise NotImplementedError

    def at_pools(self) -> PoolShares | None:
        """What it is at pools; None where it is not defined there."""
        return None

    def lower_batch_norm(self, b: Builder, layer: AffineLayer, flow: Flow) -> None:
        """The same at a batch norm that stands alone."""
        raise TypeError(f"{self} is not defined for {layer.node}: use Pass, Epsilon, ZPlus or Gamma")


class TwoCoefficientRule(WeightRule):
    """A rule of the form ``R_in = x * W^T(uR) + x+ * W+^T(vR) + x- * W-^T(vR)``: :mod:`fastlrp.plan.coefficients`."""

    def coefficients(self, b: Builder, layer: AffineLayer, flow: Flow, signed: bool) -> Coefficients:
        """``u`` and ``v`` times the arriving factor, and the weight that they go with.

        ``signed``: the input may be negative.
        """
        raise NotImplementedError

    def lower(self, b: Builder, layer: AffineLayer, flow: Flow) -> None:
        signed = not b.is_nonnegative(layer.x)
        send_two_coefficients(b, layer, flow, self.coefficients(b, layer, flow, signed), signed)

    def lower_batch_norm(self, b: Builder, layer: AffineLayer, flow: Flow) -> None:
        scale_batch_norm(b, layer, flow, self.coefficients(b, layer, flow, signed=True))
