"""Whether two hooks, canonizers or composites do the same, though a script made each of them anew."""

from __future__ import annotations

import functools
import types
import weakref
from typing import Any

import torch
from torch import Tensor, nn

_STATE = frozenset({"stored_tensors", "tensor_handles", "handles", "hook_refs", "active"})
"""What hooks and composites of Zennit keep of the calls they were in."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, types.CodeType)


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


class Same:
    """Anything else: equals itself."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.item is other.item

    __hash__ = None  # type: ignore[assignment]


def fingerprint(item: Any, seen: dict[int, tuple[int, Any]] | None = None) -> Any:
    """Nested tuples that are equal (``==``) where two objects were made by the same code from the same values.

    Functions count by their code and by what they closed over, objects by their type and attributes, tensors by their
    entries, modules by identity (through a weak reference: a fingerprint keeps no model alive).
    """
    seen = {} if seen is None else seen
    if isinstance(item, _PLAIN):
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
        return ("function", item.__code__, *(fingerprint(part, seen) for part in (item.__defaults__, closed)))
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
        return Same(item)
    kept = {key: value for key, value in attributes.items() if key not in _STATE}
    return (type(item), fingerprint(kept, seen))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Not filled yet: a function that refers to itself.
        return None
