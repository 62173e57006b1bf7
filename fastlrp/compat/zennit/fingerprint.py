"""Whether two hooks, canonizers or composites do the same, though a script made each of them anew."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import types
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.identity import Itself

STATE = frozenset({"stored_tensors", "tensor_handles", "handles", "hook_refs", "active"})
"""What hooks and composites of Zennit keep of the calls they were in."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, types.CodeType)


_DATA = (*_PLAIN, nn.Module, Tensor, types.FunctionType, types.MethodType, functools.partial, tuple, list, dict,
         types.SimpleNamespace, argparse.Namespace)  # fmt: skip
"""Globals whose contents count."""


class ByValue:
    """A tensor that equals any other with the same entries."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ByValue):
            return NotImplemented
        a, b = self.tensor, other.tensor
        if a is b:
            return True
        return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)

    __hash__ = None  # type: ignore[assignment]


def fingerprint(item: Any, seen: dict[int, tuple[int, Any]] | None = None) -> Any:
    """Nested tuples that are equal (``==``) where two objects were made by the same code from the same values.

    Functions count by their code, by what they closed over and by the globals that they name, objects by their type
    and attributes, tensors by their entries, modules by identity (through a weak reference: a fingerprint keeps no
    model alive).
    """
    seen = {} if seen is None else seen
    if isinstance(item, (*_PLAIN, Itself, ByValue)):
        return item
    if isinstance(item, nn.Module):
        return weakref.ref(item)
    if isinstance(item, Tensor):
        return ByValue(item.detach())
    if id(item) in seen:
        return ("again", seen[id(item)][0])
    seen[id(item)] = len(seen), item  # Held on to: a temporary's id would come again.
    if isinstance(item, types.FunctionType):
        closed = [_content(cell) for cell in item.__closure__ or ()]
        parts = (item.__defaults__, item.__kwdefaults__, closed, _named(item))
        return ("function", item.__code__, *(fingerprint(part, seen) for part in parts))
    if isinstance(item, types.MethodType):
        return ("method", fingerprint(item.__func__, seen), fingerprint(item.__self__, seen))
    if isinstance(item, functools.partial):
        return ("partial", *(fingerprint(part, seen) for part in (item.func, item.args, item.keywords)))
    if isinstance(item, (tuple, list)):
        return ("items", *(fingerprint(part, seen) for part in item))
    if isinstance(item, dict):
        return ("dict", *((fingerprint(k, seen), fingerprint(v, seen)) for k, v in item.items()))
    attributes = getattr(item, "__dict__", None)
    if attributes is None or isinstance(item, types.ModuleType):
        return Itself(item)
    kept = {key: value for key, value in attributes.items() if key not in STATE}
    return (type(item), fingerprint(kept, seen), fingerprint(_of_methods(type(item)), seen))


_LIBRARIES = ("torch", "torchvision", "zennit", "fastlrp")


def from_library(function: types.FunctionType) -> bool:
    """Whether it is PyTorch's, Zennit's or fastlrp's own, whose globals are no part of anybody's script."""
    return str(function.__globals__.get("__name__", "")).partition(".")[0] in _LIBRARIES


def global_names(code: types.CodeType) -> set[str]:
    """Names that code, and the functions defined in it, may look up among its globals."""
    inner = (global_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*inner)


def _named(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a script's function names, but for modules to import and classes."""
    if from_library(function):
        return {}
    scope = function.__globals__
    names = sorted(global_names(function.__code__) & scope.keys())
    found = {name: scope[name] for name in names if not isinstance(scope[name], (types.ModuleType, type))}
    # What else a script has, a logger for example, may lead anywhere: it counts by identity.
    return {name: item if _is_data(item) else Itself(item) for name, item in found.items()}


def _is_data(item: Any) -> bool:
    return isinstance(item, _DATA) or (dataclasses.is_dataclass(item) and not isinstance(item, type))


def _of_methods(kind: type) -> dict[str, Any]:
    """The globals that the methods of a script's class name."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        for item in vars(base).values():
            if isinstance(item, types.FunctionType):
                found.update(_named(item))
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Not filled yet: a function that refers to itself.
        return None
