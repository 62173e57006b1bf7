"""The matchers that composites are written with, as data: they compare, print and pickle."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass


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


class Named:
    """A matcher that prints as it is written."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class OfKind(Named):
    """Operations of some kinds."""

    names: tuple[str, ...]

    def __call__(self, layer: Layer) -> bool:
        return layer.kind in self.names

    def __str__(self) -> str:
        return f"kind({', '.join(map(repr, self.names))})"


@dataclass(frozen=True, repr=False)
class OfOperation(Named):
    """Operations by their plain names."""

    names: frozenset[str]

    def __call__(self, layer: Layer) -> bool:
        return layer.operation in self.names

    def __str__(self) -> str:
        return f"operation({', '.join(map(repr, sorted(self.names)))})"


@dataclass(frozen=True, repr=False)
class First(Named):
    """The first layer with a weight, of one kind or of any (None)."""

    kind: str | None = None

    def __call__(self, layer: Layer) -> bool:
        return layer.index == 0 if self.kind is None else layer.kind == self.kind and layer.kind_index == 0

    def __str__(self) -> str:
        return "first()" if self.kind is None else f"first({self.kind!r})"


@dataclass(frozen=True, repr=False)
class Last(Named):
    """The last layer with a weight."""

    def __call__(self, layer: Layer) -> bool:
        return layer.index is not None and layer.index == layer.count - 1

    def __str__(self) -> str:
        return "last()"


@dataclass(frozen=True, repr=False)
class Span(Named):
    """Layers with a weight by their position."""

    start: int
    stop: int | None = None

    def __call__(self, layer: Layer) -> bool:
        return layer.index is not None and layer.index in range(layer.count)[slice(self.start, self.stop)]

    def __str__(self) -> str:
        return f"span({self.start}{'' if self.stop is None else f', {self.stop}'})"


@dataclass(frozen=True, repr=False)
class Everything(Named):
    """Every layer."""

    def __call__(self, layer: Layer) -> bool:
        return True

    def __str__(self) -> str:
        return "everything"


@dataclass(frozen=True)
class OfType:
    """Layers of module types, those of certain kinds where ``kinds`` is not None."""

    types: tuple[type, ...]
    kinds: tuple[str, ...] | None

    def __call__(self, layer: Layer) -> bool:
        return layer.is_a(*self.types) and (self.kinds is None or layer.kind in self.kinds)


@dataclass(frozen=True)
class OfPath:
    """Layers below a module path with wildcards, those of certain kinds where ``kinds`` is not None."""

    pattern: str
    kinds: tuple[str, ...] | None

    def __call__(self, layer: Layer) -> bool:
        return fnmatch.fnmatchcase(layer.path, self.pattern) and (self.kinds is None or layer.kind in self.kinds)


@dataclass(frozen=True)
class Within:
    """Layers of another matcher that are at a module path with wildcards and of certain kinds."""

    pattern: str
    matches: Callable[[Layer], bool]
    kinds: tuple[str, ...]

    def __call__(self, layer: Layer) -> bool:
        return OfPath(self.pattern, self.kinds)(layer) and self.matches(layer)

    def __str__(self) -> str:
        return f"{self.pattern!r}, {self.matches}"
