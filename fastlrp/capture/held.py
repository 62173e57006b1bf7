"""What an attribute of a module holds: whether it is the same, and what stands inside it that can change by itself.

Numbers, text, arrays' and sets' contents are compared by value, containers item by item, all other objects by identity.
Inside of an attribute may stand modules that are not registered as submodules (those in a plain list), arrays, and
settings: objects that hold nothing but such values, as configurations and small callable objects do.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastlrp.capture.identity import Itself

PLAIN = (
    int, float, complex, bool, str, bytes, types.NoneType, types.FunctionType, types.BuiltinFunctionType,
    types.MethodType, staticmethod, classmethod, property, partial, type, torch.dtype, torch.device, np.generic, Enum,
    range, slice,
)  # fmt: skip
"""What ``==`` compares, or what cannot change."""

CONTAINERS = (tuple, list, dict, set, frozenset)

_DEPTH = 4
"""How deep settings may stand within settings."""

_DEEPEST = 16
"""How deep containers may stand within containers."""

_MOST = 4096
"""Items of a container in settings, or of objects in any: what has more is data."""


def items_of(value: Any) -> list[Any]:
    """What a container holds, keys included."""
    return [part for item in value.items() for part in item] if isinstance(value, dict) else list(value)


def is_plain(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether it is compared by value throughout."""
    if isinstance(value, CONTAINERS):
        return depth > 0 and all(is_plain(item, depth - 1) for item in items_of(value))
    return isinstance(value, PLAIN)


def held(value: Any, depth: int = _DEEPEST) -> Any:
    """A copy of a container in which each object equals itself alone, and numbers, text and the like their equals.

    Of what nests without end, and of very many objects, the container alone counts.
    """
    if isinstance(value, CONTAINERS) and (depth == 0 or (len(value) > _MOST and not is_plain(value))):
        return Itself(value)
    if isinstance(value, dict):
        return {key if isinstance(key, PLAIN) else Itself(key): held(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [held(item, depth - 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return frozenset(item if isinstance(item, PLAIN) else Itself(item) for item in value)
    return value if isinstance(value, PLAIN) else Itself(value)


class Holding:
    """A container with objects in it, and what it held.

    Attributes:
        items: the container. contents: a copy, :func:`held`.
    """

    def __init__(self, items: Any) -> None:
        self.items, self.contents = items, held(items)
        found = _flat(items)
        self._objects = None if any(isinstance(item, CONTAINERS) for item in found) else found

    def changed(self) -> bool:
        """Whether it holds something else now."""
        # By one function of C where nothing nests: this runs before every explanation, and a copy of 3000 tensors'
        # container takes 2.6 ms.
        now, before = _flat(self.items), self._objects
        if before is not None and len(now) == len(before) and all(map(is_, now, before)):
            return False
        return bool(held(self.items) != self.contents)


def _flat(items: Any) -> list[Any]:
    return [*items, *items.values()] if isinstance(items, dict) else [*items]


def same(now: Any, before: Any, contents: Any = None) -> bool:
    """Whether an attribute is what it was; ``contents``: what it held (:func:`held`), if that was written down."""
    if type(now) is not type(before):
        return False
    if now is before and contents is None:
        return True
    return bool(held(now) == (held(before) if contents is None else contents))


@dataclass(eq=False)
class Inside:
    """What stands inside the attributes of a module.

    Attributes:
        modules: that are not among its own. tensors: within containers and settings. arrays, settings: with the paths
            of attributes that lead to them; arrays are NumPy's.
    """

    modules: list[nn.Module] = field(default_factory=list)
    arrays: list[tuple[str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    settings: list[tuple[str, Any]] = field(default_factory=list)

    def take(self, path: str, value: Any, seen: set[int]) -> None:
        """Note what stands in ``value``; ``seen``: objects that were noted before, by ``id``."""
        if isinstance(value, PLAIN) or id(value) in seen:
            return
        if isinstance(value, CONTAINERS):
            seen.add(id(value))
            for number, item in enumerate(items_of(value)):
                self.take(f"{path}.{number}", item, seen)
        elif isinstance(value, nn.Module):
            self.modules.append(value)
        elif isinstance(value, np.ndarray):
            self.arrays.append((path, value))
        elif isinstance(value, Tensor):
            self.tensors.append(value)
        elif _are_settings(value, _DEPTH):
            seen.add(id(value))
            self.settings.append((path, value))
            for key, item in vars(value).items():
                self.take(f"{path}.{key}", item, seen)


def _are_settings(value: Any, depth: int) -> bool:
    """Whether an object holds nothing but what is compared by value, tensors, modules and settings."""
    if isinstance(value, (PLAIN, Tensor, np.ndarray, nn.Module)):
        return True
    if isinstance(value, CONTAINERS):
        return depth > 0 and len(value) <= _MOST and all(_are_settings(item, depth - 1) for item in items_of(value))
    table = getattr(value, "__dict__", None)
    if depth == 0 or type(table) is not dict or isinstance(value, types.ModuleType):
        return False
    return all(_are_settings(item, depth - 1) for item in table.values())


def bits(array: Any) -> Tensor | None:
    """The memory of an array as a tensor; None if it holds other things than numbers."""
    try:
        writable = array.view()
        if not array.size or array.dtype.kind not in "biufc":
            return None
        return torch.from_numpy(writable if writable.flags.writeable else np.array(writable))
    except (TypeError, ValueError):  # A type that PyTorch has not, strides that go backward.
        return None
