"""What a model returns or takes: tensors inside tuples, lists, dicts, named tuples and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Stands in a structure where tensor number ``index`` was; ``alone``: its only sample, without the batch axis."""

    index: int
    name: str
    alone: bool = False


def flatten(obj: Any, found: list[Tensor], name: str = "") -> Any:
    """Append the tensors of ``obj`` to ``found``; return ``obj`` with :class:`Leaf` in their places.

    An object of another sort that holds tensors (a cache of keys and values) is left out, None stands in its place.
    """

    def inner(item: Any, key: Any) -> Any:
        return flatten(item, found, f"{name}.{key}" if name else str(key))

    if isinstance(obj, Tensor):
        found.append(obj)
        return Leaf(len(found) - 1, name)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = {f.name: inner(getattr(obj, f.name), f.name) for f in dataclasses.fields(obj)}
        return _Record(obj, fields)
    if isinstance(obj, Mapping):
        return {key: inner(item, key) for key, item in obj.items()}
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):
        return type(obj)(*(inner(item, key) for key, item in zip(obj._fields, obj, strict=True)))
    if isinstance(obj, (tuple, list)):
        return type(obj)(inner(item, position) for position, item in enumerate(obj))
    return None if _holds_tensors(obj) else obj


def _holds_tensors(obj: Any) -> bool:
    """Whether there are tensors in what the object keeps as attributes."""
    todo, seen = [obj], set()
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            return True
        if id(item) in seen or isinstance(item, (type, nn.Module)):
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            todo += item.values()
        elif isinstance(item, (tuple, list, set)):
            todo += item
        elif hasattr(item, "__dict__") and not callable(item):
            todo += vars(item).values()
    return False


@dataclasses.dataclass(frozen=True)
class _Record:
    """A dataclass instance seen while tracing, with its fields as structures."""

    instance: Any
    fields: dict[str, Any]

    def rebuild(self, fields: dict[str, Any]) -> Any:
        made = copy.copy(self.instance)
        for key, item in fields.items():
            if isinstance(made, dict):  # Outputs that are both a dataclass and a mapping, which has what is not None.
                if item is not None:
                    dict.__setitem__(made, key, item)
                elif key in made:
                    base = OrderedDict if isinstance(made, OrderedDict) else dict
                    base.__delitem__(made, key)  # Such classes forbid it on themselves.
            object.__setattr__(made, key, item)
        return made


def rebuild(structure: Any, tensors: list[Tensor]) -> Any:
    """The inverse of :func:`flatten`, with other tensors."""
    if isinstance(structure, Leaf):
        return tensors[structure.index][0] if structure.alone else tensors[structure.index]
    if isinstance(structure, _Record):
        return structure.rebuild({key: rebuild(item, tensors) for key, item in structure.fields.items()})
    if isinstance(structure, dict):
        return {key: rebuild(item, tensors) for key, item in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(rebuild(item, tensors) for item in structure))
    if isinstance(structure, (tuple, list)):
        return type(structure)(rebuild(item, tensors) for item in structure)
    return structure


def without_batch(structure: Any) -> Any:
    """The structure of what a model without a batch axis returned, to be filled with tensors of one sample each."""
    own: list[Any] = [Leaf(index, name, alone=True) for index, name in enumerate(leaf_names(structure))]
    return rebuild(structure, own)


def leaf_names(structure: Any) -> list[str]:
    """Dotted name of every tensor, in order: ``"logits"``, ``"hidden.0"``; ``""`` for a bare tensor."""
    if isinstance(structure, Leaf):
        return [structure.name]
    if isinstance(structure, _Record):
        structure = structure.fields
    if not isinstance(structure, (dict, tuple, list)):
        return []
    items = structure.values() if isinstance(structure, dict) else structure
    return [name for item in items for name in leaf_names(item)]
