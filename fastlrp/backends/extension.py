"""The compiled extension ``fastlrp._C``, or why it does not load."""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType

from fastlrp.errors import BackendError


@lru_cache(maxsize=1)
def loaded() -> ModuleType | str:
    """The extension, or the reason why there is none."""
    try:
        return importlib.import_module("fastlrp._C")
    except ImportError as error:
        return str(error)


def extension_error() -> str | None:
    """Why the compiled extension does not load, or None."""
    module = loaded()
    return module if isinstance(module, str) else None


def why_not_loaded() -> str | None:
    """The same as a sentence that says what to do."""
    error = extension_error()
    build = "build it with 'make install' or 'pip install .' in a checkout, with a C++ compiler"
    return None if error is None else f"the compiled extension fastlrp._C does not load ({error}); {build}"


def extension() -> ModuleType:
    """The compiled extension.

    Raises:
        BackendError: if it does not load.
    """
    module = loaded()
    if isinstance(module, str):
        raise BackendError(why_not_loaded())
    return module
