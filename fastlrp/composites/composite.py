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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastlrp import markup, rules
from fastlrp.composites.advice import no_entry
from fastlrp.composites.matchers import First, Last, Layer, OfKind, OfOperation, OfPath, OfType, Span, Within
from fastlrp.composites.unused import NotRuled, check_used, known_name
from fastlrp.kinds.registry import KINDS, WEIGHTED_KINDS
from fastlrp.pickling import Carried, plain
from fastlrp.reference.weightless import MaxPoolMode
from fastlrp.rules import Rule
from fastlrp.rules.heads import head_numbers

Predicate = Callable[[Layer], bool]
"""Says of a layer whether a rule is for it."""
Unsupported = Literal["error", "gradient"]
Matcher = type | tuple[type, ...] | str | Predicate
"""A module type, several, a module path with wildcards, or a predicate."""


def _check_kinds(names: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}: expected {', '.join(KINDS)}")


def kind(*names: str) -> Predicate:
    """Matches operations of these kinds.

    Args:
        names: ``"conv"``, ``"linear"``, ``"add"``, ``"max_pool"``, …

    Raises:
        ValueError: for a name that is no kind.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.kind("conv"), rules.Gamma(0.1)))
    """
    _check_kinds(names)
    return OfKind(names)


def operation(*names: str) -> Predicate:
    """Matches operations by name, ATen's as ``operation("relu", "amax")``, others as ``operation("mylib::relu")``.

    Args:
        names: of operations.

    Raises:
        ValueError: for a name without namespace that is neither ATen's nor one of fastlrp's own.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.operation("amax"), rules.Norm()))
    """
    return OfOperation(frozenset(map(known_name, names)))


def first(*names: str) -> Predicate:
    """Matches the first layer with a weight; with names, the first of those kinds (``first("conv")``).

    Args:
        names: kinds, at most one of them, or both ``"conv"`` and ``"linear"``.

    Raises:
        ValueError: for a name that is no kind, or for other combinations.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.first(), rules.Flat()))
    """
    _check_kinds(names)
    if not names or set(names) == {"conv", "linear"}:
        return First()
    if len(names) == 1:
        return First(names[0])
    raise ValueError(f"first() takes one kind, or 'conv' and 'linear', got {names}")


def last() -> Predicate:
    """Matches the last layer with a weight.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.last(), rules.Epsilon(0.0)))
    """
    return Last()


def span(start: int, stop: int | None = None) -> Predicate:
    """Matches layers with a weight number ``start`` to ``stop - 1`` as executed; negative counts from the end.

    Args:
        start, stop: as of a slice; ``stop`` None goes up to the last.

    Example::

        mine = composites.epsilon_plus().with_entries((composites.span(0, 2), rules.Gamma(0.25)))
    """
    return Span(start, stop)


def _predicate(matcher: Matcher, rule: Rule) -> Predicate:
    meant = WEIGHTED_KINDS if isinstance(rule, rules.WeightRule) else rule.means
    if isinstance(matcher, type):
        matcher = (matcher,)
    if isinstance(matcher, tuple) and all(isinstance(t, type) for t in matcher):
        return OfType(matcher, rule.means)
    if isinstance(matcher, str):
        # A path names a part of the model: a rule for weights means the layers with weights in it, and so on.
        return OfPath(matcher, meant)
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
        name: how tables and errors call it.
        unsupported: ``"error"``; or ``"gradient"``: operations without a rule take
            :class:`~fastlrp.rules.InputGradient`, and plans and verifications say so.

    Raises:
        TypeError: if an entry is not a matcher and a :class:`~fastlrp.rules.Rule`.
        ValueError: for another ``max_pool`` or ``unsupported``.

    Example::

        mine = fastlrp.Composite(((nn.Conv2d, rules.Gamma(0.1)), ("7", rules.Epsilon(0.0)))) | composites.epsilon_plus()
        relevance = record.under(mine).relevance("top1")
    """

    entries: tuple[tuple[Matcher, Rule], ...]
    max_pool: MaxPoolMode = "winner"
    name: str = "Composite"
    unsupported: Unsupported = "error"

    def __post_init__(self) -> None:
        for entry in self.entries:
            if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Rule)):
                raise TypeError(no_entry(entry))
            _predicate(*entry)
        if self.max_pool not in ("winner", "ties", "average", "sum"):
            raise ValueError(f"max_pool must be 'winner', 'ties', 'average' or 'sum', got {self.max_pool!r}")
        if self.unsupported not in ("error", "gradient"):
            raise ValueError(f"unsupported must be 'error' or 'gradient', got {self.unsupported!r}")
        object.__setattr__(self, "_matchers", tuple((_predicate(m, rule), rule) for m, rule in self.entries))

    def __getstate__(self) -> dict[str, Any]:
        entries = tuple(
            (Carried(matcher, f"the matcher of entry {i} of the composite {self.name!r}"), rule)
            for i, (matcher, rule) in enumerate(self.entries)
        )
        return {name: value for name, value in self.__dict__.items() if name != "_matchers"} | {"entries": entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        entries = tuple((plain(matcher), rule) for matcher, rule in state["entries"])
        self.__dict__.update(
            state, entries=entries, _matchers=tuple((_predicate(m, rule), rule) for m, rule in entries)
        )

    def _repr_html_(self) -> str:
        rows = [(str(i), _matcher_text(m), str(rule)) for i, (m, rule) in enumerate(self.entries, 1)]
        note = f"The first entry that matches a layer gives its rule. Max-pools: {self.max_pool}."
        if self.unsupported != "error":
            note += f" Operations without a rule: {self.unsupported}."
        table = markup.table(("", "matches", "rule"), rows, numbers=(0,), rules=2)
        return markup.card(f"Composite {self.name}", table, note)

    def rule_for(self, layer: Layer) -> Rule | None:
        """The first entry's rule that matches, or None."""
        matchers: Sequence[tuple[Predicate, Rule]] = self._matchers  # type: ignore[attr-defined]
        return next((rule for matches, rule in matchers if matches(layer)), None)

    def check_paths(self, layers: Sequence[Layer]) -> None:
        """Raise ValueError if a module path of an entry reaches no layer: it is mistyped, or holds none of those meant.

        An entry may be for several rules of another composite (``through_heads``): one of them has to reach a layer.
        """
        paths = sorted({layer.path for layer in layers})
        reached: dict[Any, bool] = {}
        for (matcher, rule), (matches, _) in zip(self.entries, self._matchers, strict=True):  # type: ignore[attr-defined]
            pattern = matcher.pattern if isinstance(matcher, Within) else matcher
            if not isinstance(pattern, str):
                continue
            if not fnmatch.filter(paths, pattern):
                close = difflib.get_close_matches(pattern, paths, 3) or paths[:8]
                raise ValueError(
                    f"composite entry ({pattern!r}, {rule}) matches no layer of this model: its paths are, for "
                    f"example, {', '.join(map(repr, close))}"
                )
            key = (pattern, matcher.kinds if isinstance(matcher, Within) else rule)
            reached[key] = reached.get(key, False) or any(map(matches, layers))
            if isinstance(rule, rules.Heads) and not any(OfPath(pattern, rule.means)(layer) for layer in layers):
                raise ValueError(_no_attention(pattern, rule, layers))
        for (pattern, meant), found in reached.items():
            if not found:
                raise ValueError(_not_reached(pattern, meant, layers))

    def check_used(self, layers: Sequence[Layer], not_ruled: Sequence[NotRuled]) -> None:
        """Raise ValueError if an entry is for an operation of the model that takes no rule, and for nothing else."""
        matchers: Sequence[tuple[Predicate, Rule]] = self._matchers  # type: ignore[attr-defined]
        check_used(matchers, layers, not_ruled)

    def with_entries(self, *entries: tuple[Matcher, Rule], name: str | None = None) -> Composite:
        """The same composite with entries of higher precedence in front."""
        return replace(self, entries=(*entries, *self.entries), name=name or self.name)

    def through_heads(self, heads: Mapping[str, int | Sequence[int]], name: str | None = None) -> Composite:
        """The same composite with relevance through these heads of attention alone, by the rules that it has for them.

        ``attnlrp().through_heads({"h.2.attn": (3, 5)})``: in layer 2 what comes to other heads ends there.

        Args:
            heads: module paths with wildcards, of modules that hold attention, to heads counted from 0; the first path
                that matches decides.

        Raises:
            TypeError, ValueError: see :class:`fastlrp.rules.Heads`. A path without attention of its own is a ValueError
                when a model is explained.
        """
        matchers: Sequence[tuple[Predicate, Rule]] = self._matchers  # type: ignore[attr-defined]
        entries = tuple(
            (Within(path, matches, rules.Heads.means), rules.Heads({head_numbers(numbers): rule}))
            for path, numbers in heads.items()
            for matches, rule in matchers
            if isinstance(rule, rules.Heads.takes)
        )
        return self.with_entries(*entries, name=name or f"{self.name} through heads {dict(heads)}")

    def __or__(self, other: Composite) -> Composite:
        """Entries of the left composite first, then those of the right one."""
        if not isinstance(other, Composite):
            hint = (
                f": fastlrp.composites.preset({other!r}) makes the one of that name" if isinstance(other, str) else ""
            )
            raise TypeError(f"on the right of | stands a Composite, got {other!r}{hint}")
        return replace(self, entries=(*self.entries, *other.entries), name=f"{self.name} | {other.name}")


def _no_attention(pattern: str, rule: Rule, layers: Sequence[Layer]) -> str:
    return (
        f"composite entry ({pattern!r}, {rule}) matches no attention: what stands there is "
        f"{_kinds_at(pattern, layers)}. {_paths_of(rule.means or (), pattern, layers)}"
    )


def _not_reached(pattern: str, meant: Any, layers: Sequence[Layer]) -> str:
    return f"composite entry ({pattern!r}, {meant}) reaches no layer: what stands there is {_kinds_at(pattern, layers)}"


def _kinds_at(pattern: str, layers: Sequence[Layer]) -> str:
    return ", ".join(sorted({layer.kind for layer in layers if fnmatch.fnmatchcase(layer.path, pattern)}))


def _paths_of(kinds: Sequence[str], pattern: str, layers: Sequence[Layer]) -> str:
    """Where layers of these kinds are, those inside the module that is named first."""
    paths = sorted(
        {layer.path for layer in layers if layer.kind in kinds}, key=lambda p: not p.startswith(pattern + ".")
    )
    if not paths:
        return "This model has no attention"
    return f"Paths of attention are, for example, {', '.join(map(repr, paths[:8]))}"


def _matcher_text(matcher: Matcher) -> str:
    if isinstance(matcher, type):
        return matcher.__name__
    if isinstance(matcher, tuple):
        return ", ".join(t.__name__ for t in matcher)
    if isinstance(matcher, str):
        return repr(matcher)
    return getattr(matcher, "__qualname__", None) or str(matcher)
