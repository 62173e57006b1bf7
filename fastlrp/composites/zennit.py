"""The presets that Zennit has, under its names in lower case and with its parameters."""

from __future__ import annotations

from torch import Tensor, nn

from fastlrp import rules
from fastlrp.composites.composite import Composite, Matcher, MaxPoolMode, first, kind
from fastlrp.composites.everything_else import Number, everything_else
from fastlrp.composites.matchers import Everything
from fastlrp.rules import Rule

_GRADIENT_ELSEWHERE: tuple[tuple[Matcher, Rule], ...] = ((Everything(), rules.Gradient()),)


def epsilon_plus(
    epsilon: Number = 1e-6, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """z+ on convolutions, epsilon on linear layers. Zennit's ``EpsilonPlus``.

    Args:
        epsilon: of the epsilon rule on linear layers, a number or a :class:`~fastlrp.Stabilizer`.
        stabilizer: of all other denominators.
        zero_bias: leave biases out of the denominators, so that they keep no share.
        max_pool: who takes the relevance of max-pools: ``"winner"``, ``"ties"``, ``"average"`` or ``"sum"``, see
            :class:`~fastlrp.Composite`.

    Example::

        relevance = fastlrp.explain(model, x, "top3", composites.epsilon_plus(epsilon=0.1))  # (2, 3, 3, 16, 16)
    """
    entries = (
        (kind("conv"), rules.ZPlus(stabilizer, zero_bias)),
        (kind("linear"), rules.Epsilon(epsilon, zero_bias)),
        *everything_else(stabilizer),
    )
    return Composite(entries, max_pool, "epsilon_plus")


def epsilon_plus_flat(
    epsilon: Number = 1e-6, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """:func:`epsilon_plus` with flat at the first layer. Zennit's ``EpsilonPlusFlat``.

    Args:
        epsilon, stabilizer, zero_bias, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.epsilon_plus_flat()).relevance("top1")
    """
    base = epsilon_plus(epsilon, stabilizer, zero_bias, max_pool)
    return base.with_entries((first(), rules.Flat(stabilizer)), name="epsilon_plus_flat")


def epsilon_gamma_box(
    low: float | Tensor,
    high: float | Tensor,
    epsilon: Number = 1e-6,
    gamma: float = 0.25,
    stabilizer: Number = 1e-6,
    zero_bias: bool = False,
    max_pool: MaxPoolMode = "winner",
) -> Composite:
    """zB on the first convolution, gamma on the others, epsilon on linear layers. Zennit's ``EpsilonGammaBox``.

    Args:
        low, high: bounds of the model's input, numbers or tensors that broadcast to it, ``(1, 3, 1, 1)``.
        epsilon, stabilizer, zero_bias, max_pool: see :func:`epsilon_plus`.
        gamma: of the gamma rule.

    Example::

        relevance = record.under(composites.epsilon_gamma_box(low=0.0, high=1.0)).relevance("top1")
    """
    entries = (
        (first("conv"), rules.ZBox(low, high, stabilizer)),
        (kind("conv"), rules.Gamma(gamma, stabilizer, zero_bias)),
        (kind("linear"), rules.Epsilon(epsilon, zero_bias)),
        *everything_else(stabilizer),
    )
    return Composite(entries, max_pool, "epsilon_gamma_box")


def epsilon_alpha2_beta1(
    epsilon: Number = 1e-6, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """alpha-beta (2, 1) on convolutions, epsilon on linear layers. Zennit's ``EpsilonAlpha2Beta1``.

    Args:
        epsilon, stabilizer, zero_bias, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.epsilon_alpha2_beta1()).relevance("top1")
    """
    entries = (
        (kind("conv"), rules.AlphaBeta(2.0, 1.0, stabilizer, zero_bias)),
        (kind("linear"), rules.Epsilon(epsilon, zero_bias)),
        *everything_else(stabilizer),
    )
    return Composite(entries, max_pool, "epsilon_alpha2_beta1")


def epsilon_alpha2_beta1_flat(
    epsilon: Number = 1e-6, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """:func:`epsilon_alpha2_beta1` with flat at the first layer. Zennit's ``EpsilonAlpha2Beta1Flat``.

    Args:
        epsilon, stabilizer, zero_bias, max_pool: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.epsilon_alpha2_beta1_flat()).relevance("top1")
    """
    base = epsilon_alpha2_beta1(epsilon, stabilizer, zero_bias, max_pool)
    return base.with_entries((first(), rules.Flat(stabilizer)), name="epsilon_alpha2_beta1_flat")


def deconvnet() -> Composite:
    """Gradient with clipping at every ReLU (Zeiler and Fergus 2014). Use with ``initial="one"``.

    Example::

        relevance = record.under(composites.deconvnet()).relevance("top1", initial="one")
    """
    return Composite(((nn.ReLU, rules.Deconvnet()), *_GRADIENT_ELSEWHERE), name="deconvnet")


def guided_backprop() -> Composite:
    """Gradient, clipped at every ReLU (Springenberg et al. 2015). Use with ``initial="one"``.

    Example::

        relevance = record.under(composites.guided_backprop()).relevance("top1", initial="one")
    """
    return Composite(((nn.ReLU, rules.GuidedBackprop()), *_GRADIENT_ELSEWHERE), name="guided_backprop")


def excitation_backprop(stabilizer: Number = 1e-6, zero_bias: bool = False) -> Composite:
    """z+ on every layer with a weight, in proportion at sums, gradient elsewhere (Zhang et al. 2016).

    Args:
        stabilizer, zero_bias: see :func:`epsilon_plus`.

    Example::

        relevance = record.under(composites.excitation_backprop()).relevance("top1", initial="one")
    """
    entries = (
        (kind("conv", "linear"), rules.ZPlus(stabilizer, zero_bias)),
        (kind("add", "avg_pool", "adaptive_avg_pool"), rules.Norm(stabilizer)),
        (kind("embedding"), rules.Pass()),
        *_GRADIENT_ELSEWHERE,
    )
    return Composite(entries, name="excitation_backprop")


def gradient() -> Composite:
    """The plain gradient, through the same kernels. Use with ``initial="one"``.

    Example::

        gradients = record.under(composites.gradient()).relevance([3, 1], initial="one")
    """
    return Composite(_GRADIENT_ELSEWHERE, name="gradient")
