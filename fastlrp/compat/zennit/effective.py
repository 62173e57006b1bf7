"""What modules compute with, where an attribute hides a registered tensor, and functions that refer to modules.

Zennit 1.0.0's canonizers write merged weights past ``nn.Module``, into the instance's own ``__dict__``. Such an entry
hides the parameter or buffer of the same name, and stays behind when the canonizer is removed.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.identity import Itself
from fastlrp.compat.zennit.fingerprint import from_library, global_names

Replaced = Mapping[int, nn.Module]
"""``id`` of a module -> the module to take in its place."""


def hidden(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Table of registered tensors, name, and the attribute that hides the registered tensor of that name."""
    own = vars(module)
    for table in (module._parameters, module._buffers):
        for name in table:
            if name in own:
                yield table, name, own[name]


_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)


def attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes of the instance that change what a forward pass computes, comparable, and keeping no model alive."""
    names = {name for table in (module._parameters, module._buffers) for name in table}
    found: dict[str, Any] = {"": len(vars(module))}
    for key, item in vars(module).items():
        if isinstance(item, _PLAIN):
            found[key] = type(item), item
        elif isinstance(item, types.FunctionType):
            found[key] = weakref.ref(item)
        elif isinstance(item, types.MethodType):
            found[key] = weakref.ref(item.__func__), id(item.__self__)
        elif key in names:
            found[key] = Itself(item)
    return found


def settle(model: nn.Module) -> None:
    """Register what hides registered tensors, so that they are what the forward pass reads."""
    table: dict[str, Any]
    for module in model.modules():
        for table, name, item in list(hidden(module)):
            if not isinstance(item, Tensor | None):
                continue
            if isinstance(item, Tensor) and name in module._parameters and not isinstance(item, nn.Parameter):
                with torch.inference_mode(item.is_inference()):
                    item = nn.Parameter(item.detach(), requires_grad=False)
            table[name] = item
            del vars(module)[name]


class Registered:
    """A model's tensors and attributes, to put back what Zennit's own canonizers do not."""

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[tuple[nn.Module, dict[str, Any], list[tuple[dict[str, Any], dict[str, Any]]]]] = [
            (m, dict(vars(m)), [(table, dict(table)) for table in (m._parameters, m._buffers)]) for m in model.modules()
        ]

    def restore(self) -> None:
        """Put back attributes that are gone, and tables of tensors where a module computes with those that it had.

        Zennit's ``AttributeCanonizer`` deletes what it has replaced. Its canonizers of batch norms (1.0.0) leave
        attributes that hide the tensors, and a bias that nothing computes with.
        """
        for module, before, tables in self._modules:
            own = vars(module)
            hiding = {name: before[name] for _, items in tables for name in items if name in before}
            own.update((name, item) for name, item in before.items() if name not in own and name not in hiding)
            for table, items in tables:
                for name, item in items.items():
                    computes = own[name] if name in own else table.get(name)
                    if computes is not hiding.get(name, item):
                        continue
                    table[name] = item
                    own.pop(name, None)
                    own.update({name: hiding[name]} if name in hiding else {})


def rebind(model: nn.Module, replaced: Replaced) -> None:
    """Let functions among the attributes of a copied model refer to the copy, which ``copy.deepcopy`` does not.

    Args:
        replaced: the modules that were copied, to their copies.
    """
    methods: dict[type, dict[str, types.FunctionType]] = {}
    for module in model.modules():
        own = vars(module)
        for name, item in list(own.items()):
            if not name.endswith(("_hooks", "_hooks_with_kwargs")):
                own[name] = rebound(item, replaced)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                hooks[key] = rebound(hook, replaced)
        kind = type(module)
        if kind not in methods:
            methods[kind] = _methods(kind, replaced)
        own.update((name, types.MethodType(f, module)) for name, f in methods[kind].items() if name not in own)


def _methods(kind: type, replaced: Replaced) -> dict[str, types.FunctionType]:
    """The methods of a class that refer to modules themselves, past ``self``, with the other modules."""
    found: dict[str, types.FunctionType] = {}
    for base in reversed(kind.__mro__):
        for name, item in vars(base).items():
            other = rebound(item, replaced) if isinstance(item, types.FunctionType) else item
            found.pop(name, None)
            if other is not item:
                found[name] = other
    return found


def rebound(item: Any, replaced: Replaced, depth: int = 0) -> Any:
    """The same function, referring to other modules; the very item if it refers to none of them."""
    if isinstance(item, nn.Module):
        return replaced.get(id(item), item)
    if depth > 4:
        return item
    again = functools.partial(rebound, replaced=replaced, depth=depth + 1)
    if isinstance(item, types.FunctionType):
        return _function(item, again)
    if isinstance(item, types.MethodType):
        function, owner = again(item.__func__), again(item.__self__)
        return item if function is item.__func__ and owner is item.__self__ else types.MethodType(function, owner)
    if isinstance(item, functools.partial):
        parts = again(item.func), again(item.args), again(item.keywords)
        if parts == (item.func, item.args, item.keywords):
            return item
        return functools.partial(parts[0], *parts[1], **parts[2])
    if type(item) in (tuple, list):
        found = [again(part) for part in item]
        return item if all(a is b for a, b in zip(found, item, strict=True)) else type(item)(found)
    if type(item) is dict:
        entries = {key: again(part) for key, part in item.items()}
        return item if all(entries[key] is item[key] for key in item) else entries
    return item


def _function(function: types.FunctionType, again: Any) -> Any:
    if from_library(function):
        return function
    cells = function.__closure__ or ()
    closure = tuple(_cell(cell, again, function) for cell in cells)
    names = global_names(function.__code__)
    changed = {n: other for n in names if (other := _module(function.__globals__.get(n), again)) is not None}
    defaults = again(function.__defaults__)
    if not changed and defaults is function.__defaults__ and all(a is b for a, b in zip(closure, cells, strict=True)):
        return function
    scope = {**function.__globals__, **changed} if changed else function.__globals__
    found = types.FunctionType(function.__code__, scope, function.__name__, defaults, closure)
    found.__kwdefaults__ = again(function.__kwdefaults__)
    return functools.update_wrapper(found, function)


def _cell(cell: types.CellType, again: Any, function: types.FunctionType) -> types.CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # Not filled yet.
        return cell
    found = cell if content is function else again(content)
    return cell if content is function or found is content else types.CellType(found)


def _module(item: Any, again: Any) -> nn.Module | None:
    """The other module, if this is one that has been replaced."""
    found = again(item) if isinstance(item, nn.Module) else item
    return found if isinstance(found, nn.Module) and found is not item else None
