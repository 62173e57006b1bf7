"""Which values of an exported program share memory, and what an in-place operation means for the others.

The program is made functional while it is translated: an in-place operation gives a new value; if it wrote into a view,
every tensor that the view was taken from is written anew too, up to the one that owns the memory
(:class:`Write`); all other views of that memory are taken again from the new values when they are read next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.errors import CaptureError
from fastlrp.kinds.registry import KIND_OF

_OWN_MEMORY = {"clone", "_to_copy", "lift_fresh_copy"}


@dataclass(frozen=True)
class View:
    """How a tensor was taken from another one; ``call`` is None if it is the same tensor under another name."""

    parent: str
    name: str
    call: Callable[..., Any] | None
    rest: tuple[Any, ...]
    kwargs: dict[str, Any]


class Write:
    """``base`` with its view ``view(base, *rest)`` overwritten by ``source``."""

    def __init__(self, view: Callable[..., Tensor]) -> None:
        self.view = view

    def __call__(self, base: Tensor, source: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() and (base.requires_grad or source.requires_grad):
            # Autograd refuses to write into one of several parts (chunk, split).
            return self._by_places(base, source, *rest, **kwargs)
        result = base.clone(memory_format=torch.contiguous_format)
        self.view(result, *rest, **kwargs).copy_(source)
        return result

    def _by_places(self, base: Tensor, source: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        """The same by the places of real and imaginary parts; where a view is conjugate its places are negative."""
        parts = torch.view_as_real(base.resolve_conj()) if base.is_complex() else base
        numbers = torch.arange(parts.numel(), dtype=torch.float64, device=base.device).view(parts.shape)
        places = self.view(torch.view_as_complex(numbers) if base.is_complex() else numbers, *rest, **kwargs)
        source = source.expand(places.shape)
        if places.is_complex():
            source = source if source.is_complex() else torch.complex(source, torch.zeros_like(source))
            places, source = torch.view_as_real(places.resolve_conj()), torch.view_as_real(source.resolve_conj())
        places = places.resolve_neg()
        entries = torch.where(places < 0, -source, source).to(parts.dtype).reshape(-1)
        written = parts.reshape(-1).index_put((places.abs().long().reshape(-1),), entries).view(parts.shape)
        return torch.view_as_complex(written) if base.is_complex() else written


class Memory:
    """Views by the name of the exported node, and which of them are out of date."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}
        self.families: dict[int, set[str]] = {}
        self.stale: set[str] = set()

    def add(self, fx: torch.fx.Node) -> None:
        """Note whose memory the node's result has."""
        place = _place(fx)
        if place is not None:
            self.families.setdefault(place, set()).add(fx.name)

    def parent(self, fx: torch.fx.Node, name: str, in_place: bool) -> torch.fx.Node | None:
        """The operand whose memory the node's result shares."""
        operands = fx.all_input_nodes
        if not operands or not isinstance(fx.meta.get("val"), Tensor):
            return None
        if in_place:
            return operands[0]
        if KIND_OF.get(name) == "identity" and "dropout" in name:
            # Returns its input, which torch.export does not show.
            for member in self._members(fx):
                self.families.setdefault(_place(operands[0]) or 0, set()).add(member)
            return operands[0]
        if name in _OWN_MEMORY:
            return None
        if name == "getitem":
            operands = operands[0].all_input_nodes
        places = [n for n in operands if _place(n) is not None and _place(n) == _place(fx)]
        return places[0] if places else None

    def _members(self, fx: torch.fx.Node) -> set[str]:
        return self.families.get(_place(fx) or 0, set())

    def written(self, fx: torch.fx.Node) -> list[View]:
        """After an in-place operation: the views to write back through, innermost first. All others become stale."""
        chain = [self.views[fx.name]]
        while chain[-1].parent in self.views:
            chain.append(self.views[chain[-1].parent])
        fresh = {fx.name, *(view.parent for view in chain)}
        families = [family for family in self.families.values() if family & fresh]
        self.stale |= set().union(*families) - fresh
        self.stale -= fresh
        return chain

    def to_renew(self, name: str) -> list[str]:
        """Stale names that lead to this one, outermost first; they count as fresh from now on."""
        path = []
        while name in self.stale:
            path.append(name)
            self.stale.discard(name)
            if name not in self.views:
                raise CaptureError(
                    f"'{name}' shares its memory with a tensor that is changed in place, in a way that cannot be "
                    "followed, and is read later: write the model without this in-place operation"
                )
            name = self.views[name].parent
        return path[::-1]

    def itself(self, name: str) -> str:
        """The node that first gave the tensor that an operation in place gives back."""
        while name in self.views and self.views[name].call is None:
            name = self.views[name].parent
        return name

    def root(self, name: str) -> str:
        """The node that owns the memory."""
        while name in self.views:
            name = self.views[name].parent
        return name


def _place(fx: torch.fx.Node) -> int | None:
    meta = fx.meta.get("val")
    if not isinstance(meta, Tensor) or meta.layout != torch.strided:
        return None
    try:
        return int(meta.untyped_storage()._cdata)
    except NotImplementedError:  # Inside torch.vmap.
        return None
