"""Entries of a composite that name an operation of the model which takes no rule: they would be silently unused.

An entry for operations that a model does not have is no fault, so that one composite serves many models. One that
names an operation of the model that is written out as others, dropped, or only carries entries is a fault.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from fastlrp import rules
from fastlrp.composites.matchers import (
    Everything,
    First,
    Last,
    Layer,
    OfKind,
    OfOperation,
    OfPath,
    OfType,
    Span,
    Within,
)
from fastlrp.kinds.registry import KIND_OF, WEIGHTED_KINDS
from fastlrp.kinds.vocabulary import plain_name
from fastlrp.rules import Rule

_OWN = ("composed_activation", "segment_softmax", "vmap")
"""Operations of graphs that are no ATen's; those between complex numbers begin with ``complex``."""
_AS_CARRIED = (rules.Pass, rules.Norm, rules.Gradient)
"""Rules that do what an operation which only carries entries does anyway."""


def known_name(operation: str) -> str:
    """An operation's name as graphs have it.

    Raises:
        ValueError: for a name without namespace that no graph can have.
    """
    name = plain_name(operation)
    if "::" in name:
        return name
    if name.endswith("_") and not name.endswith("__"):
        name = plain_name(name[:-1])  # Graphs have no operations in place.
    if name in KIND_OF or name in _OWN or name.startswith("complex") or hasattr(torch.ops.aten, name):
        return name
    names = [*KIND_OF, *_OWN, *dir(torch.ops.aten)]
    close = difflib.get_close_matches(name, dict.fromkeys(names), 3)
    hint = f"; close to it: {', '.join(map(repr, close))}" if close else ""
    raise ValueError(
        f"unknown operation {operation!r}: expected the name of an ATen operation, 'relu' or 'cross_entropy_loss', or "
        f"that of another namespace's with the namespace, 'mylib::relu'{hint}"
    )


@dataclass(frozen=True)
class NotRuled:
    """An operation of the model that takes no rule of a composite.

    Attributes:
        layer: what a matcher would see of it.
        parts: the operations that stand for it; none for one that only carries entries, or that does nothing.
    """

    layer: Layer
    parts: tuple[Layer, ...] = ()


def check_used(
    entries: Sequence[tuple[Callable[[Layer], bool], Rule]], layers: Sequence[Layer], not_ruled: Sequence[NotRuled]
) -> None:
    """Raise ValueError if an entry is for an operation that takes no rule, and for nothing else.

    Args:
        entries: predicates and rules, in order of precedence.
        layers: the operations that take a rule. not_ruled: the others.
    """
    operations: dict[str, list[NotRuled]] = {}
    kinds: dict[str, list[NotRuled]] = {}
    for found in not_ruled:
        operations.setdefault(found.layer.operation, []).append(found)
        kinds.setdefault(found.layer.kind, []).append(found)
    for matches, rule in entries:
        for one, text in _single(matches):
            if isinstance(one, OfOperation):
                met = [found for name in one.names for found in operations.get(name, ())]
            elif isinstance(one, OfKind):
                met = [found for name in one.names for found in kinds.get(name, ())]
            else:
                met = [found for found in not_ruled if one(found.layer)]
            if not met:
                continue
            written = next((found for found in met if found.parts and not any(map(one, found.parts))), None)
            if written is not None:
                raise ValueError(_written_out(text, rule, written))
            if not any(map(one, layers)) and not isinstance(rule, _AS_CARRIED):
                raise ValueError(_only_carries(text, rule, met[0].layer))


def _single(matches: Callable[[Layer], bool]) -> list[tuple[Callable[[Layer], bool], str]]:
    """An entry's matcher with its text, one for each operation that it names."""
    if isinstance(matches, OfOperation):
        return [(OfOperation(frozenset((name,))), f"operation({name!r})") for name in sorted(matches.names)]
    if isinstance(matches, OfKind):
        return [(OfKind((name,)), f"kind({name!r})") for name in matches.names]
    if isinstance(matches, OfType):
        return [(matches, ", ".join(t.__name__ for t in matches.types))]
    if isinstance(matches, (OfPath, Within, Everything, First, Last, Span)):
        return []  # Paths have a check of their own, places are those of layers with a weight.
    return [(partial(_means, matches), getattr(matches, "__qualname__", None) or str(matches))]


def _means(matches: Callable[[Layer], bool], layer: Layer) -> bool:
    """Whether a predicate of the user's is for an operation that takes no rule: one that fails at it is not.

    A predicate has to expect layers that take a rule alone; of those, for example, all with a weight have an ``index``.
    """
    try:
        return bool(matches(layer))
    except Exception:
        return False


def _where(layer: Layer) -> str:
    return f"module {layer.path!r}" if layer.path else "the model itself"


def _written_out(text: str, rule: Rule, found: NotRuled) -> str:
    name = found.layer.operation
    parts = ", ".join(dict.fromkeys(repr(part.operation) for part in found.parts))
    free = KIND_OF.get(name) in (None, *WEIGHTED_KINDS) and name != "batch_norm"
    way_out = "Give"
    if free:
        keeping = f"Call fastlrp.register_rule({name!r}, rule) before the explainer is made"
        way_out = f"{keeping}, which keeps it one operation, or give"
    return (
        f"composite entry ({text}, {rule}) is for {name!r} in {_where(found.layer)}, for which {parts} "
        f"stand{'s' if ',' not in parts else ''} in this model: the rule would not be used. "
        f"{way_out} the composite entries for what stands for it"
    )


def _only_carries(text: str, rule: Rule, layer: Layer) -> str:
    return (
        f"composite entry ({text}, {rule}) matches {layer.operation!r} in {_where(layer)} and no operation that takes "
        "a rule: it only carries entries from one place to another, or does nothing when a model is evaluated, and "
        "relevance goes the way of the entries. Leave the entry out, or name an operation that takes a rule"
    )
