"""A rule of its own for each head of attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastlrp.rules.gradient import Gradient
from fastlrp.rules.rule import Rule
from fastlrp.rules.uniform import Uniform
from fastlrp.rules.value_only import ValueOnly

Named = int | tuple[int, ...]
"""One head, or several of them."""


@dataclass(frozen=True)
class Heads(Rule):
    """Each head of attention by a rule of its own: ``R_in = sum_h rule_h(R * [head = h])``.

    ``Heads({(0, 3): Uniform()})`` lets relevance through heads 0 and 3 alone; what comes to the others ends there, and
    the ledger shows it as dead. ``Heads({3: None}, others=Uniform())`` leaves head 3 out, and
    ``Heads({0: ValueOnly()}, others=Uniform())`` gives each head a rule. ``Composite.through_heads`` does the first
    with the rules that a composite has already.

    Args:
        given: heads, counted from 0, or tuples of them, to :class:`Uniform`, :class:`ValueOnly`, :class:`Gradient`, or
            None for heads that nothing goes through.
        others: of all other heads.

    Heads are those of the queries, where several share a key, in the order in which the projection behind the attention
    reads them; without a projection, entries of the one axis before positions and channels.

    Raises:
        TypeError: for a head that is no integer, or a rule that is none of these.
        ValueError: for a negative head, or one that is named twice.
        UnsupportedOperationError: when a model is explained in which the heads cannot be told.

    Example::

        only_two = rules.Heads({(0, 3): rules.Uniform()})
        mine = composites.attnlrp().with_entries((composites.kind("attention"), only_two))

    Source: relevance of single heads, as in Voita et al. 2019, Analyzing Multi-Head Self-Attention, section 4.
    """

    given: Mapping[Named, Rule | None] | tuple[tuple[tuple[int, ...], Rule | None], ...]
    others: Rule | None = None
    means = ("attention", "product")
    takes = (Uniform, ValueOnly, Gradient)

    def __post_init__(self) -> None:
        if not isinstance(self.given, (Mapping, tuple)):
            raise TypeError(
                f"Heads takes a mapping from heads to rules, Heads({{(0, 3): rules.Uniform()}}), got {self.given!r}"
            )
        pairs = self.given.items() if isinstance(self.given, Mapping) else self.given
        entries = tuple((head_numbers(heads), rule) for heads, rule in pairs)
        object.__setattr__(self, "given", entries)
        named = [head for heads, _ in entries for head in heads]
        twice = next((head for head in named if named.count(head) > 1), None)
        if twice is not None:
            raise ValueError(f"Heads names head {twice} twice: give each head one rule")
        for rule in (*(rule for _, rule in entries), self.others):
            if rule is not None and not isinstance(rule, self.takes):
                raise TypeError(
                    f"Heads takes Uniform, ValueOnly, Gradient or None (nothing goes through that head), got {rule!r}"
                )

    @property
    def inner(self) -> tuple[Rule, ...]:
        return tuple(rule for rule, _ in self.parts(self._known))

    @property
    def _known(self) -> int:
        """As many heads as are named, and one of the others."""
        return 2 + max((head for heads, _ in self._entries() for head in heads), default=-1)

    def parts(self, count: int) -> Iterator[tuple[Rule, tuple[int, ...]]]:
        """Each rule with its heads, of ``count``; heads that nothing goes through are left out.

        Raises:
            ValueError: for a head that is not among them.
        """
        named = [head for heads, _ in self._entries() for head in heads]
        beyond = next((head for head in named if head >= count), None)
        if beyond is not None:
            raise ValueError(f"there is no head {beyond}: there are {count}, counted from 0")
        rest = tuple(head for head in range(count) if head not in named)
        found: dict[Rule, tuple[int, ...]] = {}
        for heads, rule in (*self._entries(), (rest, self.others)):
            if rule is not None and heads:
                found[rule] = tuple(sorted((*found.get(rule, ()), *heads)))
        yield from found.items()

    def _entries(self) -> Any:
        return self.given

    def __repr__(self) -> str:
        named = ", ".join(f"{heads[0] if len(heads) == 1 else heads}: {rule}" for heads, rule in self._entries())
        return f"Heads({{{named}}}{'' if self.others is None else f', others={self.others}'})"


def head_numbers(heads: Any) -> tuple[int, ...]:
    """One head or several, as a tuple.

    Raises:
        TypeError: if they are not integers.
        ValueError: if one is negative.
    """
    found = tuple(heads) if isinstance(heads, (tuple, list, range)) else (heads,)
    for head in found:
        if not isinstance(head, int) or isinstance(head, bool):
            raise TypeError(f"a head is an integer, counted from 0, got {head!r}")
        if head < 0:
            raise ValueError(f"heads are counted from 0, got {head}")
    return found
