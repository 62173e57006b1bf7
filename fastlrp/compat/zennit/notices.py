"""What users' own Python code does that a captured model or a copied hook cannot do: said, never left out silently."""

from __future__ import annotations

import dis
import types
import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from fastlrp.compat.zennit.effective import rebound
from fastlrp.compat.zennit.fingerprint import STATE
from fastlrp.compat.zennit.recognise import core
from fastlrp.errors import UnsupportedOperationError, module_text

_REPLACED = ("pre_forward", "post_forward", "pre_backward", "register")
_LIBRARIES = ("torch", "torchvision", "zennit")
_INPUT_UNREAD = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop")


def _say(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)


def refuse_own_steps(hook: Any, path: str) -> None:
    """Refuse a hook that replaces steps of Zennit's which have no place here.

    Raises:
        UnsupportedOperationError: for a class with a ``pre_forward``, ``post_forward``, ``pre_backward`` or
            ``register`` of its own.
    """
    base = core().Hook
    own = [name for name in _REPLACED if getattr(type(hook), name) is not getattr(base, name)]
    if own:
        raise UnsupportedOperationError(
            f"the hook {type(hook).__name__} on {module_text(path)} has {' and '.join(own)} of its own, "
            "which only Zennit's own hooks on a model can call: here a hook's forward and backward run. Put what it "
            "does there, or use zennit.attribution for this composite"
        )


def several_calls(hook: Any, path: str, name: str | None, calls: int) -> None:
    """Warn where Zennit's hook would use the input of a module's last call for every call."""
    if calls > 1 and name not in _INPUT_UNREAD:
        _say(
            f"module {path!r} is called {calls} times under {type(hook).__name__}: each call is explained with its "
            "own input here, while Zennit's hook keeps the input of the last call for all of them. The numbers "
            "differ from Zennit's; give the module a copy per call for the same in both"
        )


def kept_state(hook: Any, before: dict[str, Any], path: str) -> bool:
    """Warn about attributes that a hook has changed on itself; whether it has."""
    changed = [key for key, item in vars(hook).items() if key not in STATE and before.get(key, STATE) is not item]
    if changed:
        _say(
            f"the hook {type(hook).__name__} on {module_text(path)} changes its attribute "
            f"{', '.join(map(repr, changed))}: here every call and every target gets a new copy of the hook, so that "
            "nothing is kept from one to the next"
        )
    return bool(changed)


def held_modules(hooks: dict[str, Any], model: nn.Module, recognised: Iterable[str]) -> None:
    """Warn about hooks of the user's own that refer to modules of the model: they are given copies of them."""
    known, names = set(recognised), {id(module): path for path, module in model.named_modules()}
    seen: set[int] = set()
    for path, hook in hooks.items():
        if path in known or id(hook) in seen:
            continue
        seen.add(id(hook))
        held = _held(hook, names)
        if held is not None:
            _say(
                f"the hook {type(hook).__name__} on {module_text(path)} refers to the module {held!r} of "
                "the model. A hook runs with a copy of its module here, so that comparing modules by identity (`is`, "
                "id()) tells it nothing: let it compare types or attributes, or decide in the composite's module_map"
            )


def _held(hook: Any, names: dict[int, str]) -> str | None:
    methods = [m for base in type(hook).__mro__ for m in vars(base).values() if isinstance(m, types.FunctionType)]
    items = [*vars(hook).values(), *methods]

    def refer(keys: Iterable[int]) -> bool:
        stand_ins = {key: nn.Identity() for key in keys}
        return any(rebound(item, stand_ins) is not item for item in items)

    return next(path for key, path in names.items() if refer([key])) if refer(names) else None


def side_effects(model: nn.Module) -> None:
    """Warn about ``forward`` methods that set attributes of their module, print or write to globals."""
    done: set[Any] = set()
    for path, module in model.named_modules():
        forward = vars(module).get("forward", type(module).forward)
        function = getattr(forward, "__func__", forward)
        code = getattr(function, "__code__", None)
        if code is None or code in done or str(function.__module__).partition(".")[0] in _LIBRARIES:
            continue
        done.add(code)
        found = _effects(code)
        if found:
            _say(
                f"forward of module {module_text(path)} ({type(module).__name__}) {found}. The model is "
                "captured once and its Python code does not run again: such effects do not happen at later calls, "
                "and values that change from call to call stay as they were at the capture"
            )


def _effects(code: types.CodeType) -> str:
    this, found = code.co_varnames[:1], []
    before: Any = None
    for step in dis.get_instructions(code):
        name = step.opname
        if name == "STORE_ATTR" and before is not None:
            read = before.argval[-1:] if isinstance(before.argval, tuple) else (before.argval,)
            # Python 3.13 has instructions that also store another variable; LOAD_DEREF: a function inside reads it too.
            loads = "LOAD_FAST" in before.opname or before.opname == "LOAD_DEREF"
            if (loads and read == this) or before.opname in ("SWAP", "ROT_TWO"):
                found.append(f"sets the attribute {step.argval!r}")
        elif name == "STORE_GLOBAL":
            found.append(f"sets the global {step.argval!r}")
        elif name == "STORE_DEREF" and step.argval in code.co_freevars:
            found.append(f"sets {step.argval!r} of the function around it")
        elif name == "LOAD_GLOBAL" and step.argval == "print":
            found.append("prints")
        before = step
    return " and ".join(dict.fromkeys(found))
