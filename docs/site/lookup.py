"""What a dotted name of code leads to."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

PACKAGE = "fastlrp"


def found(name: str) -> Any:
    """What a dotted name leads to.

    Raises:
        LookupError: if there is no such module or attribute.
    """
    first, *rest = name.split(".")
    try:
        thing = importlib.import_module(first)
    except ImportError:
        raise LookupError(name) from None
    for attribute in rest:
        # A function goes before the module of its name, which is where it stands.
        if not hasattr(thing, attribute) and inspect.ismodule(thing):
            try:
                importlib.import_module(f"{thing.__name__}.{attribute}")
            except ImportError:
                raise LookupError(name) from None
        if not hasattr(thing, attribute) and attribute not in getattr(thing, "__annotations__", {}):
            raise LookupError(name)
        thing = getattr(thing, attribute, attribute)
    return thing
