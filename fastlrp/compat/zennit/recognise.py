"""Reads a Zennit hook: which of its rules it is, and with which parameters.

Zennit's rules are hooks made of functions; their parameters exist only as what those functions closed over. They are
read from there, and believed only if Zennit's own constructor makes the same functions of them again.

Zennit is never imported here. Whoever hands over one of its objects has imported it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastlrp.compat.zennit.fingerprint import fingerprint
from fastlrp.errors import UnsupportedOperationError
from fastlrp.stabilizer import Stabilizer

_PARTS = ("input_modifiers", "param_modifiers", "output_modifiers", "gradient_mapper", "reducer")
_METHODS = ("pre_forward", "post_forward", "pre_backward", "forward", "backward", "register")


def core() -> Any:
    """Zennit's ``zennit.core`` if somebody has imported it, else None."""
    return sys.modules.get("zennit.core")


def call_forward(hook: Any, module: Any, point: Any, output: Any) -> None:
    """A hook's ``forward`` as its ``register`` has it called: Zennit 1.0.0 hands over keyword arguments where taken.

    Raises:
        UnsupportedOperationError: for one that returns another output.
    """
    parameters = list(inspect.signature(hook.forward).parameters)
    with_kwargs = hasattr(core().Hook, "_inject_grad_fn") and len(parameters) != 3 and parameters[2:3] != ["output"]
    found = hook.forward(module, (point,), *(({},) if with_kwargs else ()), output)
    if found is not None and found is not output:
        raise UnsupportedOperationError(
            f"forward of the hook {type(hook).__name__} returns {type(found).__name__}: under Zennit that replaces the "
            "module's output, which a captured model cannot do. Let it return None, or change the model itself"
        )


def is_composite(item: Any) -> bool:
    """Whether it is one of Zennit's composites."""
    zennit = core()
    return zennit is not None and isinstance(item, zennit.Composite)


def is_hook(item: Any) -> bool:
    """Whether it is one of Zennit's hooks."""
    zennit = core()
    return zennit is not None and isinstance(item, zennit.Hook)


@dataclass(frozen=True)
class Recognised:
    """A hook in terms of ``zennit.rules``.

    Attributes:
        name: class name there, ``"ZPlus"``.
        stabilizer: Zennit's, a function of the denominator.
        zero_params: names of parameters that are set to zero, as Zennit takes them.
        numbers: everything else: ``gamma``, ``alpha``, ``beta``, ``low``, ``high``, ``beta_smooth``.
    """

    name: str
    stabilizer: Any = None
    zero_params: Any = None
    numbers: dict[str, Any] = field(default_factory=dict)

    def zeroes(self, parameter: str) -> bool:
        """Whether a parameter of this name is set to zero."""
        names = self.zero_params
        return bool(names) and (names == parameter or parameter in names)


def _closed(function: Any) -> dict[str, Any]:
    names = function.__code__.co_freevars
    return {name: cell.cell_contents for name, cell in zip(names, function.__closure__ or (), strict=True)}


def _mapper(hook: Any) -> Any:
    return _closed(hook.gradient_mapper)["stabilizer_fn"]


def _zeroed(hook: Any) -> Any:
    return hook.param_modifiers[0].zero_params


_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Epsilon": lambda h: {"epsilon": _mapper(h), "zero_params": _zeroed(h)},
    "Norm": lambda h: {"stabilizer": _mapper(h)},
    "ZPlus": lambda h: {"stabilizer": _mapper(h), "zero_params": _zeroed(h)},
    "Gamma": lambda h: {
        "gamma": _closed(h.param_modifiers[0].modifier)["gamma"],
        "stabilizer": _mapper(h),
        "zero_params": _zeroed(h),
    },
    "AlphaBeta": lambda h: {
        "alpha": _closed(h.reducer)["alpha"],
        "beta": _closed(h.reducer)["beta"],
        "stabilizer": _mapper(h),
        "zero_params": _zeroed(h),
    },
    "ZBox": lambda h: {
        "low": _closed(h.input_modifiers[1])["low"],
        "high": _closed(h.input_modifiers[2])["high"],
        "stabilizer": _mapper(h),
        "zero_params": _zeroed(h),
    },
    "WSquare": lambda h: {"stabilizer": _mapper(h), "zero_params": _zeroed(h)},
    "Flat": lambda h: {"stabilizer": _mapper(h), "zero_params": _zeroed(h)},
}
"""Per rule that is a ``BasicHook``: the arguments of its constructor, read from an instance."""

_PLAIN = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")
"""Rules that are a ``backward`` method of their own."""


def recognise(hook: Any) -> Recognised | None:
    """Which rule of Zennit it is; None for a hook that is none of them.

    A subclass, or a ``BasicHook`` put together by hand, is recognised if it does what the rule does.
    """
    rules = sys.modules.get("zennit.rules")
    if rules is None:
        return None
    for name in _PLAIN:
        known = getattr(rules, name)
        if all(getattr(type(hook), m) is getattr(known, m) for m in _METHODS):
            numbers = {"beta_smooth": hook.beta_smooth} if name == "ReLUBetaSmooth" else {}
            return Recognised(name, numbers=numbers)
    basic = core().BasicHook
    if any(getattr(type(hook), m) is not getattr(basic, m) for m in _METHODS):
        return None
    for name, read in _READERS.items():
        try:
            arguments = read(hook)
            again = getattr(rules, name)(**arguments)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            continue
        if all(fingerprint(getattr(hook, part)) == fingerprint(getattr(again, part)) for part in _PARTS):
            key = "epsilon" if "epsilon" in arguments else "stabilizer"
            return Recognised(name, arguments.pop(key), arguments.pop("zero_params", None), arguments)
    return None


def stabilizer(theirs: Any) -> Stabilizer | None:
    """Zennit's stabilizer as one of ours; None for a function of the user's or other axes than all but the first."""
    zennit = core()
    if type(theirs) is not zennit.Stabilizer or (theirs.norm_scale and theirs.dim is not None):
        return None
    if isinstance(theirs.epsilon, bool) or not isinstance(theirs.epsilon, (int, float)) or not theirs.epsilon >= 0:
        return None
    return Stabilizer(float(theirs.epsilon), "sample" if theirs.norm_scale else None, clip=bool(theirs.clip))
