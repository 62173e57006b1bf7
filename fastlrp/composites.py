"""Which rule on which layer. Presets carry Zennit's names and parameters.

A :class:`Composite` is an ordered list of ``(matcher, rule)``; the first match wins. A matcher is

* a module type or a tuple of types, ``nn.Conv2d`` (a functional ``F.conv2d`` counts as one);
* a kind of operation: ``"conv"``, ``"linear"``, ``"batch_norm"``, ``"activation"``, ``"add"``, ``"avg_pool"``, … as
  ``kind("conv", "linear")``; or one operation, ``operation("amax")``;
* a module path with wildcards, ``"layer4.*"`` (with a rule for weights: the layers with weights there);
* a position among the layers with weights in execution order: ``first()``, ``last()``, ``span(0, 16)``;
* any predicate ``Layer -> bool``.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from fastlrp import rules
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer
from fastlrp.vocabulary import AFFINE_KINDS, KINDS

MaxPoolMode = Literal["winner", "ties", "average", "sum"]
Number = float | Stabilizer


@dataclass(frozen=True)
class Layer:
    """What a matcher sees of a layer.

    Attributes:
        path: dotted module path. module_type: type of that module. operation: ``conv2d``, ``relu``, ….
        kind: see :mod:`fastlrp.vocabulary`. index: position among convolutions and linear layers in execution order
            (from 0), None for other kinds. count: how many of those there are.
        kind_index: position among the layers of the same kind.
        like: module type that does what a functional call does.
    """

    path: str
    module_type: type | None
    operation: str
    kind: str
    index: int | None
    count: int
    kind_index: int
    like: type | None = None

    def is_a(self, *types: type) -> bool:
        """True if the layer's module, or the module that a functional call stands for, is of one of the types."""
        return any(t is not None and issubclass(t, types) for t in (self.module_type, self.like))


Predicate = Callable[[Layer], bool]
Matcher = type | tuple[type, ...] | str | Predicate


def _check_kinds(names: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}: expected {', '.join(KINDS)}")


def kind(*names: str) -> Predicate:
    """Matches operations of these kinds.

    Raises:
        ValueError: for a name that is no kind.
    """
    _check_kinds(names)
    return lambda layer: layer.kind in names


def operation(*names: str) -> Predicate:
    """Matches operations by their ATen name, ``operation("relu")``, ``operation("amax")``."""
    return lambda layer: layer.operation in names


def first(*names: str) -> Predicate:
    """Matches the first layer with a weight; with names, the first of those kinds (``first("conv")``)."""
    _check_kinds(names)
    if not names:
        return lambda layer: layer.index == 0
    if len(names) == 1:
        return lambda layer: layer.kind == names[0] and layer.kind_index == 0
    if set(names) == {"conv", "linear"}:
        return lambda layer: layer.index == 0
    raise ValueError(f"first() takes one kind, or 'conv' and 'linear', got {names}")


def last() -> Predicate:
    """Matches the last layer with a weight."""
    return lambda layer: layer.index is not None and layer.index == layer.count - 1


def span(start: int, stop: int | None = None) -> Predicate:
    """Matches layers with a weight number ``start`` to ``stop - 1`` as executed; negative counts from the end."""

    def match(layer: Layer) -> bool:
        return layer.index is not None and layer.index in range(layer.count)[slice(start, stop)]

    return match


def _predicate(matcher: Matcher, rule: Rule) -> Predicate:
    for_weights = isinstance(rule, rules.AFFINE_RULES)
    if isinstance(matcher, type):
        matcher = (matcher,)
    if isinstance(matcher, tuple) and all(isinstance(t, type) for t in matcher):
        return lambda layer: layer.is_a(*matcher)
    if isinstance(matcher, str):
        # A path names a part of the model: a rule for weights means the layers with weights in it.
        return lambda layer: (
            fnmatch.fnmatchcase(layer.path, matcher) and (not for_weights or layer.kind in AFFINE_KINDS)
        )
    if callable(matcher):
        return matcher
    raise TypeError(
        f"a composite's matcher is a module type, a tuple of types, a module path or a predicate, got {matcher!r}"
    )


@dataclass(frozen=True)
class Composite:
    """An assignment of rules to layers.

    Args:
        entries: ``(matcher, rule)`` in order of precedence.
        max_pool: who takes the relevance of a max-pool's output: the ``"winner"``, all ``"ties"`` in equal shares, or
            all entries of the window as in an ``"average"`` or ``"sum"`` pool.
        name: for people.

    Raises:
        TypeError: if an entry is not a matcher and a :class:`~fastlrp.rules.Rule`.
    """

    entries: tuple[tuple[Matcher, Rule], ...]
    max_pool: MaxPoolMode = "winner"
    name: str = "Composite"

    def __post_init__(self) -> None:
        for entry in self.entries:
            if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Rule)):
                raise TypeError(f"a composite's entry is (matcher, rule), got {entry!r}")
            _predicate(*entry)
        if self.max_pool not in ("winner", "ties", "average", "sum"):
            raise ValueError(f"max_pool must be 'winner', 'ties', 'average' or 'sum', got {self.max_pool!r}")
        object.__setattr__(self, "_matchers", tuple((_predicate(m, rule), rule) for m, rule in self.entries))

    def rule_for(self, layer: Layer) -> Rule | None:
        """The first entry's rule that matches, or None."""
        matchers: Sequence[tuple[Predicate, Rule]] = self._matchers  # type: ignore[attr-defined]
        return next((rule for matches, rule in matchers if matches(layer)), None)

    def check_paths(self, layers: Sequence[Layer]) -> None:
        """Raise ValueError if a module path of an entry matches none of the layers: it is probably mistyped."""
        paths = sorted({layer.path for layer in layers})
        for matcher, rule in self.entries:
            if isinstance(matcher, str) and not fnmatch.filter(paths, matcher):
                close = difflib.get_close_matches(matcher, paths, 3) or paths[:8]
                raise ValueError(
                    f"composite entry ({matcher!r}, {rule}) matches no layer of this model: its paths are, for "
                    f"example, {', '.join(map(repr, close))}"
                )

    def with_entries(self, *entries: tuple[Matcher, Rule], name: str | None = None) -> Composite:
        """The same composite with entries of higher precedence in front."""
        return replace(self, entries=(*entries, *self.entries), name=name or self.name)

    def __or__(self, other: Composite) -> Composite:
        """Entries of the left composite first, then those of the right one."""
        return replace(self, entries=(*self.entries, *other.entries), name=f"{self.name} | {other.name}")


def _everything_else(stabilizer: Number, sums: Rule | None = None) -> tuple[tuple[Matcher, Rule], ...]:
    """What all LRP presets do with layers that have no weight."""
    proportional = sums or rules.Norm(stabilizer)
    return (
        (kind("activation", "normalization", "mul", "batch_norm"), rules.Pass()),
        (kind("add", "avg_pool", "adaptive_avg_pool", "max_pool", "linear_map"), proportional),
    )


_GRADIENT_ELSEWHERE: tuple[tuple[Matcher, Rule], ...] = ((lambda layer: True, rules.Gradient()),)


def epsilon_plus(
    epsilon: Number = 1e-6, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """z+ on convolutions, epsilon on linear layers. Zennit's ``EpsilonPlus``."""
    entries = (
        (kind("conv"), rules.ZPlus(stabilizer, zero_bias)),
        (kind("linear"), rules.Epsilon(epsilon, zero_bias)),
        *_everything_else(stabilizer),
    )
    return Composite(entries, max_pool, "epsilon_plus")


def epsilon_plus_flat(
    epsilon: Number = 1e-6, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """:func:`epsilon_plus` with flat at the first layer. Zennit's ``EpsilonPlusFlat``."""
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
    """
    entries = (
        (first("conv"), rules.ZBox(low, high, stabilizer)),
        (kind("conv"), rules.Gamma(gamma, stabilizer, zero_bias)),
        (kind("linear"), rules.Epsilon(epsilon, zero_bias)),
        *_everything_else(stabilizer),
    )
    return Composite(entries, max_pool, "epsilon_gamma_box")


def epsilon_alpha2_beta1(
    epsilon: Number = 1e-6, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """alpha-beta (2, 1) on convolutions, epsilon on linear layers. Zennit's ``EpsilonAlpha2Beta1``."""
    entries = (
        (kind("conv"), rules.AlphaBeta(2.0, 1.0, stabilizer, zero_bias)),
        (kind("linear"), rules.Epsilon(epsilon, zero_bias)),
        *_everything_else(stabilizer),
    )
    return Composite(entries, max_pool, "epsilon_alpha2_beta1")


def epsilon_alpha2_beta1_flat(
    epsilon: Number = 1e-6, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """:func:`epsilon_alpha2_beta1` with flat at the first layer. Zennit's ``EpsilonAlpha2Beta1Flat``."""
    base = epsilon_alpha2_beta1(epsilon, stabilizer, zero_bias, max_pool)
    return base.with_entries((first(), rules.Flat(stabilizer)), name="epsilon_alpha2_beta1_flat")


def deconvnet() -> Composite:
    """Gradient with clipping at every ReLU (Zeiler and Fergus 2014). Use with ``initial="one"``."""
    return Composite(((nn.ReLU, rules.Deconvnet()), *_GRADIENT_ELSEWHERE), name="deconvnet")


def guided_backprop() -> Composite:
    """Gradient, clipped at every ReLU (Springenberg et al. 2015). Use with ``initial="one"``."""
    return Composite(((nn.ReLU, rules.GuidedBackprop()), *_GRADIENT_ELSEWHERE), name="guided_backprop")


def excitation_backprop(stabilizer: Number = 1e-6, zero_bias: bool = False) -> Composite:
    """z+ on every layer with a weight, in proportion at sums, gradient elsewhere (Zhang et al. 2016)."""
    entries = (
        (kind("conv", "linear"), rules.ZPlus(stabilizer, zero_bias)),
        (kind("add", "avg_pool", "adaptive_avg_pool"), rules.Norm(stabilizer)),
        *_GRADIENT_ELSEWHERE,
    )
    return Composite(entries, name="excitation_backprop")


def gradient() -> Composite:
    """The plain gradient, through the same kernels. Use with ``initial="one"``."""
    return Composite(_GRADIENT_ELSEWHERE, name="gradient")


def uniform(
    rule: Rule, stabilizer: Number = 1e-6, max_pool: MaxPoolMode = "winner", name: str | None = None
) -> Composite:
    """One rule for every layer with a weight (batch norms that cannot be folded pass), the usual ones elsewhere."""
    entries = ((kind("conv", "linear"), rule), *_everything_else(stabilizer))
    return Composite(entries, max_pool, name or str(rule))


def lrp0(max_pool: MaxPoolMode = "winner") -> Composite:
    """LRP-0 everywhere: epsilon with epsilon = 0, sums and pools included."""
    return uniform(rules.Epsilon(0.0), 0.0, max_pool, "lrp0")


def epsilon(epsilon: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner") -> Composite:
    """LRP-epsilon everywhere, sums and pools included."""
    return uniform(rules.Epsilon(epsilon, zero_bias), epsilon, max_pool, "epsilon")


def gamma(
    gamma: float = 0.25, stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner"
) -> Composite:
    """LRP-gamma on every layer with a weight."""
    return uniform(rules.Gamma(gamma, stabilizer, zero_bias), stabilizer, max_pool, "gamma")


def alpha_beta(
    alpha: float = 2.0,
    beta: float = 1.0,
    stabilizer: Number = 1e-6,
    zero_bias: bool = False,
    max_pool: MaxPoolMode = "winner",
) -> Composite:
    """LRP-alpha-beta on every layer with a weight."""
    return uniform(rules.AlphaBeta(alpha, beta, stabilizer, zero_bias), stabilizer, max_pool, "alpha_beta")


def zplus(stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner") -> Composite:
    """z+ on every layer with a weight."""
    return uniform(rules.ZPlus(stabilizer, zero_bias), stabilizer, max_pool, "zplus")


def wsquare(stabilizer: Number = 1e-6, zero_bias: bool = False, max_pool: MaxPoolMode = "winner") -> Composite:
    """w2 on every layer with a weight."""
    return uniform(rules.WSquare(stabilizer, zero_bias), stabilizer, max_pool, "wsquare")


def flat(stabilizer: Number = 1e-6, max_pool: MaxPoolMode = "winner") -> Composite:
    """Flat on every layer with a weight."""
    return uniform(rules.Flat(stabilizer), stabilizer, max_pool, "flat")


PRESETS: dict[str, Callable[..., Composite]] = {
    f.__name__: f
    for f in (
        epsilon_plus, epsilon_plus_flat, epsilon_gamma_box, epsilon_alpha2_beta1, epsilon_alpha2_beta1_flat,
        deconvnet, guided_backprop, excitation_backprop, gradient, lrp0, epsilon, gamma, alpha_beta,
        zplus, wsquare, flat,
    )
}  # fmt: skip


def resolve(composite: str | Composite, **parameters: Any) -> Composite:
    """A composite from its name, or itself.

    Raises:
        ValueError: for an unknown name (the message lists the known ones) or missing parameters.
        TypeError: for anything that is neither a name nor a composite.
    """
    if isinstance(composite, Composite):
        return composite
    if not isinstance(composite, str):
        raise TypeError(f"composite must be a name or a Composite, got {type(composite).__name__}")
    if composite not in PRESETS:
        raise ValueError(f"unknown composite {composite!r}: expected one of {', '.join(PRESETS)}, or a Composite")
    if composite == "epsilon_gamma_box" and not parameters:
        raise ValueError(
            "epsilon_gamma_box needs the bounds of the model's input: pass "
            "composite=fastlrp.composites.epsilon_gamma_box(low=…, high=…)"
        )
    return PRESETS[composite](**parameters)
