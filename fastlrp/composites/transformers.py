"""The presets for transformers and state-space models: AttnLRP, and two that differ from it at products."""

from __future__ import annotations

from fastlrp import rules
from fastlrp.composites.composite import Composite, Matcher, MaxPoolMode, kind
from fastlrp.composites.everything_else import Number, everything_else
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer


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

    Args:
        gamma, conv_gamma, epsilon, stabilizer, max_pool: see :func:`attnlrp`.

    Example::

        relevance = reader.forward(ids).under(composites.mamba_lrp()).relevance(3, at=-1)

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
