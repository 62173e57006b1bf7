"""Notices that a model has changed since it was captured: other code that runs, or other numbers in its tensors."""

from __future__ import annotations

import copy
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from operator import getitem, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves

from fastlrp.capture.fingerprint import Fingerprint
from fastlrp.capture.identity import Itself

_PLAIN = (
    int, float, complex, bool, str, bytes, types.NoneType, types.FunctionType, types.BuiltinFunctionType,
    types.MethodType, staticmethod, classmethod, property, partial, type, torch.dtype, torch.device,
)  # fmt: skip

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

_INTERNAL = frozenset(key for key, value in vars(nn.Module()).items() if isinstance(value, dict))
"""Tables of every module, which are looked at as such."""

_OURS = frozenset({"lrp_var", "lrp_param"})
"""Attributes of the modules of :mod:`fastlrp.nn` that say how to explain, not what to compute."""

_WRITTEN: MutableMapping[Any, set[str]] = weakref.WeakKeyDictionary()
"""Attributes that a module's own forward pass writes (counters, the latest size): they don't say what it computes."""


class Code:
    """What a model's forward pass runs, apart from tensors: attributes, hooks and methods of its modules.

    Attributes count where they hold numbers, text, functions, types, tensors, or tuples, lists and dicts of those, and
    where the forward pass does not write them itself, see :meth:`written`. What an attribute of another kind holds
    inside it, for instance a configuration object, is not looked at.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._owners: list[tuple[Any, Mapping[str, Any]]] = [
            (owner, vars(owner)) for owner in (*modules, *_classes(modules))
        ]
        self._modules, self._types = list(modules), [type(m) for m in modules]
        hooks = [getattr(m, name) for m in modules for name in _HOOKS]
        hooks += [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        self._hooks: list[tuple[dict[int, Any], tuple[Any, ...]]] = [(t, tuple(t.values())) for t in hooks if t]
        self._hookless = [t for t in hooks if not t]
        self._remember()

    def _remember(self) -> None:
        self._known: list[dict[str, Any]] = []
        self._read: list[tuple[Any, Callable[[Any], Any], Any]] = []
        self._lists: list[tuple[Any, Any]] = []
        self._holding: list[tuple[Any, Any]] = []
        for owner, table in self._owners:
            known = {key: value for key, value in table.items() if _counts(owner, key, value)}
            self._known.append(known)
            if known:
                get = itemgetter(*known)
                self._read.append((table, get, get(table)))
            for value in known.values():
                if isinstance(value, (list, tuple, dict)) and any(_tensors(value)):
                    self._holding.append((value, _held(value)))
                elif isinstance(value, (list, dict)):
                    self._lists.append((value, copy.deepcopy(value)))
        self._tables = [table for _, table in self._owners]
        self._sizes = [*map(len, self._tables)]

    def changed(self) -> bool:
        """Whether the model now runs something else."""
        # Here as in Watch.restructured: no loops of Python where a function of C goes over a list.
        if [*map(type, self._modules)] != self._types or any(self._hookless):
            return True
        for hooks, before in self._hooks:
            if tuple(hooks.values()) != before:
                return True
        try:
            for table, get, found in self._read:
                if get(table) != found:
                    return self._differs()
        except Exception:  # An attribute was deleted, or is now an array, which has no truth value.
            return self._differs()
        for items, known in self._lists:
            if items != known:
                return self._differs()
        for items, held in self._holding:
            if _held(items) != held:
                return self._differs()
        return [*map(len, self._tables)] != self._sizes and self._differs()

    def _differs(self) -> bool:
        """The same look, with what forward passes write left out; if that was all, what there is now is remembered."""
        if any(True for _ in self._different()):
            return True
        self._remember()
        return False

    def _different(self, kept: bool = False) -> Iterator[tuple[Any, str]]:
        """Owner and name of each attribute that is not what it was; ``kept``: also of tensors that nothing read yet."""
        lists = {id(items): known for items, known in (*self._lists, *self._holding)}
        for (owner, table), known in zip(self._owners, self._known, strict=True):
            counting = [key for key, value in table.items() if _counts(owner, key, value)]
            for key in dict.fromkeys([*known, *counting]):
                if key in _written(owner):
                    continue
                if not kept and key not in known and isinstance(table[key], (Tensor, dict)):
                    continue  # Kept there for somebody else: forward can't have read it.
                if key not in table or key not in known or not _same(table[key], known[key], lists):
                    yield owner, key

    def written(self) -> None:
        """To be called when a forward pass is just over: what differs now is what it writes."""
        found = list(self._different(kept=True))
        for owner, key in found:
            _WRITTEN.setdefault(owner, set()).add(key)
        if found:
            self._remember()


def _classes(modules: Sequence[nn.Module]) -> list[type]:
    """The modules' classes and what they inherit from, below ``nn.Module``."""
    found = (c for m in modules for c in type(m).__mro__ if issubclass(c, nn.Module) and c is not nn.Module)
    return list(dict.fromkeys(found))


def _written(owner: Any) -> AbstractSet[str]:
    return _WRITTEN.get(owner, frozenset())


def _counts(owner: Any, key: str, value: Any) -> bool:
    return _is_plain(value) and not (key.startswith("__") or key in _OURS or key in _INTERNAL or key in _written(owner))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(part) for item in value.items() for part in item)
    return isinstance(value, (*_PLAIN, Tensor))


def _tensors(value: Any) -> Iterator[bool]:
    """True for each tensor in a tuple, list or dict."""
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (tuple, list, dict)):
            yield from _tensors(item)
        elif isinstance(item, Tensor):
            yield True


def _held(value: Any) -> Any:
    """A copy of a tuple, list or dict in which each tensor equals itself alone."""
    if isinstance(value, dict):
        return {key: _held(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_held(item) for item in value]
    return Itself(value) if isinstance(value, Tensor) else value


def _same(now: Any, before: Any, lists: dict[int, Any]) -> bool:
    if type(now) is not type(before):
        return False
    if isinstance(now, Tensor):
        return now is before
    if now is before:
        return id(now) not in lists or bool(_held(now) == _held(lists[id(now)]))
    return bool(_held(now) == _held(before))


def outline(modules: Sequence[nn.Module]) -> list[Any]:
    """What :class:`Code` remembers, as something to compare (``==``) that keeps no module alive."""
    found: list[Any] = []
    for owner in (*modules, *_classes(modules)):
        table = vars(owner)
        plain = [(k, _weakly(v)) for k, v in table.items() if _counts(owner, k, v)]
        hooks = [*map(_weakly, (*table["_forward_hooks"].values(), *table["_forward_pre_hooks"].values()))] if (
            isinstance(owner, nn.Module)
        ) else []  # fmt: skip
        found.append((weakref.ref(type(owner)), plain, hooks))
    return found


def _weakly(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_weakly(item) for item in value]
    if isinstance(value, dict):
        return [(_weakly(key), _weakly(item)) for key, item in value.items()]
    if isinstance(value, types.MethodType):
        return (_weakly(value.__self__), _weakly(value.__func__))
    try:
        return weakref.ref(value)
    except TypeError:
        return value if isinstance(value, _PLAIN) else id(value)


class Watch:
    """Remembers a model's modules and what they run, its parameters and buffers, and the numbers in them.

    Attributes:
        home: a parameter that shows the model's dtype and device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables: list[dict[str, Any]] = []
        links: list[tuple[dict[str, Any], str, Any]] = []
        tensors: list[Tensor] = []
        modules = list(model.modules())
        for module in modules:
            tables = (module._modules, module._parameters, module._buffers)
            self._tables += tables
            links += [(table, key, item) for table in tables for key, item in table.items()]
            own = {key: item for key, item in vars(module).items() if key not in _INTERNAL}
            tensors += [item for table in (*tables[1:], own) for item in tree_leaves(table) if isinstance(item, Tensor)]
        self._sizes = [*map(len, self._tables)]
        self._holders, self._keys, self._items = ([link[i] for link in links] for i in range(3))
        self.code = Code(modules)
        self._forms = [(t, t.shape, t.dtype) for t in tensors]
        self._tensors, self._times = Fingerprint(tensors), 0
        self._lock = threading.Lock()
        self.home: Tensor | None = next((p for p in model.parameters() if p.is_floating_point()), None)

    def values(self, bits: bool = True) -> int:
        """How often other numbers were seen in the tensors, after a look at them now; ``bits``: see
        :meth:`fastlrp.capture.fingerprint.Fingerprint.changed`."""
        with self._lock:
            self._times += self._tensors.changed(bits)
            return self._times

    def reshaped(self) -> bool:
        """Whether a tensor has another shape or dtype now, ``weight.data = …``: the graph says others then."""
        return any(t.shape != shape or t.dtype != dtype for t, shape, dtype in self._forms)

    def restructured(self) -> bool:
        """Whether the model has other modules, tensors, modes, attributes, hooks or methods now."""
        # This runs before every explanation: loops of Python would cost a small network dearly.
        if [*map(len, self._tables)] != self._sizes:
            return True
        try:
            if not all(map(is_, map(getitem, self._holders, self._keys), self._items)):
                return True
        except KeyError:
            return True
        return self.code.changed()
