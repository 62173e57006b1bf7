"""What a model's forward pass writes while it is traced is taken back.

A forward pass may set attributes (``self.last = h``), count calls, fill a cache. While torch.export traces it, tensors
are stand-ins without data and sizes are symbols, and export puts back only the tensors that attributes held before.
Here everything that modules and their classes hold is what it was: attributes, and the lists, dicts, sets and deques in
them. Of other objects that a module holds (a configuration) only attributes with stand-ins in them are put back. What a
forward pass writes elsewhere, into globals or closures, is not seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_CONTAINERS = (list, dict, set, deque)
_WHOLE = (nn.Module, Tensor, type, FunctionType, MethodType, ModuleType)
"""What is no object that only keeps attributes."""


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """After the block the attributes of the model's modules and of their classes are what they were before."""
    before = Before(model)
    try:
        yield
    finally:
        before.restore()


_TABLES = ("_parameters", "_buffers", "_modules")
"""Where a module keeps its tensors and modules."""


class Before:
    """What the modules of a model and their classes hold."""

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_modules())  # Once: a tracer may give other objects the next time.
        modules = [module for _, module in named]
        self._names = {id(module): name for name, module in named}
        self._tables = {(id(m), kept): dict(vars(m).get(kept) or {}) for m in modules for kept in _TABLES}
        classes = dict.fromkeys(
            c for m in modules for c in type(m).__mro__ if issubclass(c, nn.Module) and c is not nn.Module
        )
        self._owners: list[tuple[Any, dict[str, Any]]] = [(owner, dict(vars(owner))) for owner in (*modules, *classes)]
        self._contents: list[tuple[Any, Any]] = []
        self._objects: list[tuple[Any, dict[str, Any]]] = []
        self._seen: set[int] = set()
        for _, table in self._owners:
            for value in table.values():
                self._enter(value)

    def _enter(self, value: Any) -> None:
        """Remember what the value holds, if it holds anything, and the containers in it."""
        found = [value]
        while found:
            item = found.pop()
            if id(item) in self._seen:
                continue
            if isinstance(item, _CONTAINERS):
                self._contents.append((item, item.copy()))
            elif item is value and not isinstance(item, _WHOLE) and hasattr(item, "__dict__"):
                self._objects.append((item, dict(vars(item))))
            elif not isinstance(item, tuple):
                continue
            self._seen.add(id(item))
            inside = vars(item) if self._objects and self._objects[-1][0] is item else item
            found += inside.values() if isinstance(inside, dict) else inside

    def changes(self) -> list[str]:
        """Names of attributes that are others by now, or hold something else."""
        holders = {id(item) for item, copy in self._contents if not _holds_the_same(item, copy)}
        holders |= {id(item) for item, table in self._objects if not _holds_the_same(vars(item), table)}
        found = []
        for owner, table in self._owners:
            now = vars(owner)
            keys = [k for k in {**table, **now} if now.get(k, self) is not table.get(k, self) or id(now[k]) in holders]
            name = owner.__name__ if isinstance(owner, type) else self._names[id(owner)]
            found += [f"{name}.{key}" if name else key for key in keys if key not in _TABLES]
            for kept in _TABLES:
                have, had = now.get(kept) or {}, self._tables.get((id(owner), kept), {})
                changed = (key for key in {**had, **have} if have.get(key) is not had.get(key))
                found += [f"{name}.{key}" if name else key for key in changed]
        return list(dict.fromkeys(found))

    def restore(self) -> None:
        for item, copy in self._contents:
            if not _holds_the_same(item, copy):
                _refill(item, copy)
        for owner, table in self._owners:
            is_class = isinstance(owner, type)
            change: Callable[..., Any] = type.__setattr__ if is_class else object.__setattr__
            remove: Callable[..., Any] = type.__delattr__ if is_class else object.__delattr__
            _put_back(owner, table, change, remove, lambda value: True)
        for item, table in self._objects:
            _put_back(item, table, setattr, delattr, _is_traced)


def _put_back(
    owner: Any,
    table: dict[str, Any],
    change: Callable[..., Any],
    remove: Callable[..., Any],
    wrong: Callable[[Any], bool],
) -> None:
    now = dict(vars(owner))
    for key, value in now.items():
        if key not in table and wrong(value):
            remove(owner, key)
        elif key in table and value is not table[key] and wrong(value):
            change(owner, key, table[key])
    for key, value in table.items():
        if key not in now and wrong(None):
            change(owner, key, value)


def _holds_the_same(item: Any, copy: Any) -> bool:
    if len(item) != len(copy):
        return False
    if isinstance(item, set):
        return item == copy
    if isinstance(item, dict):
        pairs = zip(item.items(), copy.items(), strict=True)
        return all(a is b and v is w for (a, v), (b, w) in pairs)
    return all(a is b for a, b in zip(item, copy, strict=True))


def _refill(item: Any, copy: Any) -> None:
    item.clear()
    if isinstance(item, (dict, set)):
        item.update(copy)
    else:
        item.extend(copy)


def _is_traced(value: Any) -> bool:
    """True for a stand-in of a trace, and for what holds one."""
    from torch._subclasses.fake_tensor import FakeTensor  # Not for those who never capture.

    found, seen = [value], set()
    while found:
        item = found.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (FakeTensor, *_SYMBOLS)):
            return True
        if isinstance(item, dict):
            found += [*item, *item.values()]
        elif isinstance(item, (tuple, *_CONTAINERS)):
            found += item
    return False
