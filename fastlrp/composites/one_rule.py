"""The presets with one rule for every layer with a weight, and deep Taylor, which has another one at the bottom."""

from __future__ import annotations

from torch import Tensor

from fastlrp import rules
from fastlrp.composites.composite import Composite, MaxPoolMode, first, kind
from fastlrp.composites.everything_else import Number, everything_else
from fastlrp.rules import Rule


def uniform(
    rule: Rule, stabilizer: Number = 1e-6, max_pool: MaxPoolMode = "winner", name: str | None = None
) -> Composite:
    """One rule for every layer with a weight (batch norms that cannot be folded pass), the usual ones elsewhere.

    Args:
        rule: of convolutions and linear layers.
        stabilizer: of sums and pools.
        max_pool: see :func:`epsilon_plus`.
        name: how plans show the composite; the rule's own text unless given.

    Example::

        relevance = record.under(composites.uniform(rules.PlainGamma(0.1))).relevance("top1")
    """
    entries = ((kind("conv", "linear"), rule), *everything_else(stabilizer))
    return Composite(entries, max_pool, name or str(rule))


def lrp0(max_pool: MaxPoolMode = "winner") -> Composite:
    """LRP-0 everywhere: epsilon with epsilon = 0, sums and pools included.

    Args:
        max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.lrp0()).relevance("top1")
    """
    return uniform(rules.Epsilon(0.0), 0.0, max_pool, "lrp0")


def epsilon(epsilon: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner") -> Composite:
    """LRP-epsilon everywhere, sums and pools included.

    Args:
        epsilon: of all denominators.
        zero_bias, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.epsilon(0.01)).relevance("top1")
    """
    return uniform(rules.Epsilon(epsilon, zero_bias), epsilon, max_pool, "epsilon")


def gamma(
    gamma: float = 0.25, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """LRP-gamma on every layer with a weight.

    Args:
        gamma: of the gamma rule, at least 0.
        stabilizer, zero_bias, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.gamma(0.1)).relevance("top1")
    """
    return uniform(rules.Gamma(gamma, stabilizer, zero_bias), stabilizer, max_pool, "gamma")


def alpha_beta(
    alpha: float = 2.0,
    beta: float = 1.0,
    stabilizer: Number = 1e-6,
    zero_bias: bool = False,
    max_pool: MaxPoolMode = "winner",
) -> Composite:
    """LRP-alpha-beta on every layer with a weight.

    Args:
        alpha, beta: of the rule, with ``alpha - beta = 1``.
        stabilizer, zero_bias, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.alpha_beta(1.5, 0.5)).relevance("top1")
    """
    return uniform(rules.AlphaBeta(alpha, beta, stabilizer, zero_bias), stabilizer, max_pool, "alpha_beta")


def zplus(stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner") -> Composite:
    """z+ on every layer with a weight.

    Args:
        stabilizer, zero_bias, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.zplus()).relevance("top1")
    """
    return uniform(rules.ZPlus(stabilizer, zero_bias), stabilizer, max_pool, "zplus")


def wsquare(stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner") -> Composite:
    """w2 on every layer with a weight.

    Args:
        stabilizer, zero_bias, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.wsquare()).relevance("top1")
    """
    return uniform(rules.WSquare(stabilizer, zero_bias), stabilizer, max_pool, "wsquare")


def flat(stabilizer: Number = 1e-6, max_pool: MaxPoolMode = "winner") -> Composite:
    """Flat on every layer with a weight.

    Args:
        stabilizer, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.flat()).relevance("top1")
    """
    return uniform(rules.Flat(stabilizer), stabilizer, max_pool, "flat")


def deep_taylor(
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    stabilizer: Number = 1e-6,
    zero_bias: bool = True,
    max_pool: MaxPoolMode = "winner",
) -> Composite:
    """Deep Taylor decomposition: z+ in all layers but the first; there zB within bounds, w2 without.

    Args:
        low, high: bounds of the model's input, both or neither; numbers or tensors that broadcast to it,
            ``(1, 3, 1, 1)``. Without them the input may be any real number and the first layer gets w2. An input
            that is an activation itself (never negative) has ``low=0`` and z+ instead: ``zplus(zero_bias=True)``.
        stabilizer: of all denominators.
        zero_bias: leave biases out of the denominators. The decomposition is derived for ReLU networks whose biases
            are not positive: a negative bias only raises a neuron's threshold, the root point stays where it is, and
            no relevance is kept. A positive bias has no place in it; left out, all relevance still goes to the inputs.
            ``False`` gives positive biases their share, as :func:`~fastlrp.composites.zplus` does.
        max_pool: who takes the relevance of max-pools; average and sum pools share in proportion.

    The method explains a function that is never negative. Where scores can be negative, start from their positive
    part, as iNNvestigate does: ``initial=lambda scores: scores.clamp(min=0)``. iNNvestigate leaves biases out, too.
    It differs in two things: without bounds its first layer has z+ if a ReLU follows (w2 is for layers without one);
    sums and average pools have their gradient.

    Raises:
        ValueError: if one bound is given without the other, or ``low`` exceeds ``high``.

    Example::

        relevance = record.under(composites.deep_taylor(low=0.0, high=1.0)).relevance("top1")

    Source: Montavon et al. 2017, eq. 12, 13 and 15.
    """
    if (low is None) != (high is None):
        raise ValueError(
            f"deep_taylor needs both bounds of the model's input or neither, got low={low!r}, high={high!r}: for an "
            "unbounded input leave both out"
        )
    bottom: Rule = rules.WSquare(stabilizer, zero_bias)
    if low is not None and high is not None:
        bottom = rules.ZBox(low, high, stabilizer)
    entries = (
        (first(), bottom),
        (kind("conv", "linear"), rules.ZPlus(stabilizer, zero_bias)),
        *everything_else(stabilizer),
    )
    return Composite(entries, max_pool, "deep_taylor")
