"""Notices that a model has changed since it was captured: other code that runs, or other numbers in its tensors."""

from __future__ import annotations

import copy
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from operator import getitem, is_, itemgetter
from typing import Any

from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _disable_current_modes

from fastlrp.capture.fingerprint import Fingerprint
from fastlrp.capture.held import CONTAINERS, PLAIN, Holding, Inside, bits, held, is_plain, same

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

_INTERNAL = frozenset(key for key, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
"""Tables of every module, which are looked at as such."""

_OURS = frozenset({"lrp_var", "lrp_param"})
"""Attributes of the modules of :mod:`fastlrp.nn` that say how to explain, not what to compute."""

_WRITTEN: MutableMapping[Any, set[str]] = weakref.WeakKeyDictionary()
"""Attributes that a module's own forward pass writes (counters, the latest size): they don't say what it computes."""


@dataclass(eq=False)
class _Table:
    """Attributes of a module, of a class, or of an object that a module holds.

    Attributes:
        owner: the module or class. path: of the object within it, with a dot behind it; empty for its own attributes.
        values: the attributes by name. shadows: where attributes of the same names are looked for next.
        unread: names of attributes that somebody else keeps there.
    """

    owner: Any
    path: str
    values: Mapping[str, Any]
    shadows: Sequence[type]
    unread: set[str] = field(default_factory=set)

    def counting(self) -> dict[str, Any]:
        """The attributes that may say what is computed."""
        path = self.path
        out = {key[len(path) :] for key in _written(self.owner) if key.startswith(path)} | self.unread
        counting = (item for item in self.values.items() if _counts(item[0]) and item[0] not in out)
        return {key: value for key, value in counting if not _is_rule(value)}

    def is_for_others(self, key: str) -> bool:
        """Whether an attribute that is new was kept there for somebody else: ``forward`` cannot have read it."""
        value = self.values[key]
        if is_plain(value) and not isinstance(value, dict):
            return False
        return not any(key in vars(c) for c in self.shadows)


class Code:
    """What a model's forward pass runs, apart from tensors: attributes, hooks and methods of its modules.

    Attributes count unless the forward pass writes them itself, see :meth:`written`: numbers, text, functions, arrays
    and containers by what they are, other objects by identity. Objects that hold nothing else, such as configurations,
    are looked at like modules, and so are modules that stand in lists or objects (:mod:`fastlrp.capture.held`).

    Args:
        modules: whose code it is. with_hooks: whether hooks count.

    Attributes:
        modules: the given ones, and others that they hold without having them as submodules.
        tensors: within lists, dicts and objects that modules hold.
    """

    def __init__(self, modules: Sequence[nn.Module], with_hooks: bool = True) -> None:
        self.modules, tables, inside, arrays = _tables(modules)
        self._tables = tables
        self.tensors = inside.tensors
        self._types = [type(m) for m in self.modules]
        hooks = [getattr(m, name) for m in self.modules for name in _HOOKS]
        hooks += [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        hooks = hooks if with_hooks else []
        self._hooks: list[tuple[dict[int, Any], tuple[Any, ...]]] = [(t, tuple(t.values())) for t in hooks if t]
        self._hookless = [t for t in hooks if not t]
        self._arrays = [(owner, path, Fingerprint([tensor])) for owner, path, tensor in _memory(arrays)]
        self._written_to = False
        self._remember()

    def _remember(self) -> None:
        self._known = [table.counting() for table in self._tables]
        self._equal: list[tuple[Any, Callable[[Any], Any], Any]] = []
        self._identical: list[tuple[Any, Callable[[Any], Any], Any]] = []
        self._lists: list[tuple[Any, Any]] = []
        self._holding: list[Holding] = []
        for table, known in zip(self._tables, self._known, strict=True):
            plain = [key for key, value in known.items() if is_plain(value)]
            others = [key for key in known if key not in set(plain)]
            for keys, looks in ((plain, self._equal), (others, self._identical)):
                if keys:
                    get = itemgetter(*keys, keys[0])  # One more, so that it gives a tuple of one, too.
                    looks.append((table.values, get, get(table.values)))
            lists = [value for value in map(known.get, plain) if isinstance(value, (list, dict, set))]
            self._lists += [(items, copy.deepcopy(items)) for items in lists]
            self._holding += [Holding(v) for v in map(known.get, others) if isinstance(v, CONTAINERS)]
        self._looked_at = [table.values for table in self._tables]
        self._sizes = [*map(len, self._looked_at)]

    def changed(self) -> bool:
        """Whether the model now runs something else."""
        # Here as in Watch.restructured: no loops of Python where a function of C goes over a list.
        if [*map(type, self.modules)] != self._types or any(self._hookless):
            return True
        for hooks, before in self._hooks:
            if tuple(hooks.values()) != before:
                return True
        if self._arrays and (self._written_to or any(array.changed() for _, _, array in self._arrays)):
            self._written_to = True  # An array is remembered as it is now, and the next look has to give the same.
            return True
        if self._looks_other() or [*map(len, self._looked_at)] != self._sizes:
            return self._differs()
        return False

    def _looks_other(self) -> bool:
        """Whether an attribute that counted is another now, or a container holds something else."""
        try:
            for table, get, found in self._equal:
                if get(table) != found:
                    return True
            for table, get, found in self._identical:
                if not all(map(is_, get(table), found)):
                    return True
        except Exception:  # An attribute was deleted, or is now an array, which has no truth value.
            return True
        for items, known in self._lists:
            if items != known:
                return True
        return any(container.changed() for container in self._holding)

    def _differs(self) -> bool:
        """The same look, with what forward passes write left out; if that was all, what there is now is remembered."""
        if any(True for _ in self._different()):
            return True
        for table, known in zip(self._tables, self._known, strict=True):
            table.unread |= {key for key in table.counting().keys() - known.keys() if table.is_for_others(key)}
        self._remember()
        return False

    def _different(self, kept: bool = False) -> Iterator[tuple[Any, str]]:
        """Owner and name of each attribute that is not what it was; ``kept``: also of objects that nothing read yet."""
        contents = {id(container.items): container.contents for container in self._holding}
        contents |= {id(items): held(known) for items, known in self._lists}
        for table, known in zip(self._tables, self._known, strict=True):
            written, values = _written(table.owner), table.values
            for key in dict.fromkeys([*known, *table.counting()]):
                if table.path + key in written:
                    continue
                if key not in known and not kept and table.is_for_others(key):
                    continue
                lost = key not in values or key not in known
                if lost or not same(values[key], known[key], contents.get(id(known[key]))):
                    yield table.owner, table.path + key

    def written(self) -> None:
        """To be called when a forward pass is just over: what differs now is what it writes."""
        found = list(self._different(kept=True))
        arrays = list[tuple[Any, str]]()
        if self._arrays:
            with _disable_current_modes(), DisableTorchFunction():  # A trace's, which has tensors without numbers.
                arrays += [(owner, path) for owner, path, array in self._arrays if array.changed()]
        for owner, key in (*found, *arrays):
            _WRITTEN.setdefault(owner, set()).add(key)
        if found:
            self._remember()
        if arrays:
            self._arrays = [(owner, path, array) for owner, path, array in self._arrays if path not in _written(owner)]


_Arrays = list[tuple[Any, str, Any]]
"""Arrays of NumPy, each with the module or class that holds it and its path of attributes there."""


def _tables(modules: Sequence[nn.Module]) -> tuple[list[nn.Module], list[_Table], Inside, _Arrays]:
    """All modules, also those that the given ones hold as other attributes; their tables; and what else they hold."""
    arrays: _Arrays = []
    every, seen, inside = list(modules), set(map(id, modules)), Inside()
    tables: list[_Table] = []
    for module in every:  # Which grows meanwhile.
        table = _Table(module, "", vars(module), type(module).__mro__)
        tables += [table, *_settings(table, inside, arrays, seen)]
        found, inside.modules = inside.modules, []
        for other in (m for hidden in found for m in hidden.modules()):
            if id(other) not in seen:
                seen.add(id(other))
                every.append(other)
    for owner in _classes(every):
        table = _Table(owner, "", vars(owner), owner.__mro__[1:])
        tables += [table, *_settings(table, inside, arrays, seen)]
    return every, tables, inside, arrays


def _settings(table: _Table, inside: Inside, arrays: _Arrays, seen: set[int]) -> Iterator[_Table]:
    """Tables of the objects that the attributes of a module or class hold."""
    for key, value in table.counting().items():
        inside.take(key, value, seen)
    for path, found in inside.settings:
        yield _Table(table.owner, f"{path}.", vars(found), type(found).__mro__)
    written = _written(table.owner)
    arrays += [(table.owner, path, array) for path, array in inside.arrays if path not in written]
    inside.settings, inside.arrays = [], []


def _memory(arrays: _Arrays) -> Iterator[tuple[Any, str, Tensor]]:
    """The same with the arrays' memory, of those that have numbers."""
    for owner, path, array in arrays:
        tensor = bits(array)
        if tensor is not None:
            yield owner, path, tensor


def _classes(modules: Sequence[nn.Module]) -> list[type]:
    """The modules' classes and what they inherit from, below ``nn.Module``."""
    found = (c for m in modules for c in type(m).__mro__ if issubclass(c, nn.Module) and c is not nn.Module)
    return list(dict.fromkeys(found))


def _written(owner: Any) -> AbstractSet[str]:
    return _WRITTEN.get(owner, frozenset())


def written_by_a_copy(model: nn.Module, copied: nn.Module) -> None:
    """Take over which attributes forward passes write, from a copy of the model that was captured in its place."""
    modules = dict(model.named_modules())
    for path, module in copied.named_modules():
        if path in modules and _written(module):
            _WRITTEN.setdefault(modules[path], set()).update(_written(module))


def _counts(key: str) -> bool:
    return not (key.startswith("__") or key in _OURS or key in _INTERNAL)


def _is_rule(value: Any) -> bool:
    """Whether it says how to explain, not what to compute: Captum's rules, and fastlrp's in their place."""
    names = ((cls.__name__, cls.__module__.partition(".")[0]) for cls in type(value).__mro__)
    return any(name in ("Rule", "PropagationRule") and package in ("captum", "fastlrp") for name, package in names)


def held_tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Tensors that modules hold otherwise than as their parameters and buffers."""
    every, _, inside, _ = _tables(modules)
    others = every[len(modules) :]
    return inside.tensors + [t for m in others for t in (*m.parameters(False), *m.buffers(False))]


def outline(modules: Sequence[nn.Module], with_hooks: bool = True) -> list[Any]:
    """What :class:`Code` remembers, as something to compare (``==``) that keeps no module alive."""
    _, tables, _, arrays = _tables(modules)
    found: list[Any] = [[hash(tensor.numpy().tobytes()) for _, _, tensor in _memory(arrays)]]
    for table in tables:
        plain = [(key, _weakly(value)) for key, value in table.counting().items()]
        own = table.values if isinstance(table.owner, nn.Module) and not table.path else {}
        hooks = [_weakly(hook) for name in _HOOKS if with_hooks for hook in own.get(name, {}).values()]
        # Captures hold the tensors, so that no other one gets the same number.
        tensors = [id(tensor) for name in ("_parameters", "_buffers") for tensor in own.get(name, {}).values()]
        found.append((weakref.ref(type(table.owner)), table.path, plain, hooks, tensors))
    return found


def _weakly(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_weakly(item) for item in value]
    if isinstance(value, dict):
        return [(_weakly(key), _weakly(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return {item if isinstance(item, PLAIN) else id(item) for item in value}
    if isinstance(value, types.MethodType):
        return (_weakly(value.__self__), _weakly(value.__func__))
    try:
        return (id(value), weakref.ref(value))  # Two that live are compared by what they are, hence the first.
    except TypeError:
        return value if isinstance(value, PLAIN) else id(value)


class Watch:
    """Remembers a model's modules and what they run, its parameters and buffers, and the numbers in them.

    Attributes:
        home: a parameter that shows the model's dtype and device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables: list[dict[str, Any]] = []
        links: list[tuple[dict[str, Any], str, Any]] = []
        tensors: list[Tensor] = []
        self.code = Code(list(model.modules()))
        for module in self.code.modules:
            tables = (module._modules, module._parameters, module._buffers)
            self._tables += tables
            links += [(table, key, item) for table in tables for key, item in table.items()]
            own = [item for key, item in vars(module).items() if key not in _INTERNAL]
            tensors += [item for item in (*tables[1].values(), *tables[2].values(), *own) if isinstance(item, Tensor)]
        self._sizes = [*map(len, self._tables)]
        self._holders, self._keys, self._items = ([link[i] for link in links] for i in range(3))
        tensors += self.code.tensors
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
