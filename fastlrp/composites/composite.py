"""Which rule on which layer. The matching; presets are in :mod:`fastlrp.composites.presets`.

A :class:`Composite` is an ordered list of ``(matcher, rule)``; the first match wins. A matcher is

* a module type or a tuple of types, ``nn.Conv2d`` (a functional ``F.conv2d`` counts as one);
* a kind of operation: ``"conv"``, ``"linear"``, ``"batch_norm"``, ``"activation"``, ``"add"``, ``"avg_pool"``, … as
  ``kind("conv", "linear")``; or one operation, ``operation("amax")``;
* a module path with wildcards, ``"layer4.*"`` (with a rule for weights: the layers with weights there;
  with one for attention, such as ``ValueOnly``: the attention there);
* a position among the layers with weights in execution order: ``first()``, ``last()``, ``span(0, 16)``;
* any predicate ``Layer -> bool``.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastlrp import rules
from fastlrp.kinds.registry import KINDS, WEIGHTED_KINDS
from fastlrp.kinds.vocabulary import plain_name
from fastlrp.reference.weightless import MaxPoolMode
from fastlrp.rules import Rule


@dataclass(frozen=True)
class Layer:
    """What a matcher sees of a layer.

    Attributes:
        path: dotted module path. module_type: type of that module. operation: ``conv2d``, ``relu``, ….
        kind: see :mod:`fastlrp.kinds.registry`. index: position among convolutions and linear layers in execution order
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
Unsupported = Literal["error", "gradient"]
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
    """Matches operations by name, ATen's as ``operation("relu", "amax")``, others as ``operation("mylib::relu")``."""
    plain = frozenset(map(plain_name, names))
    return lambda layer: layer.operation in plain


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
    meant = WEIGHTED_KINDS if isinstance(rule, rules.WeightRule) else rule.means
    if isinstance(matcher, type):
        matcher = (matcher,)
    if isinstance(matcher, tuple) and all(isinstance(t, type) for t in matcher):
        return lambda layer: layer.is_a(*matcher) and (rule.means is None or layer.kind in rule.means)
    if isinstance(matcher, str):
        # A path names a part of the model: a rule for weights means the layers with weights in it, and so on.
        return lambda layer: fnmatch.fnmatchcase(layer.path, matcher) and (meant is None or layer.kind in meant)
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
        unsupported: ``"error"``; or ``"gradient"``: operations without a rule take
            :class:`~fastlrp.rules.InputGradient`, and plans and verifications say so.

    Raises:
        TypeError: if an entry is not a matcher and a :class:`~fastlrp.rules.Rule`.
    """

    entries: tuple[tuple[Matcher, Rule], ...]
    max_pool: MaxPoolMode = "winner"
    name: str = "Composite"
    unsupported: Unsupported = "error"

    def __post_init__(self) -> None:
        for entry in self.entries:
            if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Rule)):
                raise TypeError(f"a composite's entry is (matcher, rule), got {entry!r}")
            _predicate(*entry)
        if self.max_pool not in ("winner", "ties", "average", "sum"):
            raise ValueError(f"max_pool must be 'winner', 'ties', 'average' or 'sum', got {self.max_pool!r}")
        if self.unsupported not in ("error", "gradient"):
            raise ValueError(f"unsupported must be 'error' or 'gradient', got {self.unsupported!r}")
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
