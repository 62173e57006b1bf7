"""What pickles and deep copies carry of objects that hold functions, or caches that only live in one process."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any, NoReturn

_BY_VALUE = ("cloudpickle", "dill")
"""Picklers that write functions out with their code, by a part of their module's name."""


class Carried:
    """A value in an object's state that is pickled with a clear error where it cannot be.

    Functions are pickled by their names, so that a lambda or a function inside another one cannot be. The error of
    :mod:`pickle` for that does not say where in the object it stood; this one does. A deep copy takes the value as
    ``copy.deepcopy`` would.

    Args:
        value: the value. what: names it in the error, ``"the function given as output="``.
    """

    def __init__(self, value: Any, what: str) -> None:
        self.value, self.what = value, what

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.value, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        if callable(self.value) and not isinstance(self.value, type) and not _has_a_name(self.value):
            raise pickle.PicklingError(
                f"{self.what} cannot be pickled: {self.value!r} has no name in a module, by which pickles find "
                "functions. Define it with `def` at the top of a module that the other process can import, or send "
                "the model and the options, and make the explainer there"
            )
        return plain, (self.value,)


def plain(value: Any) -> Any:
    """What a :class:`Carried` holds, or the value itself."""
    return value.value if isinstance(value, Carried) else value


def _has_a_name(function: Any) -> bool:
    """True for what pickle finds again by its name, and for objects, which it takes apart."""
    name = getattr(function, "__qualname__", None)
    if name is None or _pickles_by_value():
        return True
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None


def _pickles_by_value() -> bool:
    frame: Any = sys._getframe(1)
    while frame is not None:
        if any(name in frame.f_globals.get("__name__", "") for name in _BY_VALUE):
            return True
        frame = frame.f_back
    return False


class StaysHere:
    """Base class of objects that belong to one process: neither pickled nor deep-copied, with an error that says why.

    ``copy.copy`` works: the copy shares everything with the original.

    Attributes:
        instead: what to send in its place, a sentence for the error.
    """

    instead: str = "send what it was made from, and make it again there"

    def __copy__(self) -> Any:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be deep-copied: {self.instead}")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: {self.instead}")
