"""Rows of a plan's table: a layer, its rule, who computes, and what is cached for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fastlrp.capture.graph import Node

Filtered = Literal["forward", "denominators", "down"]
"""Products of a layer that Winograd's filtering may make, :mod:`fastlrp.plan.products.winograd`."""


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the plan: a layer and what happens to relevance there.

    Attributes:
        rule: as text. flows: what leaves, ``"c"``, ``"R"`` or ``"f*F"``. backend: of the kernels that do it.
        slots: of coefficients made for it. filtered: those of its products that Winograd's filtering makes. looked:
            those that it makes where a look at the numbers of a call allows it, :mod:`fastlrp.plan.products.looked`.
    """

    node: Node
    rule: str
    flows: str
    backend: str
    slots: tuple[int, ...]
    filtered: frozenset[Filtered]
    looked: frozenset[Filtered]


@dataclass(eq=False)
class Draft:
    """A :class:`Row` while its layer is lowered."""

    node: Node
    rule: str
    flows: str = ""
    backend: str = ""
    slots: list[int] = field(default_factory=list)
    filtered: set[Filtered] = field(default_factory=set)
    looked: set[Filtered] = field(default_factory=set)

    def note(self, backend: str) -> None:
        """Add a backend to those that compute the layer."""
        if backend not in self.backend.split("+"):
            self.backend = "+".join(filter(None, (self.backend, backend)))

    def row(self) -> Row:
        """The row that the plan keeps."""
        filtered, looked = frozenset(self.filtered), frozenset(self.looked)
        return Row(self.node, self.rule, self.flows, self.backend, tuple(self.slots), filtered, looked)
