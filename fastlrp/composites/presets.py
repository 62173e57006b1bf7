"""The presets, under Zennit's names and with its parameters: which rule on which kind of layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastlrp import rules
from fastlrp.composites.composite import Composite, Matcher, MaxPoolMode, first, kind
from fastlrp.composites.matchers import Everything
from fastlrp.kinds.registry import KIND
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer

Number = float | Stabilizer


def everything_else(stabilizer: Number, sums: Rule | None = None) -> tuple[tuple[Matcher, Rule], ...]:
    """What all LRP presets do with layers that have no weight."""
    proportional = sums or rules.Norm(stabilizer)
    given = [(known.name, known.preset(proportional)) for known in KIND.values() if known.preset is not None]
    return tuple((kind(name), rule) for name, rule in given)


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


def attnlrp(
    gamma: float | None = None,
    conv_gamma: float | None = None,
    epsilon: Number = 0.0,
    stabilizer: Number = 1e-6,
    max_pool: MaxPoolMode = "winner",
) -> Composite:
    """AttnLRP: attention by the uniform rule, the softmax by its Taylor expansion, norms with sigma held fixed.

    In terms of what flows, ``c = R / x``, with epsilon 0 (gradient times input):

    - layers with a weight, sums, pools, means: ``c`` passes the transposed map, the epsilon rule (eq. 8);
    - products of two activations: half to each, ``c_A = c_y B^T / 2`` (uniform rule, eq. 7); gates get nothing;
    - attention: shares 1/4, 1/4, 1/2 of queries, keys, values, from eq. 7 twice and prop. 3.1 (softmax);
    - recurrent layers: signals take all, gates nothing (Arras et al. 2017);
    - activations: ``R`` is unchanged, ``c_u = c_a act(u) / u`` (identity rule, eq. 9);
    - layer, RMS, group and instance norms: sigma counts as a constant (prop. 3.4).

    Args:
        gamma: of the generalised gamma rule on linear layers; None for the epsilon rule.
        conv_gamma: the same on convolutions. For vision transformers the authors recommend ``gamma=0.05``,
            ``conv_gamma=0.25``.
        epsilon: of the epsilon rule and of every other quotient; 0 means the limit of epsilon to 0
            (:meth:`fastlrp.Stabilizer.limit`), in which nothing is divided.
        stabilizer: of the gamma rule.
        max_pool: who takes the relevance of max-pools.

    Example::

        relevance = fastlrp.explain(words, ids, "top3", composites.attnlrp(gamma=0.05), at=-1)  # (2, 3, 4)

    Source: Achtibat et al. 2024, AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers.
    """
    small = _limit_of(epsilon)
    entries = (
        *_layers_with_weights(gamma, conv_gamma, small, stabilizer),
        (kind("normalization"), rules.FixedSigma(small)),
        (kind("activation", "mul"), rules.Pass(chained=small.in_limit)),
        *everything_else(small),
    )
    return Composite(entries, max_pool, "attnlrp")


def cp_lrp(
    gamma: float | None = None,
    conv_gamma: float | None = None,
    epsilon: Number = 0.0,
    stabilizer: Number = 1e-6,
    max_pool: MaxPoolMode = "winner",
) -> Composite:
    """CP-LRP: attention weights and gates are constants, so that all relevance of attention goes to the values.

    Everything else as in :func:`attnlrp`, with the same parameters: queries and keys get nothing; of a gated MLP
    ``act(g) * u`` the signal ``u`` takes all; norms have sigma held fixed. Vision transformers: ``gamma=0.05``,
    ``conv_gamma=0.25``.

    Args:
        gamma, conv_gamma, epsilon, stabilizer, max_pool: see :func:`attnlrp`.

    Example::

        relevance = reader.forward(ids).under(composites.cp_lrp()).relevance(3, at=-1)

    Source: Ali et al. 2022, XAI for Transformers: Better Explanations through Conservative Propagation, eq. 9 to 11.
    """
    small = _limit_of(epsilon)
    base = attnlrp(gamma, conv_gamma, epsilon, stabilizer, max_pool)
    return base.with_entries((kind("attention", "product", "mul"), rules.ValueOnly(small)), name="cp_lrp")


def mamba_lrp(
    gamma: float | None = None,
    conv_gamma: float | None = None,
    epsilon: Number = 0.0,
    stabilizer: Number = 1e-6,
    max_pool: MaxPoolMode = "winner",
) -> Composite:
    """MambaLRP: state-space layers with what selects held fixed; SiLU by the identity rule, half at the gate.

    Everything else as in :func:`attnlrp`, with the same parameters. ``exp(Delta A)``, ``Delta``, ``B`` and ``C`` count
    as constants (:class:`~fastlrp.rules.HeldSelection`), ``y silu(z)`` gives half to ``y`` and half to ``z``, RMS norms
    have sigma held fixed.

    Source: Rezaei Jafari et al. 2024, MambaLRP: Explaining Selective State Space Sequence Models, section 4.
    """
    small = _limit_of(epsilon)
    base = attnlrp(gamma, conv_gamma, epsilon, stabilizer, max_pool)
    return base.with_entries((kind("product", "mul"), rules.HeldSelection(small)), name="mamba_lrp")


def _limit_of(epsilon: Number) -> Stabilizer:
    found = Stabilizer.ensure(epsilon)
    return Stabilizer.limit() if found == Stabilizer(0.0) else found


def _layers_with_weights(
    gamma: float | None, conv_gamma: float | None, epsilon: Stabilizer, stabilizer: Number
) -> tuple[tuple[Matcher, Rule], ...]:
    plain = rules.Epsilon(epsilon)
    return (
        (kind("conv"), plain if conv_gamma is None else rules.Gamma(conv_gamma, stabilizer)),
        (kind("linear"), plain if gamma is None else rules.Gamma(gamma, stabilizer)),
        (kind("batch_norm"), plain),
    )


PRESETS: dict[str, Callable[..., Composite]] = {
    f.__name__: f
    for f in (
        epsilon_plus, epsilon_plus_flat, epsilon_gamma_box, epsilon_alpha2_beta1, epsilon_alpha2_beta1_flat,
        deconvnet, guided_backprop, excitation_backprop, gradient, lrp0, epsilon, gamma, alpha_beta,
        zplus, wsquare, flat, deep_taylor, attnlrp, cp_lrp, mamba_lrp,
    )
}  # fmt: skip
"""Name -> function of every preset, as :class:`fastlrp.Explainer` takes them by name."""
