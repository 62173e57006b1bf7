"""The rules of LRP: one small frozen dataclass each, with its formula and its source.

Notation: ``x`` layer input, ``z = Wx + b`` pre-activation, ``R`` relevance of the output, ``st`` the
:class:`~fastlrp.stabilizer.Stabilizer`; ``w+ = max(w, 0)``, ``w- = min(w, 0)``, and for any sign of ``x``

    P = sum_i (x_i w_i)+,   N = sum_i (x_i w_i)-      (no bias; z = P + N + b)

A rule is data. :mod:`fastlrp.plan` turns it into coefficients that are computed once per sample;
:mod:`fastlrp.reference` states it again in plain z, s, c, R steps, and both must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.stabilizer import Stabilizer


class Rule:
    """Base of all rules. To write your own, see :class:`ModifiedWeights` and :class:`Custom`."""

    linear_in_relevance = True
    """False where propagation clips relevance (deconvnet, guided backprop): such plans cannot propagate a basis."""

    def __post_init__(self) -> None:
        """Called by every rule's constructor: a stabilizer that is none is noticed there, not at the first capture."""
        if hasattr(self, "stabilizer"):
            Stabilizer.ensure(self.stabilizer)

    def __str__(self) -> str:
        return repr(self)


def _check_bounds(name: str, low: Any, high: Any) -> None:
    try:
        ordered = bool((torch.as_tensor(low) <= torch.as_tensor(high)).all())
    except RuntimeError as error:
        raise ValueError(f"{name}: low and high do not broadcast against each other: {error}") from error
    if not all(bool(torch.isfinite(torch.as_tensor(bound)).all()) for bound in (low, high)):
        raise ValueError(f"{name}: low and high must be finite, got low={low!r}, high={high!r}")
    if not ordered:
        raise ValueError(f"{name}: low must not exceed high, got low={low!r}, high={high!r}")


def _extent(bound: Any) -> str:
    """A bound in one line: a number, or the range of a tensor's entries."""
    if not isinstance(bound, Tensor):
        return f"{bound:g}"
    low, high = float(bound.min()), float(bound.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-epsilon: ``R_i = sum_j x_i w_ij / st(z_j) R_j``; with ``epsilon=0`` it is LRP-0.

    Args:
        epsilon: number (absolute) or :class:`Stabilizer`.
        zero_bias: leave the bias out of the denominator.

    Source: Bach et al. 2015, eq. 58.
    """

    epsilon: float | Stabilizer = 1e-6
    zero_bias: bool = False

    @property
    def stabilizer(self) -> float | Stabilizer:
        return self.epsilon


@dataclass(frozen=True)
class ZPlus(Rule):
    """LRP-z+ (alpha1 beta0): ``R_i = sum_j (x_i w_ij)+ / st(P_j + b_j+) R_j``.

    Source: Montavon et al. 2017, eq. 15; for inputs of both signs Bach et al. 2015, eq. 60 with beta = 0.
    """

    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """LRP-alpha-beta: ``R_i = sum_j (alpha (x_i w_ij)+ / st(P_j + b_j+) - beta (x_i w_ij)- / st(N_j + b_j-)) R_j``.

    Args:
        alpha, beta: ``alpha >= 0``, ``alpha - beta = 1``. With ``alpha < 1`` both parts add up (``alpha = 0``: the
            negative part alone).

    Source: Bach et al. 2015, eq. 60.

    Raises:
        ValueError: if ``alpha - beta`` is not 1 or ``alpha`` is negative.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.alpha < math.inf and abs(self.alpha - self.beta - 1) <= 1e-6):
            raise ValueError(
                f"AlphaBeta: needs a finite alpha >= 0 and alpha - beta = 1 (so that relevance is conserved), "
                f"got alpha={self.alpha}, beta={self.beta}"
            )


@dataclass(frozen=True)
class Gamma(Rule):
    """Generalised LRP-gamma, for inputs of both signs.

    ``R_i = sum_j (x_i w_ij + gamma (x_i w_ij)+) / st(z_j + gamma (P_j + b_j+)) R_j`` where ``z_j > 0``,
    the same with ``-``, ``N`` and ``b-`` where ``z_j < 0``, nothing where ``z_j = 0``.

    Source: Andeol et al. 2021; Montavon et al. 2019, section 10.2.3, for ``x >= 0``.
    """

    gamma: float = 0.25
    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"Gamma: gamma must be >= 0 and finite, got {self.gamma}")


@dataclass(frozen=True)
class ModifiedWeights(Rule):
    """Any rule of the form ``R_i = x_i sum_j rho(w_ij) / st(sum_i x_i rho(w_ij) + rho(b_j)) R_j``.

    The shortest way to a rule of your own; see ``examples/own_rule.py``.

    Args:
        modify: ``rho``, applied element-wise to the (batch-norm folded) weight and to the bias.
        name: how the plan shows it.
        modify_bias: ``False`` leaves the bias in the denominator as it is (Captum does).

    Source: Montavon et al. 2019, eq. 10.2 to 10.4.
    """

    modify: Callable[[Tensor], Tensor]
    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False
    name: str = "ModifiedWeights"
    modify_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.modify):
            raise TypeError(f"ModifiedWeights: modify must be a function of a tensor, got {type(self.modify).__name__}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class PlainGamma(Rule):
    """LRP-gamma as first published: ``rho(w) = w + gamma w+`` for weight and bias, no split by the sign of ``x``.

    Args:
        modify_bias: ``False`` leaves the bias in the denominator as it is (Captum does).

    Source: Montavon et al. 2019, section 10.2.3.
    """

    gamma: float = 0.25
    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False
    modify_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"PlainGamma: gamma must be >= 0 and finite, got {self.gamma}")

    def modify(self, w: Tensor) -> Tensor:
        return w + self.gamma * w.clamp(min=0)


@dataclass(frozen=True, eq=False)
class ZBox(Rule):
    """LRP-zB for inputs in a box: ``R_i = sum_j (x_i w_ij - l_i w_ij+ - h_i w_ij-) / st(z_j - l W+ - h W-) R_j``.

    Args:
        low, high: lowest and highest possible input, number or tensor that broadcasts to ``(B, C, H, W)``
            (``(1, 3, 1, 1)`` for bounds per channel), in the units of the model's own (normalised) input.

    Source: Montavon et al. 2017, eq. 13.
    """

    low: float | Tensor
    high: float | Tensor
    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bounds("ZBox", self.low, self.high)

    def __str__(self) -> str:
        return f"ZBox({_extent(self.low)}, {_extent(self.high)}, {self.stabilizer})"


@dataclass(frozen=True)
class WSquare(Rule):
    """LRP-w2: ``R_i = sum_j w_ij^2 / st(sum_i w_ij^2 + b_j^2) R_j``.

    Source: Montavon et al. 2017, eq. 12.
    """

    stabilizer: float | Stabilizer = 1e-6
    zero_bias: bool = False


@dataclass(frozen=True)
class Flat(Rule):
    """LRP-flat: each output's relevance in equal shares to all inputs it sees, ``R_i = sum_j 1 / st(sum_i 1) R_j``.

    Source: Lapuschkin et al. 2019.
    """

    stabilizer: float | Stabilizer = 1e-6


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged: element-wise activations, normalisations, gates."""


@dataclass(frozen=True)
class Norm(Rule):
    """In proportion to the contribution: ``R_i = x_i (dy/dx)^T R / st(y)``: sums, average pools, linear maps.

    Args:
        of_sum: at an average pool the denominator is the sum of the window, not its mean: ``x_i / st(sum_i x_i)``.
            They differ in what epsilon weighs; the LRP Toolbox takes the sum.

    Source: Bach et al. 2015, eq. 56; Zennit's rule of this name.
    """

    stabilizer: float | Stabilizer = 1e-6
    of_sum: bool = False


@dataclass(frozen=True)
class Gradient(Rule):
    """The layer's own gradient: what flows is ``dy/dx``, not relevance."""


@dataclass(frozen=True)
class Deconvnet(Rule):
    """At a ReLU: what flows is clipped, ``R_in = max(R, 0)``. Source: Zeiler and Fergus 2014."""

    linear_in_relevance = False


@dataclass(frozen=True)
class GuidedBackprop(Rule):
    """At a ReLU: gradient and clipping, ``R_in = 1[x > 0] max(R, 0)``. Source: Springenberg et al. 2015."""

    linear_in_relevance = False


class Custom(Rule):
    """A rule written out: subclass it and define :meth:`propagate`.

    For operations that fastlrp does not know, give an instance to :func:`fastlrp.register_rule`. Set
    ``linear_in_relevance = True`` if what it returns is linear in ``relevance``: then plans with it may propagate a
    basis of a narrow layer instead of each target.
    """

    linear_in_relevance = False

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Relevance of the inputs from that of the output.

        Args:
            forward: the operation as a function of its activation inputs (weights are bound in).
            inputs: activations, each ``(B, ...)``.
            output: ``forward(*inputs)``, ``(B, ...)``.
            relevance: ``(B, K, *output.shape[1:])``.

        Returns:
            for each input its relevance ``(B, K, *input.shape[1:])``, or None for none.
        """
        raise NotImplementedError(f"{type(self).__name__} must define propagate(forward, inputs, output, relevance)")


AFFINE_RULES = (Epsilon, ZPlus, AlphaBeta, Gamma, ModifiedWeights, PlainGamma, ZBox, WSquare, Flat)
"""Rules that need a layer with a weight."""
